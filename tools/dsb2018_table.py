"""Make datasets/dsb2018*.json from a copy of DSB2018: modality, field and fixed splits of every image.

    python tools/dsb2018_table.py DIR/dsb2018

Modality: `zoo.data.readers.dsb2018.modality_of`. Field: images of one modality whose edges continue each other are
tiles of one field (`zoo.data.seams`); slides and plates were never published, so a field is the finest group that can
be known. Splits: 60 % train, 15 % val, 25 % test of the images (bright-field, 5 images: 40, 20, 40 %), whole fields,
stratified by size and brightness.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from zoo.data.readers.base import Entry
from zoo.data.readers.dsb2018 import MODALITIES, modality_of
from zoo.data.readers.pixels import read_rgb
from zoo.data.seams import Edges, components, edges_of, touching
from zoo.data.splits import split_by_group

SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}
FEW = {"train": 0.4, "val": 0.2, "test": 0.4}


def main(folder: Path, out: Path) -> None:
    """Write the table and the splits."""
    modality: dict[str, str] = {}
    looks: dict[str, str] = {}
    edges: dict[str, dict[str, Edges]] = {m: {} for m in MODALITIES}
    for item in sorted((folder / "stage1_train").iterdir()):
        image = read_rgb(item / "images" / f"{item.name}.png")
        modality[item.name] = modality_of(image)
        looks[item.name] = f"{image.shape[1:]} {int(np.median(image)) // 32}"
        found = edges_of(image)
        if found:
            edges[modality[item.name]][item.name] = found
    table: dict[str, tuple[str, str]] = {}
    for kind in MODALITIES:
        names = [n for n, m in modality.items() if m == kind]
        fields = components(names, [(s.first, s.second) for s in touching(edges[kind])])
        entries = [Entry(n, f"{kind}-field-{i:03d}") for i, field in enumerate(fields, 1) for n in field]
        table |= {e.id: (kind, str(e.group)) for e in entries}
        splits = split_by_group(entries, SHARES if len(names) > 20 else FEW, labels={n: looks[n] for n in names})
        _write(out / f"dsb2018-{kind}.json", {name: list(ids) for name, ids in splits.items()})
        sizes = {name: len(ids) for name, ids in splits.items()}
        print(f"{kind}: {len(names)} images, {len(fields)} fields, {sizes}")
    _write(out / "dsb2018.json", dict(sorted(table.items())))


def _write(path: Path, values: dict[str, object]) -> None:
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).resolve().parent.parent / "datasets")
