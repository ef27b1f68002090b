"""A label map on its way to a file: in memory where it is small, else in a temporary file read by windows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

IN_MEMORY = 2**24
ROWS = 512


class Spool:
    """(H, W) int32 written from the top and read in any order.

    A file is read with plain reads, not mapped: mapped pages would count as memory of the process.
    """

    def __init__(self, shape: tuple[int, int], folder: Path | None = None, in_memory: int | None = None) -> None:
        self.shape = shape
        self._begin = 0
        self._array: NDArray[np.int32] | None = None
        self._file: Any = None
        if shape[0] * shape[1] <= (IN_MEMORY if in_memory is None else in_memory):
            self._array = np.zeros(shape, np.int32)
        else:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back memory or disk."""
        self._array = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def put(self, rows: NDArray[Any]) -> None:
        """Append rows (h, W)."""
        end = self._begin + len(rows)
        self.write(self._begin, rows)
        self._begin = end

    def write(self, begin: int, rows: NDArray[Any]) -> None:
        """Replace the rows from `begin`."""
        if self._array is not None:
            self._array[begin : begin + len(rows)] = rows
        else:
            self._file.seek(begin * self.shape[1] * 4)
            self._file.write(np.ascontiguousarray(rows, np.int32).data)

    def window(self, y0: int, y1: int, x0: int = 0, x1: int | None = None) -> NDArray[np.int32]:
        """Return rows y0..y1 and columns x0..x1 (end not included)."""
        x1 = self.shape[1] if x1 is None else x1
        if self._array is not None:
            return self._array[y0:y1, x0:x1]
        self._file.flush()
        handle, width = self._file.fileno(), self.shape[1]
        if x0 == 0 and x1 == width:
            data = os.pread(handle, (y1 - y0) * width * 4, y0 * width * 4)
        else:
            data = b"".join(os.pread(handle, (x1 - x0) * 4, (y * width + x0) * 4) for y in range(y0, y1))
        return np.frombuffer(data, np.int32).reshape(y1 - y0, x1 - x0)

    def bands(self, rows: int = ROWS) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Yield (first row, rows) from top to bottom."""
        for begin in range(0, self.shape[0], rows):
            yield begin, self.window(begin, min(begin + rows, self.shape[0]))
