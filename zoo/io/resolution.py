"""um per pixel as image files state it.

Files made by office software state 72, 96 or 300 dots per inch, which says nothing about tissue: a statement counts
only where it gives between 0.02 and 30 um per pixel.
"""

from __future__ import annotations

import re
from typing import Any

_LEAST, _MOST = 0.02, 30.0
_UM = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF ResolutionUnit: inch, centimetre


def plausible(y: float, x: float) -> tuple[float, float] | None:
    """Return (y, x) where both may be um per pixel of a microscope, else None."""
    return (y, x) if _LEAST <= y <= _MOST and _LEAST <= x <= _MOST else None


def from_dpi(dpi: Any) -> tuple[float, float] | None:
    """Return um per pixel (y, x) of dots per inch (x, y), or None."""
    if not isinstance(dpi, tuple) or len(dpi) != 2 or not all(float(v) > 0 for v in dpi):
        return None
    x, y = (25_400.0 / float(v) for v in dpi)
    return plausible(y, x)


def from_tiff(file: Any) -> tuple[float, float] | None:
    """Return um per pixel (y, x) of an open `tifffile.TiffFile`: OME, Aperio, ImageJ, then the resolution tags."""
    return _from_ome(file) or _from_aperio(file) or _from_tags(file)


def _from_ome(file: Any) -> tuple[float, float] | None:
    text = file.ome_metadata
    if not text:
        return None
    found = {}
    for axis in ("X", "Y"):
        size = re.search(rf'PhysicalSize{axis}="([0-9.eE+-]+)"', text)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', text)
        factor = _UM.get(unit.group(1) if unit else "um")
        if not size or factor is None:
            return None
        found[axis] = float(size.group(1)) * factor
    return plausible(found["Y"], found["X"])


def _from_aperio(file: Any) -> tuple[float, float] | None:
    stated = re.search(r"\bMPP\s*=\s*([0-9.]+)", file.pages[0].description or "")
    return plausible(float(stated.group(1)), float(stated.group(1))) if stated else None


def _from_tags(file: Any) -> tuple[float, float] | None:
    page = file.pages[0]
    x, y = (page.tags.valueof(name) for name in ("XResolution", "YResolution"))
    if not x or not y or not all(v[0] and v[1] for v in (x, y)):
        return None
    unit = (file.imagej_metadata or {}).get("unit")
    um = _UM.get(str(unit).replace("\\u00B5", "µ")) if unit else _PER_UNIT.get(int(page.resolutionunit))
    return plausible(um * y[1] / y[0], um * x[1] / x[0]) if um else None
