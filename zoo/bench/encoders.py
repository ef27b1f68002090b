"""Encoders compared: what their frozen features know (k-NN, linear probe, robustness index), and what the same decoder
makes of each with the same budget.

Features are one vector an image: the mean of its tiles' embeddings, in the encoder's own resolution, constants and
pooling. All encoders see the same images, and intervals draw the same groups, so that they can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.bench import analysis, report
from zoo.bench.open import open_named
from zoo.bench.results import Case, Failure, Results, Row
from zoo.bench.statistics import Mean, pooled_by_group
from zoo.bench.work import Say
from zoo.data.datasets import Dataset
from zoo.encoders import pretrained
from zoo.errors import DataError, UserError
from zoo.inference.source import Mpp
from zoo.metrics import features as measures
from zoo.metrics.labels import Named, label_accuracy
from zoo.metrics.pooled import Pooled
from zoo.types import Label, Sample, Semantic

RESAMPLES = 1000
NEIGHBOURS = 11
"""Neighbours of the k-NN probe and of the robustness index: PathoROB's for Camelyon."""
INDEX = Pooled(lambda counts: counts, lambda records: _share(np.sum(records, axis=0)))
"""The robustness index from what each image adds to it: its neighbours (SO, OS)."""
INTRO = (
    "What frozen features know: one vector an image, the mean of its tiles' embeddings. The probes learn from another "
    "split of the same dataset; of an image's class and centre, the robustness index asks which its neighbours share."
)


@dataclass(frozen=True)
class Chosen:
    """An encoder and its weights, as a user writes them: NAME or NAME:WEIGHTS."""

    name: str
    weights: str

    @property
    def label(self) -> str:
        """Return NAME:WEIGHTS."""
        return f"{self.name}:{self.weights}"


def named(text: str) -> Chosen:
    """Return what NAME or NAME:WEIGHTS means; alone it means "published" or "imagenet". Raises `UserError`."""
    from zoo.encoders import listing

    name, colon, weights = text.partition(":")
    if name in ("smp", "timm") and colon:  # smp:resnet34
        plain, _, weights = weights.partition(":")
        name = f"{name}:{plain}"
    info = listing.info(name)
    return Chosen(info.name, weights or ("published" if info.card else "imagenet"))


@dataclass(frozen=True)
class Features:
    """Features (N, D) of a dataset's images with what is known of each; `labels` are class names."""

    x: NDArray[np.float32]
    ids: list[str]
    labels: NDArray[Any]
    groups: NDArray[Any]
    centres: NDArray[Any]


# --- pictures -> features ---------------------------------------------------------------------------------------------


def label_of(sample: Sample, card: Any) -> str | None:
    """Return the class of an image: its label, or the class that most annotated pixels of a class map have."""
    for key, truth in sample.truth.items():
        if isinstance(truth, Label):
            return str(card.truths[key].classes[truth.value])
    for key, truth in sample.truth.items():
        if isinstance(truth, Semantic) and not truth.multilabel:
            seen = truth.map if truth.ignore is None else truth.map[truth.map != truth.ignore]
            if seen.size:
                return str(card.truths[key].classes[int(np.bincount(np.ravel(seen)).argmax())])
    return None


def collect(
    embedder: Any, dataset: Dataset, limit: int | None, mpp: Mpp, encoder: str, failures: list[Failure]
) -> Features:
    """Return the features of a dataset's labelled images; what failed is added to `failures`. Raises `UserError` where
    no image has a label."""
    rows: list[NDArray[np.float32]] = []
    told: list[tuple[str, str, str, str]] = []
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        try:
            sample = dataset[index]
            label = label_of(sample, dataset.card)
            if label is None:
                continue
            rows.append(vector(embedder, sample, mpp))
        except DataError as error:
            failures.append(Failure(encoder, dataset.card.name, dataset.index[index].id, str(error)))
            continue
        told.append((sample.id, label, sample.group or sample.id, sample.center or ""))
    if not rows:
        raise UserError(
            f"bench: --encoders: {dataset.card.name} has no image with one class. Expected a dataset with labels or "
            "class maps. Choose another, or compare decoders with --recipe."
        )
    ids, labels, groups, centres = (np.array(column, object) for column in zip(*told, strict=True))
    return Features(np.stack(rows), list(ids), labels, groups, centres)


def vector(embedder: Any, sample: Sample, mpp: Mpp) -> NDArray[np.float32]:
    """Return the mean of the embeddings of an image's tiles."""
    from zoo.data.loading import as_channels
    from zoo.inference.embed import spec_of, tiles_of
    from zoo.inference.source import of_array, scale_of

    spec = spec_of(embedder.encoder)
    picture = np.moveaxis(as_channels(sample, spec.channels).image, 0, -1)
    spacing = sample.spacing
    known = float(np.mean(spacing)) if spacing else None
    where = f"{sample.dataset}: {sample.id}"
    scale = scale_of(spec, known, mpp, where)
    source = of_array(picture, spec, known)
    source.name = where
    tiles = [pixels for pixels, _ in tiles_of(source, scale, embedder.how, embedder.encoder.patch or 1)]
    found = np.concatenate([embedder.features(np.stack(tiles[i : i + 32])) for i in range(0, len(tiles), 32)])
    return np.asarray(found.mean(0), np.float32)


# --- features -> numbers ----------------------------------------------------------------------------------------------


def nearest(train: Features, test: Features, k: int = NEIGHBOURS) -> NDArray[Any]:
    """Return the class of the majority of the `k` nearest training images by the angle; ties: the first name."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (test.x, train.x))
    order = np.argsort(-(a @ b.T), axis=1, kind="stable")[:, : min(k, len(b))]
    kinds = np.unique(train.labels.astype(str))
    votes = np.stack([(train.labels[order] == kind).sum(1) for kind in kinds], 1)
    return np.asarray(kinds[votes.argmax(1)], object)


def linear(train: Features, test: Features) -> NDArray[Any]:
    """Return the classes that a logistic regression on standardised features names (L2, C = 1, balanced classes)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000))
    model.fit(train.x, train.labels.astype(str))
    return np.asarray(model.predict(test.x), object)


def robustness(test: Features, k: int = NEIGHBOURS) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return PathoROB's robustness index at `k`, and of each image its neighbours that share the class alone (SO) and
    the centre alone (OS)."""
    b, c, s = (np.unique(v.astype(str), return_inverse=True)[1] for v in (test.labels, test.centres, test.groups))
    found = measures.neighbours(test.x, b, c, s, k)
    same_b, same_c = found.biological[:, :k], found.centre[:, :k]
    so, os_ = (same_b & ~same_c).sum(1), (~same_b & same_c).sum(1)
    return measures.robustness_index(test.x, b, c, s, k), so.astype(np.float64), os_.astype(np.float64)


def _share(counts: NDArray[np.float64]) -> float:
    return float(counts[0] / counts.sum()) if counts.sum() else float("nan")


def rows_of(label: str, dataset: Dataset, train: Features | None, test: Features, seed: int = 0) -> list[Row]:
    """Return an encoder's rows on one dataset: one of each probe and of the robustness index, where they can be had."""
    probes = {"linear probe": linear, f"k-NN (k = {NEIGHBOURS})": nearest}
    rows = []
    if train is not None and len(set(train.labels)) > 1:
        rows = [_probed(label, dataset, output, probe(train, test), test, seed) for output, probe in probes.items()]
    if len(set(test.centres) - {""}) > 1 and len(set(test.labels)) > 1:
        rows.append(_robust(label, dataset, test, seed))
    return rows


def _row(label: str, dataset: Dataset, output: str, cases: Sequence[Case], means: dict[str, Mean]) -> Row:
    notes = ("random weights, not pretrained",) if label.endswith(":none") else ()
    place = (dataset.card.name, dataset.split, output, "class", "labels")
    return Row(label, *place, metrics=tuple(means), cases=tuple(cases), means=means, notes=notes)


def _probed(label: str, dataset: Dataset, output: str, guess: NDArray[Any], test: Features, seed: int) -> Row:
    cases = []
    for i, (case, said) in enumerate(zip(_cases(test), map(str, guess), strict=True)):
        one = Named(str(test.labels[i]), said)
        scores, records = {"label_accuracy": label_accuracy(one)}, {"balanced_accuracy": one}
        cases.append(replace(case, scores=scores, records=records, words=case.words | {"found": said}))
    means = analysis.means_of(("balanced_accuracy", "label_accuracy"), cases, seed)
    return _row(label, dataset, output, cases, means)


def _robust(label: str, dataset: Dataset, test: Features, seed: int) -> Row:
    """Return the robustness index, and of each image the share among its own neighbours that tell."""
    value, so, os_ = robustness(test)

    counts = np.stack([so, os_], 1)
    with np.errstate(invalid="ignore"):
        shares = so / (so + os_)  # nan where no neighbour tells
    cases = [replace(c, scores={"robustness_index": float(s)}) for c, s in zip(_cases(test), shares, strict=True)]
    mean = pooled_by_group(INDEX, list(counts), [case.group for case in cases], resamples=RESAMPLES, seed=seed)
    means = {"robustness_index": replace(mean, value=value)}
    return _row(label, dataset, f"neighbours (k = {NEIGHBOURS})", cases, means)


def _cases(test: Features) -> Iterator[Case]:
    for i, image in enumerate(test.ids):
        yield Case(
            image, str(test.groups[i]), {}, center=str(test.centres[i]) or None, words={"class": str(test.labels[i])}
        )


# --- the whole --------------------------------------------------------------------------------------------------------


def bench_encoders(
    encoders: Sequence[str],
    datasets: Sequence[str],
    out: Path | str,
    *,
    train_split: str = "train",
    limit: int | None = None,
    mpp: Mpp = None,
    device: str = "cpu",
    seed: int = 0,
    say: Say | None = None,
) -> Results:
    """Probe encoders on datasets and write the files of a benchmark (`zoo.bench.run.bench`) into `out`.

    `encoders`: NAME or NAME:WEIGHTS. `datasets`: NAME or NAME:SPLIT to be judged on; the probes learn from
    `train_split` of the same dataset. `limit`: the first so many images of each split. Features are kept in
    `out`/features. The robustness index is taken where images come from several centres. Raises `UserError` before
    anything is computed where a name will not do.
    """
    tell, out = say or (lambda _: None), Path(out)
    chosen = [named(text) for text in encoders]
    if len({one.label for one in chosen}) < len(chosen):
        raise UserError("bench: --encoders: one is named twice. Expected each once.")
    opened = [_pair(text, train_split) for text in datasets]
    for one in chosen:
        if not all(_place(out, one, d, limit, mpp, seed).is_file() for pair in opened for d in pair if d is not None):
            pretrained.check(one.name, one.weights)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    failures: list[Failure] = []
    for one in chosen:
        embedder = None
        for test, train in opened:
            parts: list[Features | None] = []
            for dataset in (train, test):
                if dataset is None:
                    parts.append(None)
                    continue
                place = _place(out, one, dataset, limit, mpp, seed)
                if not place.is_file():
                    embedder = embedder or _embedder(one, mpp, device, seed)
                    tell(f"{one.label}: {dataset.card.name}:{dataset.split}")
                    _keep(place, collect(embedder, dataset, limit, mpp, one.label, failures))
                parts.append(_kept(place))
            judged = parts[1]
            assert judged is not None
            made = rows_of(one.label, test, parts[0], judged, seed)
            if not made:
                raise UserError(
                    f"bench: --encoders: {test.card.name}:{test.split} has images of one class only "
                    f"({judged.labels[0]}), or no split to learn from and one centre. Expected two classes or more, "
                    "and --probe-split or several centres."
                )
            rows += made
    said = {"train_split": train_split, "limit": limit, "mpp": mpp, "device": device, "seed": seed}
    return _published(rows, failures, {"encoders": [one.label for one in chosen], **said}, out)


def _published(rows: list[Row], failures: list[Failure], settings: dict[str, Any], out: Path) -> Results:
    import torch

    from zoo.training.folder import environment

    machine = environment(str(settings["device"]), 1, torch.get_num_threads(), None)
    found = Results(tuple(rows), tuple(failures), {"compared": ("encoder", "encoders"), **settings}, machine, out)
    found = replace(found, analysis=analysis.analyse(found.tables(), settings["seed"]))
    return report.publish(found, "Encoders", INTRO)


def _pair(text: str, train_split: str) -> tuple[Dataset, Dataset | None]:
    """Return the split to be judged on, and the one to learn from, None where there is none."""
    test = open_named(text)
    named_, plus, words = text.partition("+")
    if test.split.partition("+")[0] == train_split:
        return test, None
    try:
        return test, open_named(f"{named_.partition(':')[0]}:{train_split}{plus}{words}")
    except UserError:
        return test, None


def _embedder(one: Chosen, mpp: Mpp, device: str, seed: int) -> Any:
    import torch

    from zoo.encoders import build_encoder, listing
    from zoo.inference.embed import Embedder, How

    torch.manual_seed(seed)
    encoder = build_encoder(one.name, weights=one.weights)
    pool = "class" if encoder.pool == "none" else None
    return Embedder(encoder, How(tile=listing.info(one.name).size, mpp=mpp, batch=32, pool=pool), device)


def _place(out: Path, one: Chosen, dataset: Dataset, limit: int | None, mpp: Mpp, seed: int) -> Path:
    said = json.dumps([one.label, dataset.card.name, dataset.split, limit, mpp, seed])
    return out / "features" / f"{one.name.replace(':', '-')}-{hashlib.sha256(said.encode()).hexdigest()[:12]}.npz"


def _keep(path: Path, found: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        columns = {k: getattr(found, k).astype(str) for k in ("labels", "groups", "centres")}
        np.savez(file, x=found.x, ids=np.array(found.ids, str), **columns)
    partial.replace(path)


def _kept(path: Path) -> Features:
    with np.load(path) as file:
        columns = [file[k].astype(object) for k in ("labels", "groups", "centres")]
        return Features(file["x"], [str(i) for i in file["ids"]], *columns)
