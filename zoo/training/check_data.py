"""What can be wrong with the data of a recipe: names, splits, sizes, spacing, and truths that a family needs."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any

from zoo import cards
from zoo.cards import DatasetCard
from zoo.errors import UserError, suggest
from zoo.families.base import Need
from zoo.recipe import Data, DataSource, Loading
from zoo.schema import Component
from zoo.training.check_parts import Key, Notes, check_component

LARGEST = 2**33
"""Bytes of one batch of input as floats that are still believed: 8 GiB."""


def check_loading(
    notes: Notes, loading: Loading, key: Key, *, training: bool, here: bool, devices: int
) -> list[tuple[Key, DatasetCard]]:
    """Check one stream of data and return the cards of the datasets that could be found, each with its key.

    `here`: whether the data must be on this machine. `devices`: over how many a batch is shared out.
    """
    found: list[tuple[Key, DatasetCard]] = []
    sizes: list[int] = []
    for place, source in placed(notes, loading.datasets, (*key, "datasets")):
        card = check_source(notes, source, place, training=training, here=here, sizes=sizes)
        if card is not None:
            found.append((place, card))
            _check_images(notes, loading, card, key)
    if loading.batch % devices:
        fitting = max(devices, loading.batch // devices * devices)
        what = (
            f"{loading.batch} samples cannot be shared out evenly over {devices} devices. Write for example {fitting}"
        )
        notes.add((*key, "batch"), what)
    if training:
        _check_epoch(notes, loading, key, sum(sizes) if len(sizes) == len(loading.datasets) else None)
    _check_size(notes, loading, key, max((len(card.channels) for _, card in found), default=3))
    _check_augment(notes, loading, key)
    return found


def _check_epoch(notes: Notes, loading: Loading, key: Key, images: int | None) -> None:
    """Check that an epoch holds a batch (`images`: how many there are, None = not known), and what weights need."""
    samples = loading.samples or images
    if samples is not None and samples < loading.batch:
        what = f"{loading.batch} samples a step, but an epoch has {samples}. Lower batch, or write more samples"
        notes.add((*key, "batch"), what)
    if loading.balance not in ("datasets", "batches") and len({d.weight for d in loading.datasets}) > 1:
        what = f"datasets have weights, which count with balance: datasets or batches, not {loading.balance}"
        notes.add((*key, "balance"), f"{what}. Write that, or no weights")


def placed(notes: Notes, sources: Sequence[DataSource], key: Key) -> list[tuple[Key, DataSource]]:
    """Return each source with its key; one that stands alone in the file has no number."""
    single = len(sources) == 1 and (*key, 0) not in notes.document.places
    return [(key if single else (*key, i), source) for i, source in enumerate(sources)]


def check_source(
    notes: Notes, source: DataSource, key: Key, *, training: bool, here: bool, sizes: list[int] | None = None
) -> DatasetCard | None:
    """Check one dataset: its name, its card, and where its files are on this machine its split, fold and arguments.

    `sizes` gets the number of its images where it can be opened.
    """
    try:
        card = cards.dataset_card(source.name)
    except UserError as error:
        notes.add_error(key, error)
        return None
    if source.fold is not None and source.fold >= source.folds:
        notes.add((*key, "fold"), f"fold {source.fold} of {source.folds} will not do. Expected 0 to {source.folds - 1}")
        return card
    from zoo.data.datasets import card_splits, dataset_folder, open_dataset

    file = cards.dataset_card_file(source.name)
    absent: UserError | None = None
    if card.folder is not None or file.name == cards.CARD_NAME:
        try:
            dataset_folder(card, file)
        except UserError as error:
            absent = error
    if absent is not None and here:
        notes.add_error(key, absent)
    elif absent is not None:
        fixed = card_splits(card, file)
        if fixed and source.split not in (*fixed, "all"):
            known = [*fixed, "all"]
            what = f'dataset {card.name} has no split "{source.split}". It has {", ".join(known)}. '
            notes.add(key, what + suggest(source.split, known))
    else:
        count = _open(notes, source, key, open_dataset, training)
        if sizes is not None and count:
            sizes.append(count)
    return card


def _open(notes: Notes, source: DataSource, key: Key, open_dataset: Any, training: bool) -> int:
    """Return how many images a dataset has, 0 where it cannot be opened."""
    try:
        dataset = open_dataset(
            source.name,
            split=source.split,
            fold=source.fold,
            folds=source.folds,
            arguments=source.arguments,
            limit=source.limit,
            part="train" if training else "validate",
        )
    except UserError as error:
        notes.add_error(key, error)
        return 0
    if len(dataset) == 0:
        notes.add(key, f"split {source.split} of {source.name} holds no image. Choose another split")
    return len(dataset)


def _check_images(notes: Notes, loading: Loading, card: DatasetCard, key: Key) -> None:
    if loading.size is not None and len(loading.size) != len(card.axes) - 1:
        expected = "height and width" if card.axes == "CYX" else "depth, height and width"
        what = (
            f"{len(loading.size)} numbers for images of dataset {card.name}, which are {card.axes}. Expected {expected}"
        )
        notes.add((*key, "size"), what)
    own = card.reader.name == "folder"  # whose files may say their spacing themselves
    if loading.mpp is not None and card.spacing.um is None and not own:
        what = (
            f"the um per pixel of dataset {card.name} are not known, so that it cannot be resampled to "
            f"{loading.mpp:g}. Leave mpp out, or set spacing in a card of your own"
        )
        notes.add((*key, "mpp"), what)


def _check_size(notes: Notes, loading: Loading, key: Key, channels: int) -> None:
    if loading.size is None:
        return
    amount = 4 * loading.batch * channels * math.prod(loading.size)
    if amount > LARGEST:
        shown = " x ".join(map(str, loading.size))
        what = f"{loading.batch} patches of {shown} are {amount / 2**30:.0f} GiB of input alone. "
        what += "Write a smaller size or batch"
        notes.add((*key, "size"), what)


def check_stride(notes: Notes, loading: Loading, key: Key, stride: int | None) -> None:
    """Check that a patch is not smaller than one step of the coarsest features."""
    if stride and loading.size is not None and min(loading.size[-2:]) < stride:
        what = (
            f"a patch of {min(loading.size[-2:])} pixels is smaller than the encoder's total stride, {stride}. "
            f"Write at least {stride}, better {4 * stride}"
        )
        notes.add((*key, "size"), what)


def check_smallest(notes: Notes, data: Data, key: Key, smallest: int) -> None:
    """Check that no patch that is learnt from is smaller than what the model's parts need."""
    for where, loading in data.all():
        side = min(loading.size[-2:]) if loading.size is not None else smallest
        if side < smallest:
            what = f"a patch of {side} pixels is smaller than this model can learn from, {smallest}. "
            notes.add((*key, *where, "size"), f"{what}Write a larger size, or a model that halves less often")


def check_single_values(
    notes: Notes, data: Data, key: Key, stride: int | None, devices: int, parts: Container[str]
) -> None:
    """Check that norms see more than one value a channel: a patch as small as the stride gives one.

    Batch norm mends that with a second patch, instance norm does not. `parts`: names of the classes of the model's.
    """
    for where, loading in data.all():
        batch = loading.batch == devices and ("BatchNorm2d" in parts or "BatchNormAct2d" in parts)
        norm = "instance norm" if "InstanceNorm2d" in parts else "batch norm" if batch else ""
        if stride and norm and loading.size is not None and max(loading.size) <= stride:
            what = f"a patch of {max(loading.size)} pixels leaves {norm} one value a channel, which is too few. "
            notes.add((*key, *where, "size"), f"{what}Write a larger size{' or batch' if batch else ''}")


def _check_augment(notes: Notes, loading: Loading, key: Key) -> None:
    from zoo.data import augment

    where = (*key, "augment")
    if isinstance(loading.augment, str):
        if loading.augment not in augment.PRESETS:
            what = f'no augmentation preset "{loading.augment}". {suggest(loading.augment, augment.PRESETS)}'
            notes.add(where, what)
        return
    before = len(notes.problems)
    for i, component in enumerate(loading.augment):
        check_component(notes, "augmentation", component, (*where, i), make=augment.build)
        if loading.augment_on == "device" and len(notes.problems) == before:
            _check_on_device(notes, component, (*where, i))


def _check_on_device(notes: Notes, component: Component, key: Key) -> None:
    from zoo.data.augment_device import DeviceAugment

    try:
        DeviceAugment([component])
    except UserError as error:
        notes.add(key, str(error).removeprefix("augment: ").rstrip("."))


def check_needs(
    notes: Notes, family: str, needs: Sequence[Need], found: Sequence[tuple[Key, DatasetCard]], key: Key
) -> bool:
    """Check that each dataset has a truth that the family learns from, and that each need is met; True where so."""
    before = len(notes.problems)
    for place, card in found:
        if needs and not any(meets(card, need) for need in needs):
            have = ", ".join(f"{name} ({truth.kind})" for name, truth in card.truths.items()) or "no truth"
            wanted = "; or ".join(_said(need) for need in needs)
            what = f"family {family} learns from {wanted}, but dataset {card.name} has {have}. Choose another dataset"
            notes.add(place, what)
    if len(notes.problems) == before and found:
        for need in needs:
            if not any(meets(card, need) for _, card in found):
                notes.add(
                    key, f"family {family} also learns from {_said(need)}, which no dataset has. Add one that has it"
                )
    return len(notes.problems) == before


def meets(card: DatasetCard, need: Need) -> bool:
    """Return whether a dataset carries a truth that will do."""
    truths = card.truths if need.key is None else {k: t for k, t in card.truths.items() if k == need.key}
    return any(truth.kind in need.kinds for truth in truths.values())


def _said(need: Need) -> str:
    kinds = " or ".join(need.kinds)
    return f'a truth "{need.key}" of kind {kinds}' if need.key else f"a truth of kind {kinds}"
