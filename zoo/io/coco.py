"""Predicted boxes of many images as one COCO file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_coco(path: Path, images: Iterable[tuple[str, Path]]) -> int:
    """Write the boxes of images, (name of the image, its `boxes.json`), as one COCO file; return the number of boxes.

    `categories` are the model's classes, ids from 1; an annotation has `bbox` (x, y, width, height), `score` and, where
    the model says any, `attributes`. Tools that want COCO's results format take the list under `annotations`.
    """
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for number, (name, file) in enumerate(images, 1):
        found = json.loads(file.read_text(encoding="utf-8"))
        for kind in found["classes"]:
            categories.setdefault(kind, len(categories) + 1)
        listed.append({"id": number, "file_name": name, "height": found["height"], "width": found["width"]})
        for box in found["boxes"]:
            x0, y0, x1, y1 = box["xyxy"]
            size = [round(x1 - x0, 2), round(y1 - y0, 2)]
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": categories[box["class"]],
                "bbox": [x0, y0, *size],
                "area": round(size[0] * size[1], 2),
                "iscrowd": 0,
                "score": box["score"],
            }
            annotations.append(entry | ({"attributes": box["attributes"]} if "attributes" in box else {}))
    named = [{"id": number, "name": name} for name, number in categories.items()]
    whole = {"images": listed, "annotations": annotations, "categories": named}
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return len(annotations)
