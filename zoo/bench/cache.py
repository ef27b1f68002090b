"""Predictions kept by content: the same weights on the same pixels with the same options are predicted once.

A key is the SHA-256 of the weights' bytes, of the image (pixels, dtype, um per pixel), of the options and of the code
that predicts; so nothing is ever out of date, and a benchmark that was broken off goes on where it was. One file an
image, written whole or not at all, below `ZOO_CACHE`/bench; the folder may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import zoo
from zoo import paths
from zoo.types import (
    BoxesPrediction,
    InstancesPrediction,
    LabelPrediction,
    PicturePrediction,
    Prediction,
    Sample,
    SemanticPrediction,
)

ROOMS = ("types.py", "nn", "encoders", "postprocess", "families", "inference")
"""What of the package decides a prediction."""
KINDS: dict[str, Any] = {
    "semantic": SemanticPrediction,
    "instances": InstancesPrediction,
    "boxes": BoxesPrediction,
    "picture": PicturePrediction,
    "label": LabelPrediction,
}
_LEVELS = 65535  # probabilities are kept in 16 bits


@dataclass(frozen=True)
class Kept:
    """What one image gave: output -> prediction, the seconds that predicting took, and the peak of memory in MiB."""

    predictions: dict[str, Prediction]
    seconds: float
    memory: float | None = None


@functools.cache
def code_hash() -> str:
    """Return the hash of the code that predicts."""
    package = Path(zoo.__file__).parent
    digest = hashlib.sha256()
    for room in ROOMS:
        place = package / room
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def key_of(weights: str, sample: Sample, options: Mapping[str, Any]) -> str:
    """Return the key of a prediction; `weights`: the hash of what predicts."""
    image = np.ascontiguousarray(sample.image)
    about = {
        "weights": weights,
        "shape": image.shape,
        "dtype": str(image.dtype),
        "spacing": sample.spacing,
        "options": options,
        "code": code_hash(),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    digest.update(image.data)
    return digest.hexdigest()


class Cache:
    """The folder of kept predictions; `None` in place of a folder keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def usual(cls) -> Cache:
        """Return the cache below `ZOO_CACHE`."""
        return cls(paths.cache_root() / "bench")

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.npz"

    def get(self, key: str) -> Kept | None:
        """Return what is kept under a key, None where nothing is or the file is damaged."""
        if self.folder is None or not self._file(key).is_file():
            return None
        try:
            with self._file(key).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                predictions = {name: _read(name, said, file) for name, said in about["outputs"].items()}
            return Kept(predictions, float(about["seconds"]), about["memory"])
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            return None

    def put(self, key: str, kept: Kept) -> None:
        """Keep what one image gave; a full disk only means that nothing is kept."""
        if self.folder is None:
            return
        arrays: dict[str, NDArray[Any]] = {}
        outputs = {name: _write(name, prediction, arrays) for name, prediction in kept.predictions.items()}
        about = {"outputs": outputs, "seconds": kept.seconds, "memory": kept.memory}
        file = self._file(key)
        partial = file.with_name(f".{file.stem}.{os.getpid()}.part.npz")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(partial, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
            partial.replace(file)
        except OSError:
            partial.unlink(missing_ok=True)


def settled(kept: Kept) -> Kept:
    """Return what would come back from the cache, so that a first run and a second one judge the same numbers."""
    return replace(kept, predictions={name: _settled(p) for name, p in kept.predictions.items()})


def _settled(prediction: Prediction) -> Prediction:
    if isinstance(prediction, SemanticPrediction) and prediction.probability is not None:
        return replace(prediction, probability=_from_levels(_to_levels(prediction.probability)))
    return replace(prediction, contours=None) if isinstance(prediction, InstancesPrediction) else prediction


def _to_levels(probability: NDArray[Any]) -> NDArray[np.uint16]:
    return np.asarray(np.rint(np.clip(probability, 0, 1) * np.float32(_LEVELS)), np.uint16)


def _from_levels(levels: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(levels.astype(np.float32) / np.float32(_LEVELS), np.float32)


def _write(name: str, prediction: Prediction, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Add a prediction's arrays under NAME/FIELD; return its kind and its other fields."""
    said: dict[str, Any] = {"kind": prediction.kind, "arrays": [], "values": {}, "parts": {}}
    for field, value in vars(prediction).items():
        if field in ("kind", "contours") or value is None:
            continue
        if isinstance(value, np.ndarray):
            halved = isinstance(prediction, SemanticPrediction) and field == "probability"
            arrays[f"{name}/{field}"] = _to_levels(value) if halved else value
            said["arrays"].append(field)
        elif isinstance(value, BoxesPrediction):  # the weaker boxes of a prediction
            said["parts"][field] = _write(f"{name}/{field}", value, arrays)
        else:
            said["values"][field] = list(value) if isinstance(value, tuple) else value
    return said


def _read(name: str, said: Mapping[str, Any], file: Any) -> Prediction:
    fields: dict[str, Any] = {k: _tuples(v) for k, v in said["values"].items()}
    fields |= {field: _read(f"{name}/{field}", part, file) for field, part in said["parts"].items()}
    for field in said["arrays"]:
        value = file[f"{name}/{field}"]
        fields[field] = _from_levels(value) if said["kind"] == "semantic" and field == "probability" else value
    found: Prediction = KINDS[said["kind"]](**fields)
    return found


def _tuples(value: Any) -> Any:
    """Return a value read from JSON with its lists as tuples, as predictions have them."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
