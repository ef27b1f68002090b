"""How fast the phantom is, how far tricks get on it, and how near to real pictures it comes.

    python benchmarks/phantom.py speed                 ms a field on one core
    python benchmarks/phantom.py tricks                Otsu's threshold on nuclei, colour thresholds on white cells
    python benchmarks/phantom.py realism               statistics and distances against dsb2018-he and bccd
    python benchmarks/phantom.py sheet FILE            phantom and real pictures side by side
    python benchmarks/phantom.py bccd WEIGHTS          white cells that a network finds in BCCD, as boxes

`realism`, `sheet` and `bccd` need ZOO_DATA. Run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data import open_dataset
from zoo.data.resample import present_ids
from zoo.stain.matrices import absorbance
from zoo.types import Boxes, Instances, Sample

DIFFICULTIES = ("easy", "medium", "hard")
HE_UM = 0.35
"""um per pixel at which the phantom's nuclei are about as large as those of dsb2018-he."""


def fields(name: str, count: int, step: int = 8, split: str = "test", **arguments: Any) -> Iterator[Sample]:
    """Yield fields of different slides."""
    dataset = open_dataset(name, split=split, arguments={split: count * step, **arguments})
    for number in range(0, count * step, step):
        yield dataset[number]


# --- speed ------------------------------------------------------------------------------------------------------------


def speed(given: argparse.Namespace) -> None:
    """Print milliseconds of CPU time a field: median, least and most over fields of different slides."""
    cases = [
        ("phantom-multitask", {"size": 256}, 30),
        ("phantom-multitask", {"size": 512}, 100),
        ("phantom-volume", {"size": [64, 128, 128], "um": [1.0, 0.5, 0.5]}, 400),
        ("phantom-stains", {"size": 256}, None),
        ("phantom-mif", {"size": 256}, None),
        ("phantom-smear", {"size": 320}, None),
        ("phantom-slide", {"size": [384, 512]}, None),
    ]
    cv2.setNumThreads(1)
    print(f"{'dataset':18} {'difficulty':10} {'size':14} median least  most  goal")
    for name, arguments, goal in cases:
        for difficulty in DIFFICULTIES:
            count = 3 if name == "phantom-slide" else given.count
            dataset = open_dataset(name, split="test", arguments={**arguments, "difficulty": difficulty})
            dataset[0]
            times = []
            for number in range(count):
                began = time.process_time()
                dataset[number * 7 % len(dataset)]
                times.append(1e3 * (time.process_time() - began))
            size = "x".join(map(str, np.atleast_1d(arguments["size"])))
            shown = f"{statistics.median(times):6.0f} {min(times):5.0f} {max(times):5.0f}"
            print(f"{name:18} {difficulty:10} {size:14} {shown} {goal or '':>5}", flush=True)


# --- tricks -----------------------------------------------------------------------------------------------------------


def otsu_dice(sample: Sample) -> float:
    """Return the Dice of the darker side of Otsu's threshold, on grey or on red, whichever is better."""
    truth = sample.truth["nuclei"]
    assert isinstance(truth, Instances)
    mask = truth.map > 0
    grey = cv2.cvtColor(np.moveaxis(sample.image, 0, -1).copy(), cv2.COLOR_RGB2GRAY)
    scores = []
    for plane in (grey, np.ascontiguousarray(sample.image[0])):
        level, _ = cv2.threshold(plane, 0, 255, cv2.THRESH_OTSU)
        found = plane <= level
        scores.append(2 * float((found & mask).sum()) / max(1, int(found.sum() + mask.sum())))
    return max(scores)


INDICES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "purple": lambda rgb: (rgb[0] + rgb[2]) / 2 - rgb[1],
    "blue over red": lambda rgb: rgb[2] - rgb[0],
    "dark green": lambda rgb: 255 - rgb[1],
    "saturation": lambda rgb: rgb.max(0) - rgb.min(0),
    "dark red": lambda rgb: 255 - rgb[0],
}


def colour_boxes(sample: Sample, index: str, level: str, grow: float) -> list[tuple[float, list[float]]]:
    """Return (score, box) of what a threshold on a colour index leaves, smoothed, filled and grown by `grow` um."""
    assert sample.spacing is not None
    um = sample.spacing[0]
    plane = INDICES[index](sample.image.astype(np.float32))
    plane = cv2.GaussianBlur(np.clip(plane, 0, 255), (0, 0), 0.25 / um).astype(np.uint8)
    first, mask = cv2.threshold(plane, 0, 255, cv2.THRESH_OTSU)
    if level == "twice":  # red cells are the lower of two bright classes
        above = plane[plane > first]
        if above.size:
            second, _ = cv2.threshold(above.reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)
            mask = ((plane > second) * 255).astype(np.uint8)
    size = 2 * round(0.5 / um) + 1
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((size, size), np.uint8))
    size = 2 * round(1.6 / um) + 1
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    found = []
    for x, y, w, h, area in stats[1:]:
        if 12 <= area * um * um <= 350:
            pad = grow / um
            found.append((float(area), [x - pad, y - pad, x + w + pad, y + h + pad]))
    return found


def average_precision(found: Sequence[Sequence[tuple[float, list[float]]]], truths: Sequence[NDArray[Any]]) -> float:
    """Return the AP at IoU 0.5 of boxes of one class over images: area under precision over recall, interpolated."""
    rows = sorted(((score, i, box) for i, boxes in enumerate(found) for score, box in boxes), reverse=True)
    taken = [np.zeros(len(t), bool) for t in truths]
    hits = []
    for _, image, box in rows:
        truth = truths[image]
        hit = False
        if len(truth):
            low, high = np.maximum(truth[:, :2], box[:2]), np.minimum(truth[:, 2:], box[2:])
            shared = np.prod(np.clip(high - low, 0, None), 1)
            total = np.prod(truth[:, 2:] - truth[:, :2], 1) + (box[2] - box[0]) * (box[3] - box[1]) - shared
            overlap = np.where(taken[image], 0, shared / total)
            best = int(np.argmax(overlap))
            hit = bool(overlap[best] >= 0.5)
            taken[image][best] |= hit
        hits.append(hit)
    total = sum(map(len, truths))
    if not hits or not total:
        return 0.0
    right = np.cumsum(hits)
    precision = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    recall = np.concatenate([[0], right / total])
    return float((np.diff(recall) * precision).sum())


def white_boxes(sample: Sample) -> NDArray[Any]:
    """Return the boxes of white cells."""
    boxes = sample.truth["cells"]
    assert isinstance(boxes, Boxes)
    return boxes.xyxy[boxes.classes >= 3]


def tricks(given: argparse.Namespace) -> None:
    """Print how far thresholds get."""
    for difficulty in DIFFICULTIES:
        dice = [otsu_dice(s) for s in fields("phantom-nuclei", given.count, difficulty=difficulty)]
        print(f"nuclei {difficulty:7} Otsu's Dice {np.mean(dice):.3f} (median {np.median(dice):.3f})")
    for difficulty in DIFFICULTIES:
        samples = list(fields("phantom-smear", given.count, difficulty=difficulty))
        truths = [white_boxes(s) for s in samples]
        scores = {
            (index, level, grow): average_precision([colour_boxes(s, index, level, grow) for s in samples], truths)
            for index in INDICES
            for level in ("once", "twice")
            for grow in (0.0, 0.6, 1.2)
        }
        best = max(scores, key=lambda key: scores[key])
        print(
            f"white cells {difficulty:7} best colour threshold AP50 {scores[best]:.3f} ({', '.join(map(str, best))} um)"
        )


# --- realism ----------------------------------------------------------------------------------------------------------


def colours(samples: Sequence[Sample]) -> dict[str, NDArray[Any]]:
    """Return statistics over pictures, each (mean, deviation between pictures) of a picture's value."""
    rows: dict[str, list[NDArray[Any]]] = {}
    for sample in samples:
        rgb = sample.image.reshape(3, -1)
        density = absorbance(rgb)
        rows.setdefault("RGB mean", []).append(rgb.mean(1))
        rows.setdefault("RGB deviation", []).append(rgb.std(1))
        rows.setdefault("absorbance mean", []).append(density.mean(1))
        rows.setdefault("absorbance 99 %", []).append(np.quantile(density, 0.99, axis=1))
    return {key: np.stack(values).mean(0) for key, values in rows.items()}


def sizes(samples: Sequence[Sample], key: str = "nuclei") -> dict[str, float]:
    """Return the median area of whole nuclei in pixels, the spread of areas, nuclei per 10 000 pixels, their share."""
    areas: list[float] = []
    count = pixels = covered = 0
    for sample in samples:
        truth = sample.truth[key]
        assert isinstance(truth, Instances)
        border = {int(i) for side in (truth.map[0], truth.map[-1], truth.map[:, 0], truth.map[:, -1]) for i in side}
        counts = np.bincount(truth.map.ravel())
        areas += [float(counts[i]) for i in present_ids(truth.map) if int(i) not in border]
        count += len(present_ids(truth.map))
        pixels += truth.map.size
        covered += int((truth.map > 0).sum())
    low, high = np.quantile(areas, (0.25, 0.75))
    return {
        "median area": float(np.median(areas)),
        "quartiles' ratio": float(high / low),
        "per 10 000 px": 1e4 * count / pixels,
        "share": covered / pixels,
    }


def crops(samples: Sequence[Sample], size: int, count: int) -> NDArray[np.uint8]:
    """Return (N, 3, size, size) crops, `count` a picture, at places that depend on the picture's number alone."""
    found = []
    for number, sample in enumerate(samples):
        rng = np.random.default_rng(number)
        height, width = sample.shape
        for _ in range(count):
            y, x = int(rng.integers(0, height - size + 1)), int(rng.integers(0, width - size + 1))
            found.append(sample.image[:, y : y + size, x : x + size])
    return np.stack(found)


def features(pictures: NDArray[np.uint8], encoder: Any) -> NDArray[Any]:
    """Return (N, D) means over each map of one level of an encoder: the third, stride 8."""
    import torch

    rows = []
    with torch.no_grad():
        for start in range(0, len(pictures), 32):
            batch = torch.from_numpy(pictures[start : start + 32]).float() / 255
            mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
            maps = encoder((batch - mean) / deviation).maps
            level = next(m for m, s in zip(maps, encoder.strides, strict=True) if s == 8)
            rows.append(torch.cat([level.mean((2, 3)), level.std((2, 3))], 1).numpy())
    return np.concatenate(rows).astype(np.float64)


def frechet(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the Frechet distance of two clouds taken as normal (Heusel et al., NeurIPS 2017)."""
    mean = a.mean(0) - b.mean(0)
    first, second = (np.cov(x, rowvar=False) + 1e-6 * np.eye(x.shape[1]) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    middle = np.linalg.eigvalsh(root @ second @ root)
    return float(mean @ mean + np.trace(first) + np.trace(second) - 2 * np.sqrt(np.clip(middle, 0, None)).sum())


def encoders() -> dict[str, Any]:
    """Return named encoders: one that was never trained, one that comes with the package."""
    import torch

    import zoo
    from zoo.encoders import build_encoder

    torch.manual_seed(0)
    random = build_encoder("resnet18", in_channels=3, weights="none").eval()
    bundled: Any = zoo.load("nuclei-unet-mobile")
    inner = next(m for m in bundled.modules() if hasattr(m, "strides") and hasattr(m, "mean")).eval()
    return {"resnet18, random (seed 0)": random, "nuclei-unet-mobile's encoder (bundled)": inner}


def realism(_: argparse.Namespace) -> None:
    """Print statistics of phantom and real pictures side by side, and distances between them."""
    real = list(open_dataset("dsb2018-he"))
    sets = {"dsb2018-he": real}
    for difficulty in DIFFICULTIES:
        made = fields("phantom-nuclei", len(real), step=1, um=HE_UM, size=[256, 320], difficulty=difficulty)
        sets[f"phantom-nuclei {difficulty}"] = list(made)
    smears = {"bccd": list(open_dataset("bccd", split="train", limit=80))}
    for difficulty in DIFFICULTIES:
        made = fields("phantom-smear", 80, step=1, um=0.075, size=[480, 640], difficulty=difficulty, leukocytes=1)
        smears[f"phantom-smear {difficulty}"] = list(made)
    for group in (sets, smears):
        for name, samples in group.items():
            print(f"\n{name}: {len(samples)} pictures")
            for key, values in colours(samples).items():
                print(f"  {key:18}", " ".join(f"{v:7.2f}" for v in values))
            if "nuclei" in samples[0].truth and group is sets:
                print("  nuclei            ", ", ".join(f"{k} {v:.2f}" for k, v in sizes(samples).items()))
    print("\nFrechet distance of the third level's means and deviations (128 x 128 crops, four a picture)")
    for label, encoder in encoders().items():
        for group in (sets, smears):
            names = list(group)
            clouds = {name: features(crops(samples, 128, 4), encoder) for name, samples in group.items()}
            halves = [clouds[names[0]][k::2] for k in (0, 1)]
            print(f"  {label}: {names[0]} against its other half {frechet(*halves):.3f}")
            for name in names[1:]:
                print(f"  {label}: {names[0]} against {name} {frechet(clouds[names[0]], clouds[name]):.3f}")


# --- what a network learnt from it sees in real smears ----------------------------------------------------------------

BCCD_UM = 0.075
"""um per pixel of BCCD: not published, assumed from red cells of about 100 pixels."""


def bccd(given: argparse.Namespace) -> None:
    """Print how well the boxes round a network's objects match BCCD's boxes of white cells, and what thresholds do."""
    import zoo

    model: Any = zoo.load(given.file)
    dataset = open_dataset("bccd", split=given.split)
    white = 1 + dataset.card.truths["cells"].classes.index("WBC")
    found, truths, samples = [], [], []
    for sample in dataset:
        boxes = sample.truth["cells"]
        assert isinstance(boxes, Boxes)
        truths.append(boxes.xyxy[boxes.classes == white])
        samples.append(sample.with_(spacing=(BCCD_UM, BCCD_UM)))
        said = model.predict(np.moveaxis(sample.image, 0, -1), mpp=BCCD_UM)
        objects = said["instances"] if isinstance(said, dict) else said
        rows = []
        for label, where in enumerate(boxes_of(objects.map), start=1):
            score = float(objects.scores[label - 1]) if objects.scores is not None else float(where[2] - where[0])
            rows.append((score, where))
        found.append(rows)
    report("network", found, truths)
    tried = {
        (index, level, grow): [colour_boxes(s, index, level, grow) for s in samples]
        for index in INDICES
        for level in ("once", "twice")
        for grow in (0.0, 0.6, 1.2)
    }
    best = max(tried, key=lambda key: average_precision(tried[key], truths))
    report(f"best colour threshold ({', '.join(map(str, best))})", tried[best], truths)


def boxes_of(labels: NDArray[Any]) -> list[list[float]]:
    """Return the box of each label 1..N."""
    from scipy import ndimage

    return [[w[1].start, w[0].start, w[1].stop, w[0].stop] for w in ndimage.find_objects(labels) if w is not None]


def report(name: str, found: Sequence[Sequence[tuple[float, list[float]]]], truths: Sequence[NDArray[Any]]) -> None:
    """Print AP50, and precision, recall and F1 of all boxes at IoU 0.5."""
    hits = 0
    for boxes, truth in zip(found, truths, strict=True):
        left = list(range(len(truth)))
        for _, box in sorted(boxes, reverse=True):
            for i in left:
                low, high = np.maximum(truth[i, :2], box[:2]), np.minimum(truth[i, 2:], box[2:])
                shared = float(np.prod(np.clip(high - low, 0, None)))
                both = float(np.prod(truth[i, 2:] - truth[i, :2])) + (box[2] - box[0]) * (box[3] - box[1]) - shared
                if shared / both >= 0.5:
                    hits += 1
                    left.remove(i)
                    break
    said, there = sum(map(len, found)), sum(map(len, truths))
    f1 = 2 * hits / max(1, said + there)
    print(
        f"{name}: AP50 {average_precision(found, truths):.3f}, precision {hits / max(1, said):.3f}, "
        f"recall {hits / max(1, there):.3f}, F1 {f1:.3f} ({there} white cells in {len(truths)} pictures)"
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


def others() -> list[NDArray[Any]]:
    """Return one (3, H, W) uint8 picture of each of the other phantoms, and of the pictures that belong together."""
    from zoo.data.sheet import flat

    stains = open_dataset("phantom-stains", split="train", arguments={"size": [288, 360], "positive": 0.5})[1]
    mif = open_dataset("phantom-mif", split="train", arguments={"size": [288, 360]})[1]
    volume = open_dataset("phantom-volume", split="val", arguments={"size": [32, 128, 160]})[1]
    slides = open_dataset("phantom-slide", split="val", arguments={"size": [384, 480]})
    wholes = [slides[i].image for i in (0, 3)]
    few = [mif.truth["mif"].channels.index(c) for c in ("Pan-CK", "CD45", "Hoechst")]
    pictures = [
        np.moveaxis(flat(mif.truth["mif"].data[few]), -1, 0),
        np.moveaxis(flat(volume.image, "CZYX"), -1, 0),
    ]
    return [stains.image, stains.truth["ihc"].data, *pictures, *wholes]


def sheet(given: argparse.Namespace) -> None:
    """Write a sheet: rows of phantom pictures and of real ones, whose licences allow it."""
    he = [s.image for s in fields("phantom-nuclei", 6, step=8, um=HE_UM, size=[256, 320], split="val")]
    real = open_dataset("dsb2018-he")
    smear = [s.image for s in fields("phantom-smear", 6, step=8, um=0.15, size=[240, 320], leukocytes=1.5, split="val")]
    bccd = open_dataset("bccd", split="train")
    rows = [
        ("phantom-multitask, -stains (HER2), -mif, -volume (brightest voxels), -slide", others()),
        (f"phantom-nuclei, {HE_UM} um", he),
        ("dsb2018-he (CC0)", [real[i].image for i in range(0, 66, 11)]),
        ("phantom-smear, 0.15 um", smear),
        ("BCCD at half size (MIT)", [bccd[i].image[:, ::2, ::2] for i in range(0, 180, 30)]),
    ]
    width, gap, head = 240, 6, 26
    lines = []
    for title, pictures in rows:
        tall = round(width * pictures[0].shape[1] / pictures[0].shape[2])
        cells = []
        for picture in pictures:
            small = cv2.resize(np.moveaxis(picture, 0, -1).copy(), (width, tall), interpolation=cv2.INTER_AREA)
            cells.append(cv2.copyMakeBorder(small, 0, gap, 0, gap, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
        line = np.concatenate(cells, 1)
        label = np.full((head, line.shape[1], 3), 255, np.uint8)
        cv2.putText(label, title, (2, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        lines += [label, line]
    cv2.imwrite(given.file, np.concatenate(lines)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(given.file)


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "tricks", "realism", "sheet", "bccd"))
    parser.add_argument("file", nargs="?", default="phantom.jpg", help="picture to write, or weights")
    parser.add_argument("--split", default="val", help="split of bccd (default val)")
    parser.add_argument("--count", type=int, default=24, help="fields of each kind (default 24)")
    given = parser.parse_args()
    {"speed": speed, "tricks": tricks, "realism": realism, "sheet": sheet, "bccd": bccd}[given.part](given)


if __name__ == "__main__":
    main()
