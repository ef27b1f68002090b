"""What a stage learns from: loaders, further streams, augmentation on the device, and a record of what was seen."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from zoo.cards import DatasetCard, Trained
from zoo.data.loading import Loader, open_source
from zoo.data.stains import Prepared
from zoo.errors import DataError, UserError, counted
from zoo.families.base import Family
from zoo.recipe import Data, DataSource, Loading
from zoo.training.context import step_seed
from zoo.types import Batch, Boxes, Instances, Sample, Semantic


def make_targets(cls: type[Family], options: Any) -> Callable[[DatasetCard], Any]:
    """Return what makes a dataset's target maker from its card."""
    return functools.partial(cls.targets, options)


def open_loader(
    loading: Loading, family: Family, *, seed: int, training: bool, rank: int = 0, world: int = 1
) -> Loader:
    """Return the loader of one stream, with the channels and the resolution that the family wants."""
    encoding = family.spec.encoding
    return Loader(
        loading,
        make_targets(type(family), family.options),
        seed=seed,
        training=training,
        rank=rank,
        world=world,
        channels=family.spec.channels,
        mpp=(family.spec.mpp or family.spec.spacing) if loading.mpp is None else None,
        stretch=(encoding.low, encoding.high, encoding.joint) if encoding.kind == "percentile" else None,
        prepare=None if family.stain is None else Prepared(family.stain),
    )


def sources(data: Data) -> list[DataSource]:
    """Return every dataset that is trained on, the other streams' included."""
    loadings = [data.train, *data.streams.values()]
    return [source for loading in loadings for source in loading.datasets]


def seen(found: Sequence[DataSource], training: bool) -> list[dict[str, Any]]:
    """Return what weights will have seen, a record a dataset and split, in plain values (`zoo.cards.Trained`)."""
    merged: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for source in found:
        dataset = open_source(source, training)
        groups, images = merged.setdefault((dataset.card.name, source.split), (set(), set()))
        groups.update(e.group for e in dataset.index if e.group is not None)
        images.update(e.id for e in dataset.index)
    return [
        Trained(dataset=name, split=split, groups=tuple(sorted(groups)), images=tuple(sorted(images))).model_dump(
            mode="json"
        )
        for (name, split), (groups, images) in sorted(merged.items())
    ]


def seen_twice(data: Data) -> str:
    """Return a sentence about images that are both trained and validated on, or whose group is; "" without any."""
    if data.validate_ is None:
        return ""
    trained = seen(sources(data), True)
    found, count = [], 0
    for source in data.validate_.datasets:
        dataset = open_source(source, False)
        own = [record for record in trained if record["dataset"] == dataset.card.name]
        images = {i for record in own for i in record["images"]}
        groups = {g for record in own for g in record["groups"]}
        count += len(dataset)
        found += [e.id for e in dataset.index if e.id in images or e.group in groups]
    if not found:
        return ""
    shown = ", ".join(found[:3]) + (" ..." if found[3:] else "")
    which = f"{len(found)} of {counted(count, 'image')} to validate on"
    return f"{which} ({shown}), or their patients or slides, are trained on too: validation will be too good"


class SomeSamples(Sequence[Sample]):
    """Up to `most` samples, evenly spaced over some datasets, read when they are asked for."""

    def __init__(self, found: Sequence[DataSource], most: int = 64) -> None:
        self._datasets = [open_source(source, True) for source in found]
        places = [(d, i) for d, dataset in enumerate(self._datasets) for i in range(len(dataset))]
        step = max(1, -(-len(places) // most))
        self._places = places[::step]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        dataset, position = self._places[index]
        return self._datasets[dataset][position]


class Feed:
    """The batches of a stage on their device: the main stream, with the others in step with it.

    A stream that is shorter than the main one begins its next epoch in the middle of the main one's; which batch of it
    comes when is a function of the number of batches before, so that a run can go on anywhere.
    """

    def __init__(
        self,
        data: Data,
        family: Family,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: Any = "cpu",
    ) -> None:
        self.seed, self.rank, self.device = seed, rank, torch.device(device)
        self.loadings = {"main": data.train, **data.streams}
        self.loaders = {
            name: open_loader(loading, family, seed=_stream_seed(seed, name), training=True, rank=rank, world=world)
            for name, loading in self.loadings.items()
        }
        self.augments = {name: _device_augment(loading) for name, loading in self.loadings.items()}

    def __len__(self) -> int:
        return len(self.loaders["main"])

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches from number `skip` on."""
        before = epoch * len(self)
        others = {n: self._endless(n, before + skip) for n in self.loaders if n != "main"}
        for index, batch in enumerate(self.loaders["main"].epoch(epoch, skip), before + skip):
            batch.others = {**batch.others, **{name: next(stream) for name, stream in others.items()}}
            moved = batch.to(self.device, non_blocking=True)
            parts = {name: self._augment(name, part, index) for name, part in moved.streams()}
            main = parts.pop("main")
            main.others = parts
            yield main

    def _endless(self, name: str, start: int) -> Iterator[Batch]:
        loader = self.loaders[name]
        epoch, skip = divmod(start, len(loader))
        while True:
            yield from loader.epoch(epoch, skip)
            epoch, skip = epoch + 1, 0

    def _augment(self, name: str, batch: Batch, index: int) -> Batch:
        augment = self.augments.get(name)
        if augment is None:
            return batch
        changed: Batch = augment(batch, step_seed(_stream_seed(self.seed, name), index, self.rank))
        return changed

    def close(self) -> None:
        """End the worker processes."""
        for loader in self.loaders.values():
            loader.close()


def _stream_seed(seed: int, name: str) -> int:
    return seed if name == "main" else step_seed(seed, sum(name.encode()), 0) % 2**31


def _device_augment(loading: Loading) -> Any:
    if loading.augment_on != "device" or loading.augment == "none":
        return None
    from zoo.data.augment_device import DeviceAugment

    return DeviceAugment(loading.augment)


def speaks(sample: Sample) -> bool:
    """Return whether a sample's truths say anything but "nothing here"; a sample without truth does not."""
    for truth in sample.truth.values():
        if isinstance(truth, Semantic):
            seen = truth.map if truth.multilabel or truth.ignore is None else truth.map[truth.map != truth.ignore]
            if np.any(seen != 0):
                return True
        elif isinstance(truth, Instances):
            if np.any(truth.map != 0):
                return True
        elif not isinstance(truth, Boxes) or len(truth.xyxy):
            return True
    return False


def check_something_to_learn(found: Sequence[DataSource]) -> None:
    """Raise `UserError` where the truths of everything that is trained on are empty.

    A few samples are looked at; all of them only where those few say nothing. Unreadable ones are left to the training.
    """

    def any_speaks(samples: Sequence[Sample]) -> bool:
        for index in range(len(samples)):
            try:
                if speaks(samples[index]):
                    return True
            except DataError:
                continue
        return False

    if not any_speaks(SomeSamples(found, 16)) and not any_speaks(everything := SomeSamples(found, sys.maxsize)):
        names = ", ".join(f"{s.name}:{s.split}" for s in found)
        raise UserError(
            f"data.train: the truths of all {len(everything)} images of {names} are empty. Expected something to learn "
            f"beside background. See: zoo data check {found[0].name}"
        )
