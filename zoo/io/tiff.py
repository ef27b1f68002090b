"""Tiled, compressed TIFF written from the top, so that a picture of any size needs the memory of one row of tiles.

Layout: one page a plane (C, H, W), or one page of interleaved RGB; deflate; BigTIFF where the pixels would pass 2 GiB
uncompressed. An OME-XML description names channels and um per pixel, so that QuPath, Fiji and tifffile open the planes
as channels of one image.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from zoo.io.colours import from_hex

TILE = 256
_BIG = 2**31
_OME = {"u1": "uint8", "u2": "uint16", "u4": "uint32", "i4": "int32", "f2": "half", "f4": "float", "f8": "double"}


class TiffRows:
    """A TIFF of known shape that grows from the top.

    `shape`: (H, W), (C, H, W), or (H, W, 3) with `rgb`. `channels`: their names (an OME-TIFF then, whose half floats
    are stored as float32), `colours`: how they are shown, #rrggbb each. `description`: text of a file that is no OME-
    TIFF, in ASCII. `mpp`: um per pixel.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        rgb: bool = False,
        channels: Sequence[str] = (),
        colours: Sequence[str] = (),
        description: str = "",
        mpp: float | None = None,
        level: int = 4,
    ) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._rgb = rgb
        self._planes = 1 if rgb or len(shape) == 2 else shape[0]
        self._height, self._width = shape[:2] if rgb else shape[-2:]
        self._samples = shape[2] if rgb else 1
        self._mpp, self._level = mpp, level
        self._description = self._ome(channels, colours) if channels else description
        size = self._planes * self._height * self._width * self._samples * self._dtype.itemsize
        self._big = size >= _BIG
        self._offsets: list[list[int]] = [[] for _ in range(self._planes)]
        self._sizes: list[list[int]] = [[] for _ in range(self._planes)]
        self._kept: list[NDArray[Any]] = []
        self._rows = self._done = 0
        self._file: BinaryIO = path.open("wb")
        self._file.write(
            struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if self._big else struct.pack("<2sHI", b"II", 42, 0)
        )

    def put(self, rows: NDArray[Any]) -> None:
        """Write the next rows: (h, W), (C, h, W) or (h, W, 3)."""
        axis = 0 if self._rgb or rows.ndim == 2 else 1
        count = rows.shape[axis]
        self._done += count
        rows = rows.astype(self._dtype, copy=False)
        self._kept.append(rows if rows.ndim == 3 and not self._rgb else rows[None])
        self._rows += count
        while self._rows >= TILE:
            self._flush(TILE)

    def close(self) -> None:
        """Finish the file. Raises `ValueError` where rows are missing."""
        with self._file:
            if self._done != self._height:
                raise ValueError(f"{self._height - self._done} rows of the picture were not written")
            if self._rows:
                self._flush(self._rows)
            self._directories()

    def abort(self) -> None:
        """Close without finishing."""
        self._file.close()

    def _flush(self, count: int) -> None:
        """Write one row of tiles from the rows that wait."""
        import imagecodecs

        waiting = self._kept[0] if len(self._kept) == 1 else np.concatenate(self._kept, axis=1)
        band, rest = waiting[:, :count], waiting[:, count:]
        self._kept, self._rows = [rest] if rest.shape[1] else [], rest.shape[1]
        tail = (self._samples,) if self._rgb else ()
        for plane in range(self._planes):
            for x in range(0, self._width, TILE):
                part = band[plane, :, x : x + TILE]
                if part.shape[:2] != (TILE, TILE):
                    full = np.zeros((TILE, TILE, *tail), self._dtype)
                    full[: part.shape[0], : part.shape[1]] = part
                    part = full
                packed = imagecodecs.zlib_encode(part.tobytes(), level=self._level)
                self._offsets[plane].append(self._file.tell())
                self._sizes[plane].append(len(packed))
                self._file.write(packed)

    def _directories(self) -> None:
        """Write one directory a page, each pointing at the next, and let the header point at the first."""
        where = 8 if self._big else 4  # position of the pointer to the next directory
        for plane in range(self._planes):
            entries = self._entries(plane)
            self._file.seek(0, 2)
            if self._file.tell() % 2:
                self._file.write(b"\0")
            fields = [self._field(*entry) for entry in sorted(entries)]
            begin = self._file.tell()
            self._file.write(struct.pack("<Q" if self._big else "<H", len(fields)) + b"".join(fields))
            after = self._file.tell()
            self._file.write(bytes(8 if self._big else 4))
            self._file.seek(where)
            self._file.write(struct.pack("<Q" if self._big else "<I", begin))
            where = after

    def _entries(self, plane: int) -> list[tuple[int, int, Sequence[int] | bytes]]:
        samples = self._samples
        kind = {"u": 1, "i": 2, "f": 3}[self._dtype.kind]
        entries: list[tuple[int, int, Sequence[int] | bytes]] = [
            (256, 4, [self._width]),
            (257, 4, [self._height]),
            (258, 3, [self._dtype.itemsize * 8] * samples),
            (259, 3, [8]),  # deflate
            (262, 3, [2 if self._rgb else 1]),  # RGB or black is zero
            (277, 3, [samples]),
            (284, 3, [1]),
            (322, 4, [TILE]),
            (323, 4, [TILE]),
            (324, 16 if self._big else 4, self._offsets[plane]),
            (325, 4, self._sizes[plane]),
            (339, 3, [kind] * samples),
            (305, 2, b"histozoo\0"),
        ]
        if self._description and plane == 0:
            entries.append((270, 2, self._description.encode() + b"\0"))
        if self._mpp:
            per_cm = round(1e4 / self._mpp * 10_000)
            entries += [(282, 5, [per_cm, 10_000]), (283, 5, [per_cm, 10_000]), (296, 3, [3])]
        return entries

    def _field(self, tag: int, kind: int, values: Sequence[int] | bytes) -> bytes:
        """Return the entry of a directory; values that do not fit into it are written before it."""
        code = {3: "H", 4: "I", 5: "I", 16: "Q"}.get(kind, "")
        data = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{code}", *values)
        count = len(values) // 2 if kind == 5 else len(values)
        room = 8 if self._big else 4
        head = struct.pack("<HHQ" if self._big else "<HHI", tag, kind, count)
        if len(data) <= room:
            return head + data.ljust(room, b"\0")
        offset = self._file.tell()
        self._file.write(data + b"\0" * (len(data) % 2))
        return head + struct.pack("<Q" if self._big else "<I", offset)

    def _ome(self, channels: Sequence[str], colours: Sequence[str]) -> str:
        if self._dtype.itemsize == 2 and self._dtype.kind == "f":
            self._dtype = np.dtype("<f4")  # OME has no half floats
        kind = _OME[self._dtype.str[1:]]
        spacing = ""
        if self._mpp:
            spacing = f' PhysicalSizeX="{self._mpp:g}" PhysicalSizeY="{self._mpp:g}"'
            spacing += ' PhysicalSizeXUnit="µm" PhysicalSizeYUnit="µm"'
        shown = [f' Color="{_ome_colour(c)}"' for c in colours] or [""] * len(channels)
        names = "".join(
            f'<Channel ID="Channel:0:{i}" Name={quoteattr(name)} SamplesPerPixel="1"{colour}/>'
            for i, (name, colour) in enumerate(zip(channels, shown, strict=True))
        )
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation='
            '"http://www.openmicroscopy.org/Schemas/OME/2016-06 '
            'http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="{kind}" SizeX="{self._width}" '
            f'SizeY="{self._height}" SizeC="{self._planes}" SizeZ="1" SizeT="1"{spacing}>'
            f'{names}<TiffData IFD="0" PlaneCount="{self._planes}"/></Pixels></Image></OME>'
        )
        # TIFF's text is ASCII
        return text.encode("ascii", "xmlcharrefreplace").decode()


def _ome_colour(colour: str) -> int:
    """Return #rrggbb as OME has it: red, green, blue and an opaque alpha in a signed number of 32 bits."""
    red, green, blue = from_hex(colour)
    value = red << 24 | green << 16 | blue << 8 | 255
    return value - 2**32 if value >= 2**31 else value
