"""The loader: a pure function of seed and epoch, whatever the workers, ranks and skips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from zoo.cards import DatasetCard
from zoo.data.loading import Loader, as_channels
from zoo.errors import DataError, UserError
from zoo.recipe import Loading
from zoo.types import Batch, Boxes, Instances, Sample

BROKEN = "toy: 3: images/3.png: the file ends too early. Expected a PNG. Copy it again."


class OddError(Exception):
    """An exception that cannot be pickled as it is."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


@dataclass
class Toy:
    """Images of growing height whose pixels say which image and which row they are; every other one is annotated."""

    count: int = 10
    name: str = "toy"
    bad: Exception | None = None
    grow: int = 2

    @property
    def card(self) -> DatasetCard:
        return DatasetCard.model_validate(
            {
                "zoo": 1,
                "name": self.name,
                "summary": "Toy.",
                "reader": "toy",
                "licence": {"name": "CC0-1.0", "allows": []},
                "truths": {"nuclei": {"kind": "instances", "classes": ["a", "b"]}},
            }
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if self.bad is not None and index == 3:
            raise self.bad
        height, width = 20 + self.grow * index, 24
        rows = np.broadcast_to(np.arange(height, dtype=np.uint8)[:, None], (height, width))
        image = np.stack([np.full((height, width), index, np.uint8), rows, rows.T if height == width else rows])
        labels = np.zeros((height, width), np.int32)
        labels[2:6, 3:9] = 7
        labels[10:13, 20:24] = 9
        truth: dict[str, Any] = {"nuclei": Instances(labels, {7: 1, 9: 2})} if index % 2 else {}
        return Sample(str(index), self.name, np.ascontiguousarray(image), spacing=(0.5, 0.5), truth=truth)


class Maker:
    """Targets "ids" (a map, -1 where nothing is known), "boxes" (a list) and "count" (a number)."""

    def __call__(self, sample: Sample) -> dict[str, Any]:
        truth = sample.truth.get("nuclei")
        if not isinstance(truth, Instances):
            return {}
        ids = truth.map.astype(np.int64)
        return {"ids": ids, "boxes": np.zeros((len(np.unique(ids)), 4), np.float32), "count": np.array([ids.max()])}

    def blank(self, shape: tuple[int, ...]) -> dict[str, Any]:
        return {
            "ids": np.full(shape, -1, np.int64),
            "boxes": np.zeros((0, 4), np.float32),
            "count": np.array([-1]),
        }


def maker(_: DatasetCard) -> Maker:
    return Maker()


def loader(toys: Toy | list[Toy] | None = None, training: bool = True, **settings: Any) -> Loader:
    options = {
        key: settings.pop(key) for key in ("rank", "world", "channels", "mpp", "start_method") if key in settings
    }
    toys = toys if isinstance(toys, list) else [Toy() if toys is None else toys]
    values = {"datasets": [t.name for t in toys], "batch": 4, "workers": 0, "size": (16, 16), **settings}
    if not values["size"]:
        del values["size"]
    if "weights" in values:
        values["datasets"] = [{"name": t.name, "weight": w} for t, w in zip(toys, values.pop("weights"), strict=True)]
    return Loader(Loading.model_validate(values), maker, seed=11, training=training, datasets=toys, **options)


def digest(batches: Iterable[Batch]) -> list[str]:
    """One hash a batch: every tensor and where each item came from."""
    found = []
    for batch in batches:
        state = hashlib.sha256()
        tensors = [*batch.inputs.values(), *batch.has.values(), batch.valid]
        tensors += [t for v in batch.targets.values() for t in (v if isinstance(v, list) else [v])]
        for tensor in tensors:
            assert tensor is not None
            state.update(tensor.numpy().tobytes())
        state.update(repr(batch.meta).encode())
        found.append(state.hexdigest())
    return found


def images(batches: Iterable[Batch]) -> list[str]:
    return [meta.id for batch in batches for meta in batch.meta]


def test_batch_holds_what_the_contract_says() -> None:
    batch = next(loader(samples=20).epoch(0))
    assert batch.inputs["image"].shape == (4, 3, 16, 16)
    assert batch.inputs["image"].dtype == torch.uint8
    assert batch.valid is not None
    assert batch.valid.all()
    assert len(batch.meta) == len(batch) == 4
    for i, meta in enumerate(batch.meta):
        annotated = int(meta.id) % 2 == 1
        assert all(bool(batch.has[name][i]) == annotated for name in ("ids", "boxes", "count"))
        # the pixels of the item say from which row of which image they come
        image = batch.inputs["image"][i]
        assert (image[0] == int(meta.id)).all()
        assert image[1, 0, 0] == meta.geometry.offset[0]
        ids = batch.targets["ids"]
        assert isinstance(ids, torch.Tensor)
        if annotated:
            whole = Toy()[int(meta.id)].truth["nuclei"]
            assert isinstance(whole, Instances)
            y, x = (int(o) for o in meta.geometry.offset)
            assert (ids[i].numpy() == whole.map[y : y + 16, x : x + 16]).all()
        else:
            assert (ids[i] == -1).all()
    assert isinstance(batch.targets["boxes"], list)
    assert isinstance(batch.targets["count"], torch.Tensor)


@pytest.mark.parametrize("balance", ["none", "classes", "foreground"])
def test_same_seed_same_batches_other_epoch_other_batches(balance: str) -> None:
    first, second = (loader(samples=18, balance=balance) for _ in range(2))
    one = digest(first.epoch(1))
    assert digest(first.epoch(0)) != one
    assert digest(second.epoch(1)) == one  # not a function of what was loaded before


def test_workers_change_nothing() -> None:
    settings: dict[str, Any] = {"samples": 18, "augment": "light"}
    expected = [digest(loader(**settings).epoch(epoch)) for epoch in (0, 1)]
    for workers in (1, 3):
        built = loader(workers=workers, **settings)
        assert [digest(built.epoch(epoch)) for epoch in (0, 1)] == expected
        next(built.epoch(0))  # an abandoned epoch
        assert digest(built.epoch(1)) == expected[1]
        built.close()


def test_spawned_workers_change_nothing() -> None:
    from zoo.data.phantom.reader import PhantomReader  # a source that a fresh process can import

    card = Toy().card.model_copy(update={"truths": {}})
    reader = PhantomReader(card, None, PhantomReader.Arguments.model_validate({"size": 32, "train": 4}))
    from zoo.data.datasets import Dataset

    dataset = Dataset(card, tuple(reader.index()[:4]), reader)
    loading = Loading.model_validate({"datasets": ["toy"], "batch": 2, "workers": 1})
    plain = Loader(loading.model_copy(update={"workers": 0}), _blind, seed=1, training=True, datasets=[dataset])
    spawned = Loader(loading, _blind, seed=1, training=True, datasets=[dataset], start_method="spawn")
    assert digest(spawned.epoch(0)) == digest(plain.epoch(0))
    spawned.close()


def _blind(_: DatasetCard) -> Any:
    from zoo.data.collate import NoTargets

    return NoTargets()


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_equals_dropping(workers: int) -> None:
    built = loader(samples=22, workers=workers, augment="light")
    whole = digest(built.epoch(2))
    assert len(whole) == len(built) == 5
    for skip in (1, 4, 5):
        assert digest(built.epoch(2, skip)) == whole[skip:]
    built.close()


def test_skipped_batches_are_not_read() -> None:
    class Counting(Toy):
        def __getitem__(self, index: int) -> Sample:
            read.append(index)
            return super().__getitem__(index)

    read: list[int] = []
    list(loader(Counting(), samples=20, cache="none").epoch(0, skip=4))
    assert len(read) == 4


def test_cached_images_are_read_once() -> None:
    class Counting(Toy):
        def __getitem__(self, index: int) -> Sample:
            read.append(index)
            return super().__getitem__(index)

    read: list[int] = []
    built = loader(Counting(), samples=40)
    assert digest(built.epoch(0)) == digest(loader(samples=40, cache="none").epoch(0))
    assert sorted(read) == list(range(10))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_take_slices_of_the_same_global_batch(world: int) -> None:
    whole = list(loader(samples=21, augment="light", batch=5).epoch(1))
    parts = [list(loader(samples=21, augment="light", batch=5, rank=r, world=world).epoch(1)) for r in range(world)]
    for number, batch in enumerate(whole):
        pieces = [part[number] for part in parts]
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
        assert torch.equal(torch.cat([p.inputs["image"] for p in pieces]), batch.inputs["image"])
        assert [m for p in pieces for m in p.meta] == batch.meta


def test_validation_visits_every_image_once_on_any_number_of_ranks() -> None:
    for world in (1, 2, 3):
        found = [
            name
            for rank in range(world)
            for name in images(loader(training=False, size=None, rank=rank, world=world).epoch(rank))
        ]
        assert sorted(found, key=int) == [str(i) for i in range(10)]
    assert images(loader(training=False, size=None).epoch(5)) == [str(i) for i in range(10)]


def test_whole_images_of_a_training_batch_are_padded_and_masked() -> None:
    batch = next(loader(size=None, batch=6).epoch(0))
    highest = max(meta.geometry.shape[0] for meta in batch.meta)
    assert batch.inputs["image"].shape == (6, 3, highest, 24)
    assert batch.valid is not None
    ids = batch.targets["ids"]
    assert isinstance(ids, torch.Tensor)
    for i, meta in enumerate(batch.meta):
        height, number = meta.geometry.shape[0], int(meta.id)
        assert batch.valid[i, :height].all()
        assert not batch.valid[i, height:].any()
        assert (ids[i, height:] == -1).all()
        assert (ids[i, :height] >= 0).all() == (number % 2 == 1)
        assert (batch.inputs["image"][i, 0] == number).all()  # padded with the median of the border, here a constant


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_images_of_a_validation_share_a_batch_only_with_their_likes(workers: int) -> None:
    toys = [Toy(count=2, name="small"), Toy(count=3, grow=0, name="even"), Toy(count=1, name="one")]
    found = list(loader(toys, training=False, size=None, batch=6, workers=workers).epoch(0))
    assert [[f"{m.dataset}{m.id}" for m in b.meta] for b in found] == [
        ["small0", "even0", "even1", "even2", "one0"],
        ["small1"],
    ]
    assert all(b.valid is not None and b.valid.all() for b in found)


def test_small_images_are_padded_to_the_patch() -> None:
    batch = next(loader(Toy(grow=0), size=(32, 32)).epoch(0))
    assert batch.inputs["image"].shape[-2:] == (32, 32)
    assert batch.valid is not None
    assert (batch.valid.sum((1, 2)) == 20 * 24).all()


def test_resampling_is_told_by_the_geometry() -> None:
    small, large = list(loader(training=False, size=None, mpp=1.0, batch=2).epoch(0))[:2]
    assert small.inputs["image"].shape[-2:] == (10, 12)
    assert large.inputs["image"].shape[-2:] == (11, 12)
    assert [b.meta[0].geometry.scale for b in (small, large)] == [(0.5, 0.5), (0.5, 0.5)]
    assert [b.meta[0].geometry.shape for b in (small, large)] == [(20, 24), (22, 24)]
    assert large.meta[0].spacing == (1.0, 1.0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [DataError(BROKEN), ValueError("first line\nsecond line"), OddError("one", "two")])
def test_errors_of_workers_come_back_in_their_own_words(workers: int, error: Exception) -> None:
    built = loader(Toy(bad=error), workers=workers, samples=40)
    expected = type(error) if not isinstance(error, OddError) else RuntimeError
    with pytest.raises(expected) as caught:
        list(built.epoch(0))
    assert str(caught.value) == str(error)
    built.close()


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (the global state is what is watched)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for workers in (0, 1):
        built = loader(workers=workers, samples=8, augment="light")
        list(built.epoch(0))
        built.close()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_balance_by_dataset_weight() -> None:
    toys = [Toy(10, "many"), Toy(3, "few")]
    batches = list(loader(toys, balance="datasets", weights=[1.0, 3.0], samples=40).epoch(0))
    names = [meta.dataset for batch in batches for meta in batch.meta]
    assert names.count("many") == 10
    assert names.count("few") == 30


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 11}, "batch: 11 samples a step, but an epoch has 10"),
        ({"batch": 2, "world": 3}, "cannot be shared by 3 devices"),
        ({"size": (8, 8, 8)}, "has 3 numbers"),
        ({"augment": "lite"}, "Did you mean light?"),
    ],
)
def test_what_cannot_be_loaded_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        list(loader(**settings).epoch(0))


def test_empty_split_and_unused_weights_are_said() -> None:
    with pytest.raises(UserError, match="holds no image"):
        loader(Toy(0))
    with pytest.raises(UserError, match="balance"):
        loader([Toy(), Toy(name="other")], weights=[1.0, 2.0])


def test_channels_by_name_and_as_rgb() -> None:
    data = np.arange(2 * 4 * 4, dtype=np.uint16).reshape(2, 4, 4) * 100
    sample = Sample("a", "b", data, channels=("dapi", "cd3"))
    assert (as_channels(sample, ("cd3",)).image == data[1:]).all()
    grey = Sample("a", "b", data[:1], channels=("grey",))
    rgb = as_channels(grey, ("red", "green", "blue"))
    assert rgb.image.shape == (3, 4, 4)
    assert rgb.image.dtype == np.uint8
    with pytest.raises(DataError, match="no channel cd8"):
        as_channels(sample, ("cd8",))


def test_sixteen_bits_become_unit_floats() -> None:
    class Deep(Toy):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return sample.with_(image=sample.image.astype(np.uint16) * 257, channels=("a", "b", "c"))

    image = next(loader(Deep(), training=False, size=None, batch=1).epoch(0)).inputs["image"]
    assert image.dtype == torch.float32
    assert torch.allclose(image[0, 1, :, 0], torch.arange(20) / 255)


def test_boxes_follow_the_patch() -> None:
    class Boxed(Toy):
        def __getitem__(self, index: int) -> Sample:
            xyxy = np.array([[2, 3, 6, 9], [20, 1, 24, 5]], np.float32)
            return super().__getitem__(index).with_(truth={"cells": Boxes(xyxy, np.array([1, 2]))})

    class BoxMaker(Maker):
        def __call__(self, sample: Sample) -> dict[str, Any]:
            truth = sample.truth["cells"]
            assert isinstance(truth, Boxes)
            return {"boxes": truth.xyxy}

    loading = Loading.model_validate({"datasets": ["toy"], "batch": 4, "size": (16, 16), "workers": 0, "samples": 40})
    built = Loader(loading, lambda _: BoxMaker(), seed=2, training=True, datasets=[Boxed()])
    for batch in built.epoch(0):
        boxes = batch.targets["boxes"]
        assert isinstance(boxes, list)
        for found, meta in zip(boxes, batch.meta, strict=True):
            y, x = meta.geometry.offset
            expected = np.array([[2, 3, 6, 9], [20, 1, 24, 5]], np.float32) - np.array([x, y, x, y])
            clipped = expected.clip(0, 16)
            areas = [float(np.prod(b[2:] - b[:2])) for b in (*clipped, *expected)]
            keep = [areas[i] >= 0.25 * areas[i + 2] for i in range(2)]
            assert np.array_equal(found.numpy(), clipped[keep])


@pytest.mark.parametrize("balance", ["classes", "foreground"])
def test_focused_patches_hold_what_they_were_drawn_for(balance: str) -> None:
    built = loader(Toy(grow=6), samples=80, balance=balance, size=(8, 8))
    drawn = [draw for batch in built.draws(0) for draw in batch]
    found = [(batch.targets["ids"][i], meta) for batch in built.epoch(0) for i, meta in enumerate(batch.meta)]
    plain = 0
    for draw, (ids, meta) in zip(drawn, found, strict=True):
        assert meta.id == str(draw.image)
        if draw.focus is None or int(meta.id) % 2 == 0:
            plain += 1
        elif balance == "classes":
            assert (ids == {1: 7, 2: 9}[draw.focus[1]]).any()
        else:
            assert (ids > 0).any()
    assert plain < len(drawn)
    if balance == "classes":
        assert plain == 0  # images without any class are never drawn


# --- patches that come again ------------------------------------------------------------------------------------------

AGAIN: dict[str, Any] = {"samples": 12, "patch_epochs": 2, "augment": ["flips", {"name": "intensity"}]}


class Counting(Maker):
    made = 0

    def __call__(self, sample: Sample) -> dict[str, Any]:
        Counting.made += 1
        return super().__call__(sample)


def patches(found: Iterable[Batch]) -> dict[tuple[str, tuple[float, ...]], tuple[Any, Any]]:
    """Return (image, where it was cut) -> targets and pixels of every patch of an epoch."""
    return {
        (meta.id, meta.geometry.offset): (batch.targets["ids"][i], batch.inputs["image"][i])
        for batch in found
        for i, meta in enumerate(batch.meta)
    }


def test_patches_come_again_with_their_targets_under_new_light() -> None:
    made = loader(**AGAIN)
    made._work.makers = [Counting()]
    Counting.made = 0
    epochs = [list(made.epoch(e)) for e in range(6)]
    assert Counting.made == 24  # two epochs of twelve, whatever comes after
    first, again, second = patches(epochs[0]), patches(epochs[2]), patches(epochs[1])
    assert set(first) == set(again) != set(second)
    for place, (targets, pixels) in first.items():
        assert torch.equal(targets, again[place][0])
        assert not torch.equal(pixels, again[place][1])
    order = [[meta.geometry.offset for b in epochs[e] for meta in b.meta] for e in (0, 2, 4)]
    assert order[0] != order[1] != order[2]


def test_patches_that_come_again_keep_the_mixture_of_each_batch() -> None:
    toys = [Toy(name="one", count=5), Toy(name="two", count=4)]
    made = loader(toys, **AGAIN, balance="batches", weights=[2.0, 1.0])
    shares = [[[draw.dataset for draw in batch] for batch in made.draws(e)] for e in (0, 2, 4)]
    assert shares[0] == shares[1] == shares[2]
    assert all(0 < sum(batch) < 3 for batch in shares[0])
    pairs = [[(d.dataset, d.position) for batch in made.draws(e) for d in batch] for e in (0, 2, 4)]
    assert set(pairs[0]) == set(pairs[1])
    assert pairs[0] != pairs[1] != pairs[2]


def test_patches_that_come_again_are_a_function_of_the_seed() -> None:
    one = loader(**AGAIN)
    everything = [digest(one.epoch(e)) for e in range(4)]
    assert digest(loader(**AGAIN).epoch(3)) == everything[3]  # as after a resume
    assert digest(loader(**AGAIN, workers=2).epoch(3)) == everything[3]
    assert digest(loader(**AGAIN).epoch(3, skip=2)) == everything[3][2:]


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.25, 5), (0.9, 18), (1.0, 20)])
def test_a_share_of_patches_holds_something(share: float, most: int) -> None:
    made = loader(samples=20, balance="foreground", foreground=share)
    drawn = [draw for batch in made.draws(0) for draw in batch]
    assert sum(draw.focus is not None for draw in drawn) == most
