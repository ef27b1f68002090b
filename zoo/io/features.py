"""Tables of features: a row a tile, with where it lies, as Parquet, HDF5 or Zarr; written and read in pieces.

Every format has the same columns: `image` (name), `y`, `x`, `height`, `width` (pixels of the source at level 0, whole
numbers where the picture was not resampled) and `feature` (D floats), and `about`, plain values that say what made
them (encoder, weights, pool, um per pixel, tile).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError, UserError

ENDINGS = (".parquet", ".h5", ".zarr")
PLACES = ("y", "x", "height", "width")
_CHUNK = 1024  # rows that are stored together


@dataclass(frozen=True)
class Rows:
    """Tiles: `images` a name a row, `places` (N, 4) float64 of y, x, height, width, `features` (N, D)."""

    images: NDArray[Any]
    places: NDArray[np.float64]
    features: NDArray[Any]

    def __len__(self) -> int:
        return len(self.images)

    def pick(self, kept: NDArray[np.bool_]) -> Rows:
        """Return some of the rows."""
        return Rows(self.images[kept], self.places[kept], self.features[kept])


class Writer(Protocol):
    """A table that grows."""

    def append(self, rows: Rows) -> None:
        """Write rows behind those that are there."""

    def close(self) -> None:
        """Finish the file."""


def ending(path: Path) -> str:
    """Return the ending that says the format. Raises `UserError` for another one."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f'{path}: "{path.suffix}" is no table of features. Expected a name in {", ".join(ENDINGS)}.')
    return path.suffix.lower()


def writer(path: Path, dim: int, dtype: str, about: Mapping[str, Any]) -> Writer:
    """Return a new table at `path` of features of `dim` numbers ("float32" or "float16")."""
    made: dict[str, Any] = {".parquet": _Parquet, ".h5": _Hdf5, ".zarr": _Zarr}
    found: Writer = made[ending(path)](path, dim, dtype, json.dumps(dict(about), sort_keys=True))
    return found


def read(path: Path) -> Iterator[Rows]:
    """Yield the rows of a table in pieces. Raises `DataError` where it is none."""
    try:
        yield from {".parquet": _read_parquet, ".h5": _read_arrays, ".zarr": _read_arrays}[ending(path)](path)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a table of features ({str(error).splitlines()[0]}). Make it again.") from None


def read_all(path: Path) -> Rows:
    """Return the whole table."""
    parts = list(read(path))
    if not parts:
        return Rows(np.empty(0, object), np.empty((0, 4)), np.empty((0, 0), np.float32))
    return Rows(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("images", "places", "features")))


def about(path: Path) -> dict[str, Any]:
    """Return what made a table. Raises `DataError` where it does not say."""
    try:
        if ending(path) == ".parquet":
            import pyarrow.parquet as pq

            text = (pq.read_schema(path).metadata or {})[b"zoo"].decode()
        else:
            with _opened(path) as file:
                text = str(file.attrs["zoo"])
        return dict(json.loads(text))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a table that zoo embed wrote ({error}). Choose another --out.") from None


class _Parquet:
    def __init__(self, path: Path, dim: int, dtype: str, said: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kind = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dim)
        fields = [("image", pa.dictionary(pa.int32(), pa.string())), *((p, pa.float64()) for p in PLACES)]
        self.schema = pa.schema([*fields, ("feature", kind)], metadata={"zoo": said})
        self._file = pq.ParquetWriter(path, self.schema, compression="zstd")

    def append(self, rows: Rows) -> None:
        import pyarrow as pa

        field = self.schema.field("feature").type
        flat = pa.array(np.ascontiguousarray(rows.features).reshape(-1), field.value_type)
        images = pa.array(rows.images.tolist(), pa.string()).dictionary_encode()
        places = [pa.array(rows.places[:, i]) for i in range(4)]
        columns = [images, *places, pa.FixedSizeListArray.from_arrays(flat, field.list_size)]
        self._file.write_table(pa.table(columns, schema=self.schema))

    def close(self) -> None:
        self._file.close()


def _read_parquet(path: Path) -> Iterator[Rows]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_CHUNK):
            columns = {name: batch.column(name) for name in batch.schema.names}
            features = columns["feature"]
            flat = features.flatten().to_numpy(zero_copy_only=False)
            places = np.stack([columns[p].to_numpy() for p in PLACES], 1)
            images = np.array(columns["image"].to_pylist(), object)
            yield Rows(images, places.astype(np.float64), flat.reshape(len(images), -1))


class _Hdf5:
    def __init__(self, path: Path, dim: int, dtype: str, said: str) -> None:
        import h5py

        self._file = h5py.File(path, "w")
        self._file.attrs["zoo"] = said
        self._file.create_dataset("feature", (0, dim), dtype, maxshape=(None, dim), chunks=(_CHUNK // 8, dim))
        for place in PLACES:
            self._file.create_dataset(place, (0,), "f8", maxshape=(None,), chunks=(_CHUNK,))
        self._file.create_dataset("image", (0,), h5py.string_dtype(), maxshape=(None,), chunks=(_CHUNK,))

    def append(self, rows: Rows) -> None:
        count = len(self._file["image"])
        for name, values in (("feature", rows.features), *_placed(rows), ("image", rows.images)):
            self._file[name].resize(count + len(rows), axis=0)
            self._file[name][count:] = values

    def close(self) -> None:
        self._file.close()


class _Zarr:
    def __init__(self, path: Path, dim: int, dtype: str, said: str) -> None:
        import zarr

        shutil.rmtree(path, ignore_errors=True)
        self._file: Any = zarr.open_group(path, mode="w", zarr_format=2)
        self._file.attrs["zoo"] = said
        self._file.create_array("feature", shape=(0, dim), chunks=(_CHUNK // 8, dim), dtype=dtype)
        for place in PLACES:
            self._file.create_array(place, shape=(0,), chunks=(_CHUNK,), dtype="float64")
        self._file.create_array("image", shape=(0,), chunks=(_CHUNK,), dtype="int32")
        self._names: dict[str, int] = {}

    def append(self, rows: Rows) -> None:
        codes = np.array([self._names.setdefault(str(n), len(self._names)) for n in rows.images], np.int32)
        for name, values in (("feature", rows.features), *_placed(rows), ("image", codes)):
            self._file[name].append(values)

    def close(self) -> None:
        self._file.attrs["images"] = list(self._names)


def _placed(rows: Rows) -> list[tuple[str, NDArray[np.float64]]]:
    return [(p, rows.places[:, i]) for i, p in enumerate(PLACES)]


def _opened(path: Path) -> Any:
    if ending(path) == ".h5":
        import h5py

        return h5py.File(path, "r")
    import contextlib

    import zarr

    return contextlib.nullcontext(zarr.open_group(path, mode="r"))


def _read_arrays(path: Path) -> Iterator[Rows]:
    with _opened(path) as file:
        names = np.array(file.attrs["images"], object) if "images" in file.attrs else None
        for start in range(0, file["feature"].shape[0], _CHUNK):
            part = slice(start, start + _CHUNK)
            raw = file["image"][part]
            images = names[raw] if names is not None else np.array([n.decode() for n in raw], object)
            places = np.stack([np.asarray(file[p][part], np.float64) for p in PLACES], 1)
            yield Rows(images, places, np.asarray(file["feature"][part]))
