"""A picture whose stains are known."""

from __future__ import annotations

from typing import Any

import pytest
from numpy.typing import NDArray
from stained import mixed as mixed_stains


@pytest.fixture(scope="session")
def stained() -> NDArray[Any]:
    """Haematoxylin, eosin, and glass."""
    return mixed_stains(0)
