"""Write docs/weights.md anew from the shipped cards: python tools/weights_page.py [--check]."""

from __future__ import annotations

import sys
from pathlib import Path

from zoo.cards import read_weights_card
from zoo.weights import page
from zoo.weights.store import BUNDLE, CARDS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "weights.md"


def text() -> str:
    """Return the page of every card that comes with the package."""
    files = sorted([*BUNDLE.glob("*.yaml"), *CARDS.glob("*.yaml")], key=lambda file: file.stem)
    return page.overview([read_weights_card(file) for file in files])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(None if PAGE.read_text(encoding="utf-8") == text() else f"{PAGE} is old: python tools/weights_page.py")
    PAGE.write_text(text(), encoding="utf-8")
    print(PAGE)
