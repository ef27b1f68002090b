"""PNG written row by row: a class map of any size without the picture in memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_COLOUR = {1: 0, 3: 2, 4: 6}


class PngRows:
    """An 8-bit PNG of known shape that grows from the top: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA.

    `mpp`: um per pixel to note in the file. `level` of compression: 1 fast to 9 small; class maps compress well at 1.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], mpp: float | None = None, level: int = 1) -> None:
        channels = shape[2] if len(shape) == 3 else 1
        self._width = shape[1] * channels
        self._missing = shape[0]
        self._packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9)
        self._file: BinaryIO = path.open("wb")
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, _COLOUR[channels], 0, 0, 0))
        if mpp is not None:
            per_metre = round(1e6 / mpp)
            self._chunk(b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1))

    def put(self, rows: NDArray[Any]) -> None:
        """Write the next rows, uint8 (h, W) or (h, W, C)."""
        lines = np.zeros((len(rows), self._width + 1), np.uint8)  # the first byte of a line: no filter
        lines[:, 1:] = rows.reshape(len(rows), -1)
        self._missing -= len(rows)
        packed = self._packer.compress(lines.data)
        if packed:
            self._chunk(b"IDAT", packed)

    def close(self) -> None:
        """Finish the file. Raises `ValueError` where rows are missing."""
        with self._file:
            if self._missing:
                raise ValueError(f"{self._missing} rows of the picture were not written")
            self._chunk(b"IDAT", self._packer.flush())
            self._chunk(b"IEND", b"")

    def abort(self) -> None:
        """Close without finishing."""
        self._file.close()

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
