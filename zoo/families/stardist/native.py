"""The package `stardist`: rays, distances, suppression and rendering in native code. Its networks are never imported.

Importing it replaces `warnings.formatwarning` for the whole process; here it is put back.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any


def module(name: str) -> Any:
    """Return the module `stardist.NAME`."""
    before = warnings.formatwarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module(f"stardist.{name}")
    finally:
        warnings.formatwarning = before
