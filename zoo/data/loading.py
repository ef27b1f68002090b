"""Samples become batches: a pure function of (seed, epoch, index), whatever the number of workers and devices.

The order of an epoch is planned in the main process (`zoo.data.sampling`); a worker gets the positions of one batch and
gives back the whole `Batch`. Nothing else crosses the border: no random state, no counter.
"""

from __future__ import annotations

import functools
import itertools
import logging
import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data as torch_data

from zoo.cards import DatasetCard
from zoo.data.cache import SharedCache
from zoo.data.collate import Item, Targets, collate, numbers
from zoo.data.crop import centre_start, crop, random_start, take_valid, with_valid
from zoo.data.datasets import Dataset, open_dataset
from zoo.data.resample import resample
from zoo.data.sampling import Draw, Plan, contents, generator, places
from zoo.data.stretch import limits, stretch
from zoo.errors import DataError, UserError
from zoo.recipe import DataSource, Loading
from zoo.types import Batch, Geometry, Meta, Sample

_log = logging.getLogger(__name__)
RGB = ("red", "green", "blue")


class Source(Protocol):
    """What the loader needs of a dataset (`zoo.data.datasets.Dataset`)."""

    @property
    def card(self) -> DatasetCard: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def open_source(source: DataSource, training: bool) -> Dataset:
    """Return the dataset that a recipe's entry means. Raises `UserError`."""
    return open_dataset(
        source.name,
        split=source.split,
        fold=source.fold,
        folds=source.folds,
        arguments=source.arguments,
        limit=source.limit,
        part="train" if training else "validate",
    )


def as_channels(sample: Sample, channels: Sequence[str] | None) -> Sample:
    """Return a sample with the channels that a model looks at.

    Channels are taken by name; for a model of red, green and blue anything else goes through `zoo.io.images.to_rgb8`.
    Raises `DataError` where a channel is missing.
    """
    wanted = tuple(channels or sample.channels)
    if wanted == RGB and sample.axes == "CYX" and (sample.channels != RGB or sample.image.dtype != np.uint8):
        from zoo.io.images import to_rgb8

        picture, _ = to_rgb8(np.moveaxis(sample.image, 0, -1))
        return sample.with_(image=np.ascontiguousarray(np.moveaxis(picture, -1, 0)), channels=RGB)
    if wanted == sample.channels:
        return sample
    missing = [name for name in wanted if name not in sample.channels]
    if missing:
        have = ", ".join(sample.channels)
        raise DataError(f"{sample.dataset}: {sample.id}: no channel {missing[0]}. It has {have}. Take another dataset.")
    picked = [sample.channels.index(name) for name in wanted]
    return sample.with_(image=sample.image[picked], channels=wanted)


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker, as it comes back to the caller."""

    error: BaseException
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        trace = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception of a shape that cannot travel: its words can
            return cls(RuntimeError(str(error)), trace)
        return cls(error, trace)

    def throw(self) -> None:
        if not isinstance(self.error, DataError | UserError):
            self.error.add_note(f"In a loader's worker:\n{self.trace}")
        raise self.error


class _Work(torch_data.Dataset[Any]):
    """What runs in a worker: the positions of one batch in, the batch out (or several, see `Loader`). Picklable."""

    def __init__(
        self, loading: Loading, sources: Sequence[Source], makers: Sequence[Targets], *, seed: int, training: bool
    ) -> None:
        self.sources, self.makers, self.seed, self.training = list(sources), list(makers), seed, training
        self.size, self.mpp = loading.size, loading.mpp
        self.whole = not training and loading.size is None
        self.channels: tuple[str, ...] | None = None
        self.stretch: tuple[float, float, bool] | None = None
        self.light: Callable[[Sample, int], Sample] | None = None
        patches = (
            loading.patch_epochs * (loading.samples or sum(len(s) for s in sources)) if loading.patch_epochs else 0
        )
        self.samples = patches // loading.patch_epochs if loading.patch_epochs else 0
        self.patches = SharedCache(patches) if training and patches else None
        self.augment: Callable[..., Sample] | None = None
        self.prepare: Callable[[Sample], Sample] | None = None
        self.starts = list(itertools.accumulate((len(s) for s in sources), initial=0))
        self.cache = SharedCache(self.starts[-1]) if loading.cache == "memory" else None

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, draws: Sequence[Draw]) -> list[Batch] | _Failure:
        try:
            items = [self.item(draw) for draw in draws]
            return [collate(part) for part in (self._alike(items) if self.whole else [items])]
        except Exception as error:
            return _Failure.of(error)

    def decoded(self, dataset: int, image: int) -> tuple[Sample, tuple[int, ...]]:
        """Return a sample at the model's resolution and channels, and the shape of its source."""
        place = self.starts[dataset] + image
        found = self.cache.get(place) if self.cache else None
        if found is None:
            source = self.sources[dataset][image]
            sample = as_channels(source, self.channels)
            if self.prepare is not None:
                sample = self.prepare(sample)
            sample = sample if self.mpp is None else resample(sample, self.mpp)
            found = (sample if self.stretch is None else stretch(sample, *self.stretch), source.shape)
            if self.cache:
                self.cache.put(place, found)
        sample, shape = found
        return sample, shape

    def item(self, draw: Draw) -> Item:
        """Return one item of a batch: a function of (seed, epoch, position)."""
        if self.patches is None:
            return self._item(*self._patch(draw), draw.dataset)
        place = draw.epoch * self.samples + draw.position
        found = self.patches.get(place)
        if found is None:
            sample, valid, meta, targets = self._patch(draw)
            found = (sample.with_(truth={}), valid, meta, targets)  # what comes after needs no truth
            self.patches.put(place, found)
        sample, valid, meta, targets = found
        if self.light is not None and draw.use is not None:
            sample = self.light(sample, int(generator(self.seed, 7, draw.use, draw.position).integers(2**31)))
        return self._item(sample, valid, meta, targets, draw.dataset)

    def _item(
        self,
        sample: Sample,
        valid: NDArray[np.bool_],
        meta: Meta,
        targets: dict[str, NDArray[Any]],
        dataset: int = 0,
    ) -> Item:
        image = numbers(sample.image)
        return Item(image, valid, targets, self.makers[dataset], meta, None if self.stretch is None else limits(image))

    def _patch(self, draw: Draw) -> tuple[Sample, NDArray[np.bool_], Meta, dict[str, NDArray[Any]]]:
        """Return a patch with where it is valid, where it comes from, and its targets."""
        whole, source_shape = self.decoded(draw.dataset, draw.image)
        rng = generator(self.seed, 4, draw.epoch, draw.position)
        sample = with_valid(whole)
        start: tuple[int, ...] = (0,) * len(sample.shape)
        if self.size is not None:
            size = self._size(sample)
            start = self._start(whole, size, draw, rng)
            sample = crop(sample, start, size)
        if self.augment is not None:
            sample = self.augment(sample, int(rng.integers(2**31)), functools.partial(self._partner, draw.dataset))
        sample, valid = take_valid(sample)
        scale = tuple(new / old for new, old in zip(whole.shape, source_shape, strict=True))
        geometry = Geometry(source_shape, scale, tuple(map(float, start)))
        meta = Meta(sample.id, sample.dataset, geometry, sample.group, sample.center, sample.spacing)
        return sample, valid, meta, self.makers[draw.dataset](sample)

    def _partner(self, dataset: int, rng: np.random.Generator) -> Sample:
        """Return another sample of a dataset, cut as every one is, for augmentations that mix several."""
        whole, _ = self.decoded(dataset, int(rng.integers(len(self.sources[dataset]))))
        sample = with_valid(whole)
        if self.size is None:
            return sample
        size = self._size(sample)
        return crop(sample, random_start(whole.shape, size, rng), size)

    @staticmethod
    def _alike(items: Sequence[Item]) -> list[list[Item]]:
        """Return items by shape, so that what a network says of a whole image knows no padding and no neighbour."""
        found: dict[tuple[int, ...], list[Item]] = {}
        for item in items:
            found.setdefault(item.shape, []).append(item)
        return list(found.values())

    def _size(self, sample: Sample) -> tuple[int, ...]:
        assert self.size is not None
        if len(self.size) != len(sample.shape):
            raise UserError(
                f"data: size: {self.size} has {len(self.size)} numbers, but {sample.dataset} has images of "
                f"{len(sample.shape)} axes ({sample.axes}). Write one number an axis."
            )
        return self.size

    def _start(self, sample: Sample, size: Sequence[int], draw: Draw, rng: np.random.Generator) -> tuple[int, ...]:
        if not self.training:
            return centre_start(sample.shape, size)
        pixel = None
        if draw.focus is not None and sample.shape != tuple(size):
            found = places(sample, draw.focus)
            if len(found):
                pixel = np.unravel_index(int(found[rng.integers(len(found))]), sample.shape)
        return random_start(sample.shape, size, rng, None if pixel is None else [int(p) for p in pixel])


def _same(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which still needs this batch
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class Loader:
    """Batches of one stream of a recipe.

    The sequence of global batches is a pure function of (seed, epoch): batch size and order do not depend on workers,
    devices or what was loaded before. Rank r of w gets items [n * r // w, n * (r + 1) // w) of each global batch of n
    items. Crop and augmentation of an item are a function of (seed, epoch, position in the epoch).

    Training: `samples` items an epoch (default: one an image), cropped at random places and augmented; the last,
    incomplete batch is dropped. Otherwise: the images in their order, each once, cropped in the middle where a `size`
    is given, never augmented; the last batch may be smaller, and a rank whose slice of it is empty gets one batch less.
    Whole images of different sizes never share a batch: they come as several smaller ones, and none is padded.

    `make_targets` gives each dataset's target maker. `channels`: the channels that the model looks at (None: as they
    come). `mpp`: um per pixel that the model wants, for images of known spacing (None: `loading.mpp`). `datasets` are
    opened already where they are given. `stretch`: the percentiles that the model scales by; training images are then
    stretched as a whole (`zoo.data.stretch`), and batches carry `range` beside `image`. `prepare` (picklable)
    changes each whole image before anything else, in training and validation alike. Raises `UserError` where the
    recipe's entry cannot be loaded.
    """

    def __init__(
        self,
        loading: Loading,
        make_targets: Callable[[DatasetCard], Targets],
        *,
        seed: int,
        training: bool,
        rank: int = 0,
        world: int = 1,
        channels: tuple[str, ...] | None = None,
        mpp: float | tuple[float, ...] | None = None,
        datasets: Sequence[Source] | None = None,
        stretch: tuple[float, float, bool] | None = None,
        start_method: str | None = None,
        prepare: Callable[[Sample], Sample] | None = None,
    ) -> None:
        if mpp is not None:
            loading = loading.model_copy(update={"mpp": mpp})
        self.loading, self.training, self.rank, self.world = loading, training, rank, world
        self.datasets = list(datasets) if datasets is not None else [open_source(s, training) for s in loading.datasets]
        makers = [make_targets(dataset.card) for dataset in self.datasets]
        self._work = _Work(loading, self.datasets, makers, seed=seed, training=training)
        self._work.channels, self._work.prepare = channels, prepare
        self._work.stretch = stretch if training else None
        sizes = [len(dataset) for dataset in self.datasets]
        self.samples = loading.samples or sum(sizes)
        if not training:
            self.samples = min(self.samples, sum(sizes))
        self._check(sizes)
        if training and loading.augment_on == "workers" and loading.augment not in ("none", ()):
            from zoo.data.augment import Augment

            augment = Augment(loading.augment)
            augment.check(channels or self.datasets[0].card.channels, self.datasets[0].card.axes)
            self._work.augment = augment
            if loading.patch_epochs is not None and not loading.fixed:
                self._work.augment, self._work.light = augment.split()
        self._seed, self._sizes = seed, sizes
        self._plan: Plan | None = None
        self._queue: list[list[Draw]] = []
        self._torch_loader: torch_data.DataLoader[Any] | None = None
        self._start_method = start_method

    def _check(self, sizes: Sequence[int]) -> None:
        loading = self.loading
        for dataset, size in zip(self.datasets, sizes, strict=True):
            if not size:
                raise UserError(
                    f"{dataset.card.name}: the split holds no image. Expected at least one. Choose another."
                )
        if self.training and self.samples < loading.batch:
            raise UserError(
                f"data.train.batch: {loading.batch} samples a step, but an epoch has {self.samples}. "
                f"Expected a batch of at most {self.samples}. Lower `batch` or set `samples`."
            )
        if self.training and loading.batch < self.world:
            raise UserError(
                f"data.train.batch: {loading.batch} samples a step cannot be shared by {self.world} devices. "
                "Expected at least one a device. Raise `batch`."
            )
        weighed = loading.balance in ("datasets", "batches")
        if self.training and not weighed and len({d.weight for d in loading.datasets}) > 1:
            raise UserError(
                f"data.train.balance: datasets have weights, but balance is {loading.balance}. "
                "Weights count with `balance: datasets` or `batches`. Set it, or remove the weights."
            )

    def __len__(self) -> int:
        """Return the global batches of an epoch."""
        batch = self.loading.batch
        return self.samples // batch if self.training else -(-self.samples // batch)

    def draws(self, epoch: int) -> list[list[Draw]]:
        """Return the global batches of an epoch, as what is drawn for each."""
        if self.training:
            drawn = self._drawn(epoch)
        else:
            pairs = [(d, i) for d, size in enumerate(self._sizes) for i in range(size)]
            drawn = [Draw(0, position, *pair) for position, pair in enumerate(pairs[: self.samples])]
        batch = self.loading.batch
        return [drawn[i * batch : (i + 1) * batch] for i in range(len(self))]

    def _drawn(self, epoch: int) -> list[Draw]:
        """Return an epoch's draws: new ones, or those of an earlier epoch whose patches are used again, shuffled."""
        again = self.loading.patch_epochs
        if again is None:
            return self._planned().epoch(epoch)
        drawn = self._planned().epoch(epoch % again)
        order: Sequence[int] = range(len(drawn))
        if epoch >= again:
            order = generator(self._seed, 6, epoch).permutation(len(drawn)).tolist()
        if self.loading.balance == "batches":  # each place stays with its dataset
            rows = [iter([i for i in order if drawn[i].dataset == d]) for d in range(len(self._sizes))]
            order = [next(rows[draw.dataset]) for draw in drawn]
        return [replace(drawn[i], use=epoch) for i in order]

    def _planned(self) -> Plan:
        if self._plan is None:
            found: list[frozenset[tuple[str, int]]] = []
            if self.loading.balance == "classes":
                _log.info("balance: classes: reading every training image once")
                for dataset, size in enumerate(self._sizes):
                    found += [contents(self._work.decoded(dataset, image)[0]) for image in range(size)]
            self._plan = Plan(
                self._sizes,
                self.samples,
                seed=self._seed,
                balance=self.loading.balance,
                weights=[source.weight for source in self.loading.datasets],
                contents=found,
                foreground=self.loading.foreground,
            )
        return self._plan

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from global batch number `skip` on; skipped ones are not computed.

        An error in a worker is raised here as it was raised there: the same class, the same words.
        """
        slices = []
        for drawn in self.draws(epoch)[skip:]:
            low, high = len(drawn) * self.rank // self.world, len(drawn) * (self.rank + 1) // self.world
            if high > low:
                slices.append(drawn[low:high])
        if not self.loading.workers:
            found: Iterator[Any] = map(self._work.__getitem__, slices)
        else:
            self._queue[:] = slices
            with warnings.catch_warnings():  # how many workers is the recipe's affair, not torch's
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                found = iter(self._torch())
        for batches in found:
            if isinstance(batches, _Failure):
                batches.throw()
            yield from batches

    def _torch(self) -> torch_data.DataLoader[Any]:
        """Return torch's loader, made once: its workers stay from epoch to epoch."""
        if self._torch_loader is None:
            forks = "fork" in multiprocessing.get_all_start_methods()
            self._torch_loader = torch_data.DataLoader(
                self._work,
                batch_size=None,
                sampler=self._queue,
                num_workers=self.loading.workers,
                collate_fn=_same,
                worker_init_fn=_start_worker,
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
                multiprocessing_context=self._start_method or ("fork" if forks else None),
                generator=torch.Generator(),  # torch's own random state stays untouched
            )
        return self._torch_loader

    def close(self) -> None:
        """End the worker processes; a later epoch starts new ones."""
        self._torch_loader = None
