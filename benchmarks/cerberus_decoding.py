"""Cerberus's objects: how fast, whole and in tiles, and whether both are the same.

    python benchmarks/cerberus_decoding.py               # nuclei: 2048 x 2048 with about 3000 objects
    python benchmarks/cerberus_decoding.py --fields 3    # whole against tiles of 256, 512 and 1000, 3000 x 3000 fields

The twin is the slow, obvious code that the tests hold the fast one against. The two are timed in turn, in one process;
both make the instances and, without --instances, the record of every object (minutes for the twin). Where clipped maps
have many pixels of one height, the order in which a queue gives equals decides who gets a contested one; ours takes
them from the top left, so that tiles agree.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "families"))

import cerberus_twin as twin

from zoo.data.phantom.reader import field, truths
from zoo.families.cerberus import objects, targets, tiles
from zoo.families.cerberus.objects import RULES


def maps_of(labels: Any, size: int, seed: int = 0) -> tuple[Any, Any]:
    """Return probabilities as a trained network gives them for known objects: soft and noisy."""
    target = targets.inner_and_contour(labels, size)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(labels.shape), 1.5) * 0.5
    inner, contour = (ndimage.gaussian_filter((target == k).astype(np.float32), 0.7) for k in (1, 2))
    inner = np.clip(inner + noise, 0, 1).astype(np.float32)
    return inner, np.clip(contour, 0, 1 - inner).astype(np.float32)


def crowded(side: int, wanted: int) -> Any:
    """Return nuclei of phantom fields laid side by side until there are about `wanted`."""
    out = np.zeros((side, side), np.int32)
    step, number = 256, 0
    for y in range(0, side, step):
        for x in range(0, side, step):
            if out.max() >= wanted:
                return out
            _, layout = field(0, "train", number, size=step, difficulty="hard")
            number += 1
            found = truths(layout)["nuclei"].map  # type: ignore[union-attr]
            out[y : y + step, x : x + step] = np.where(found > 0, found + out.max(), 0)
    return out


def speed(side: int, wanted: int, repeats: int, alone: bool) -> None:
    """Print what the twin takes over what the product takes."""
    labels = crowded(side, wanted)
    inner, contour = maps_of(labels, 3)
    classes = np.random.default_rng(0).integers(0, 7, labels.shape).astype(np.uint8)
    rule = RULES["nuclei"]
    times: dict[str, list[float]] = {"product": [], "twin": [], "product, instances": [], "twin, instances": []}
    objects.instances(inner[:256, :256], contour[:256, :256], rule)  # compiles, once an installation
    for _ in range(repeats):
        for name, code in (("product", objects), ("twin", twin)):
            start = time.process_time()
            found = code.instances(inner, contour, rule)
            middle = time.process_time()
            if not alone:
                code.records(found, classes)
            times[f"{name}, instances"].append(middle - start)
            times[name].append(time.process_time() - start)
    ours, slow = objects.instances(inner, contour, rule), twin.instances(inner, contour, rule)
    other = int((ours != slow).sum())
    print(f"{side} x {side}, {int(found.max())} nuclei; CPU-seconds, medians of {repeats}")
    print(f"  pixels that differ   {other:8d} of {int((slow > 0).sum())} (equal heights)")
    middle_of = {name: statistics.median(values) for name, values in times.items()}
    for name, value in middle_of.items():
        print(f"  {name:20s} {value:8.3f}")
    if not alone:
        print(f"  ratio, all           {middle_of['twin'] / middle_of['product']:8.2f}")
    print(f"  ratio, instances     {middle_of['twin, instances'] / middle_of['product, instances']:8.2f}")


def identity(fields: int, side: int) -> bool:
    """Print whether decoding whole and in tiles agree, to the pixel and the id."""
    good = True
    for number in range(fields):
        _, layout = field(0, "test", number, size=side)
        known = truths(layout)
        for key, name in (("nuclei", "nuclei"), ("glands", "gland"), ("lumina", "lumen")):
            rule = RULES[name]
            inner, contour = maps_of(known[key].map, rule.contour, number)  # type: ignore[union-attr]
            whole = objects.instances(inner, contour, rule)
            for tile in (256, 512, 1000):
                found = tiles.instances(lambda w, i=inner, c=contour: (i[w], c[w]), whole.shape, tile, rule)  # type: ignore[misc]
                same = np.array_equal(found, whole)
                good &= same
                found_to_be = "same" if same else "OTHER"
                print(f"field {number}, {name}, {int(whole.max())} objects, tiles of {tile}: {found_to_be}")
    return good


def main() -> int:
    """Run what was asked for; 1 where tiles and the whole differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--objects", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--instances", action="store_true", help="time the instances alone")
    parser.add_argument("--fields", type=int, default=0, help="compare whole and tiles on so many fields instead")
    parser.add_argument("--field-side", type=int, default=3000)
    chosen = parser.parse_args()
    if chosen.fields:
        return 0 if identity(chosen.fields, chosen.field_side) else 1
    speed(chosen.side, chosen.objects, chosen.repeats, chosen.instances)
    return 0


if __name__ == "__main__":
    sys.exit(main())
