"""What drawn pictures are good for: fidelity to masks, copies of training images, distances of sets, and training with
them.

    python benchmarks/diffusion_use.py --generator runs/tissue-diffusion-pixel-unet --data phantom --out runs/use
    python benchmarks/diffusion_use.py --generator runs/nuclei-diffusion-pixel-unet --data dsb2018-he --out runs/use-he

Pieces (`--only` chooses): `judge`, a segmenter of nuclei trained on the real training images; `fidelity`, its Dice on
pictures drawn from masks of the test split, against their own masks and against shuffled ones, beside the same on real
pictures; `copies`, the distance of each drawn picture to the nearest training crop, beside that of training crops to
each other, and copies.png, the drawn pictures that come nearest above what they come nearest to; `sets`, FID and KID of
drawn and of real pictures by two named encoders; `use`, segmenters trained on 4, 16 and 64 real images, alone, with
pairs drawn from the masks of these images, and with pairs drawn from the masks of the whole training split, judged on
the test split. Every picture and every training that is finished is kept, so that the same command goes on where it was
stopped; the table at the end is made of what there is. To try all of it:

    python benchmarks/diffusion_use.py --generator WEIGHTS --out DIR --only copies sets use --steps 2 --crops 8 \\
        --fields 8 --counts 4 --seeds 0 --pictures 4 --batches 4
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusion_tables import show_copies, show_fidelity, show_sets, show_use, write_numbers
from numpy.typing import NDArray
from PIL import Image

from zoo.data.crop import crop
from zoo.data.datasets import open_dataset
from zoo.encoders import build_encoder
from zoo.families import build, score
from zoo.families.diffusion.conditions import make_targets
from zoo.inference.generate import Drawing, Job, draw, generate
from zoo.inference.predict import predict_array
from zoo.inference.wishes import Asked, Wish
from zoo.metrics.features import fid, kid_of
from zoo.recipe import Recipe
from zoo.training.run import resume, train
from zoo.types import Sample

CARDS = ("nuclei-unet-mobile",)
"""Models whose encoder measures distances of sets; beside them an encoder that was never trained."""
COUNTS = [4, 16, 64]
ARMS = ("real", "own", "pool")
"""Real images alone; with pairs drawn from their own masks; with pairs drawn from the masks of the training split."""
SIDE = 64
JITTER: list[Any] = [
    "flips",
    "rotate90",
    {"name": "affine", "arguments": {"scale": [0.8, 1.25], "rotate": 20, "p": 0.5}},
    {"name": "stain-jitter", "arguments": {"scale": 0.2, "shift": 0.03, "p": 0.5}},
]


@dataclass(frozen=True)
class Data:
    """A dataset: its name, the reader's arguments, its foreground classes, and what counts as one nucleus class."""

    name: str
    arguments: dict[str, Any]
    merge: dict[str, list[str]]
    side: int

    def source(self, split: str, limit: int | None = None, weight: float = 1.0) -> dict[str, Any]:
        """Return the entry of a recipe."""
        found = {"name": self.name, "split": split, "arguments": self.arguments, "weight": weight}
        return found | ({"limit": limit} if limit else {})

    def open(self, split: str) -> Any:
        return open_dataset(self.name, split=split, arguments=self.arguments)


DATA = {
    "phantom": Data(
        "phantom-nuclei",
        {"train": 480, "test": 48},
        {"nucleus": ["epithelial", "lymphocyte", "fibroblast"]},
        128,
    ),
    "dsb2018-he": Data("dsb2018-he", {}, {}, 128),
}


@dataclass
class Work:
    """What every piece needs."""

    data: Data
    generator: str
    out: Path
    drawing: Drawing
    batches: int
    pictures: int
    judge: str = ""
    crops: int = 1500
    _family: Any = None

    @property
    def family(self) -> Any:
        """The generator."""
        if self._family is None:
            self._family = build.load(self.generator)
        return self._family

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a piece's result, made once."""
        path = self.out / "pieces" / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            began = time.process_time()
            value = {"value": make(), "seconds": round(time.process_time() - began, 1)}
            part = path.with_suffix(".part")
            part.write_text(json.dumps(value) + "\n", encoding="utf-8")
            part.replace(path)
            print(f"{name}: {value['seconds']} s of one core", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))["value"]


# --- crops and drawn pictures -----------------------------------------------------------------------------------------


def crops(samples: Any, side: int) -> Iterator[Sample]:
    """Yield crops of `side` pixels that do not overlap, row by row."""
    for index in range(len(samples)):
        sample = samples[index]
        height, width = sample.shape
        for y in range(0, height - side + 1, side):
            for x in range(0, width - side + 1, side):
                cut = crop(sample, (y, x), (side, side))
                yield cut.with_(id=f"{sample.id}-{y}-{x}")


def some_crops(work: Work, split: str, most: int, filled: float = 0.0) -> list[tuple[Sample, dict[str, Any]]]:
    """Return up to `most` crops of a split, evenly spread, with their masks; `filled`: least share of nuclei."""
    dataset = work.data.open(split)
    maker = make_targets(work.family.options, dataset.card)
    found = []
    for sample in crops(dataset, SIDE):
        told = maker(sample)
        if (told["mask"] > 0).mean() >= filled:
            found.append((sample, told))
    most = min(most, work.crops)
    step = max(1, len(found) // most)
    return found[::step][:most]


def drawn(work: Work, name: str, some: Sequence[tuple[Sample, dict[str, Any]]]) -> NDArray[np.uint8]:
    """Return (N, H, W, 3), a picture a mask; kept in pieces of 32."""
    family, parts = work.family, []
    usual = family.options.sampling
    record = {
        "steps": work.drawing.steps or usual.steps,
        "guidance": usual.guidance if work.drawing.guidance is None else work.drawing.guidance,
        "sampler": usual.sampler,
    }
    for begin in range(0, len(some), 32):
        path = work.out / "drawn" / f"{name}-{begin:05d}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            jobs = [
                Job(Wish(sample.id, (SIDE, SIDE), told, {"sha256": sample.id}), 0, record)
                for sample, told in some[begin : begin + 32]
            ]
            np.save(path, np.stack(draw(family, work.drawing, jobs)))
        parts.append(np.load(path))
    return np.concatenate(parts)


def pictures_of(some: Sequence[tuple[Sample, dict[str, Any]]]) -> NDArray[np.uint8]:
    """Return (N, H, W, 3) real pictures."""
    return np.stack([np.moveaxis(sample.image, 0, -1) for sample, _ in some])


# --- segmenters -------------------------------------------------------------------------------------------------------


def segmenter(work: Work, name: str, sources: Sequence[dict[str, Any]], batches: int, seed: int) -> Any:
    """Return a U-Net of nuclei trained on 64 x 64 crops of these sources, half of each batch from each."""
    folder = work.out / "segmenters" / name
    values = {
        "zoo": 1,
        "name": "use",
        "summary": "Nuclei, for a benchmark.",
        "seed": seed,
        "output": str(folder),
        "family": "unet",
        "model": {
            "encoder": "mobilenetv3_small_100",
            "decoder": {"name": "unet", "arguments": {"channels": [96, 64, 48, 32, 16]}},
            "classes": ["background", "nucleus"],
            "merge": work.data.merge,
            "truth": "nuclei",
            "loss": [{"name": "cross_entropy"}, {"name": "dice"}],
            "instances": {"min_size": 20},
            "tile": SIDE,
            "margin": SIDE // 4,
        },
        "data": {
            "train": {
                "datasets": list(sources),
                "balance": "datasets",
                "size": [SIDE, SIDE],
                "batch": 16,
                "samples": 16 * (batches // 4),
                "augment": JITTER,
                "workers": 0,
            }
        },
        "train": {
            "epochs": 4,
            "optimizer": {"name": "adamw", "arguments": {"lr": 2e-3, "weight_decay": 1e-2}},
            "schedule": {"name": "cosine", "arguments": {"warmup": 0.05}},
            "clip": 1.0,
            "ema": 0.99,
            "precision": work.drawing.precision,
            "pictures_every": 0,
            "threads": 1,
        },
    }
    if (folder / "checkpoints" / "last.pt").is_file():
        resume(folder, progress=False)
    else:
        train(Recipe.model_validate(values), progress=False)
    return build.load(folder)


def judged(work: Work, model: Any) -> dict[str, list[Any]]:
    """Return metric -> a number an image of the test split, and the group of each.

    Tiles are as large as the patches of the training: at stride 32 those are two pixels wide, and what a norm learns
    there does not hold in larger ones.
    """
    dataset = work.data.open("test")
    found: dict[str, list[Any]] = {"dice": [], "pq": [], "group": []}
    tasks = {task.output: task for task in score.tasks(model, dataset.card, ("dice", "pq"))}
    for index in range(len(dataset)):
        sample = dataset[index]
        image = np.moveaxis(sample.image, 0, -1)
        said = predict_array(model, image, mpp="native", tile=SIDE, overlap=SIDE // 2, batch=32)
        semantic = score.score(tasks["semantic"], said["semantic"], sample.truth["nuclei"])
        objects = score.score(tasks["instances"], said["instances"], sample.truth["nuclei"])
        found["dice"].append(semantic["dice"])
        found["pq"].append(objects["pq"])
        found["group"].append(str(sample.group or sample.id))
    return found


def own_pairs(work: Work, count: int) -> Path:
    """Return the dataset of pairs drawn from the masks of the first `count` training images (0: of all of them)."""
    folder = work.out / "pairs" / ("pool" if not count else f"own-{count}")
    dataset = work.data.open("train")
    images = min(count or len(dataset), len(dataset), work.pictures)
    each = -(-work.pictures // images)
    wishes = work.out / "masks" / folder.name
    from zoo.inference import pairs

    wishes.mkdir(parents=True, exist_ok=True)
    maker, step = make_targets(work.family.options, dataset.card), max(1, len(dataset) // images) if not count else 1
    for index in range(0, images * step, step):
        sample = dataset[index]
        side = min(work.data.side, *sample.shape)
        y, x = ((n - side) // 2 for n in sample.shape)
        cut = crop(sample, (y, x), (side, side))
        told, truth = maker(cut), cut.truth["nuclei"]
        wish = Wish(sample.id.replace("/", "_"), (side, side), told, {}, truth.map)
        pairs.write_mask(wishes, f"{wish.stem}.png", wish, work.family)
    files = sorted(str(p) for p in (wishes / pairs.MASKS).iterdir())
    asked = Asked(masks=files, size=(work.data.side,) * 2 if files[0].endswith("json") else None)
    generate(work.family, asked, folder, count=each, drawing=work.drawing, pairs=True, progress=False)
    return folder


def use(work: Work, arm: str, count: int, seed: int) -> dict[str, list[Any]]:
    """Return what a segmenter says of the test split, trained on `count` real images in one of three ways."""
    real = work.data.source("train", count, 0.5 if arm != "real" else 1.0)
    sources = [real]
    if arm != "real":
        folder = own_pairs(work, count if arm == "own" else 0)
        sources.append({"name": str(folder), "split": "all", "weight": 0.5})
    return judged(work, segmenter(work, f"{arm}-{count}-{seed}", sources, work.batches, seed))


# --- pieces -----------------------------------------------------------------------------------------------------------


def the_judge(work: Work) -> Any:
    """Return a segmenter that was trained on real images: named weights, or one trained here on the training split."""
    if work.judge:
        return build.load(work.judge)
    return segmenter(work, "judge", [work.data.source("train")], 2 * work.batches, 0)


def fidelity(work: Work) -> dict[str, Any]:
    """Return Dice of the judge's nuclei to masks, of drawn and of real pictures: their own masks, and others'."""
    model = the_judge(work)
    some = some_crops(work, "test", 192, filled=0.05)
    masks = np.stack([told["mask"] > 0 for _, told in some])
    groups = [str(sample.group or sample.id) for sample, _ in some]
    others = np.roll(np.arange(len(some)), len(some) // 2)
    found: dict[str, Any] = {"groups": groups}
    for kind, pictures in (("drawn", drawn(work, "fidelity", some)), ("real", pictures_of(some))):
        said = [predict_array(model, picture, mpp="native")["semantic"].map > 0 for picture in pictures]
        found[kind] = [dice(s, m) for s, m in zip(said, masks, strict=True)]
        found[f"{kind}, shuffled masks"] = [dice(s, masks[o]) for s, o in zip(said, others, strict=True)]
    return found


def dice(said: Any, mask: Any) -> float:
    """Return twice the overlap over the sum; masks are never empty here."""
    return float(2 * (said & mask).sum() / max(1, said.sum() + mask.sum()))


def turned(pictures: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield pictures (N, H, W, 3) in the eight ways that augmentation shows them."""
    for turn in range(4):
        rotated = np.rot90(pictures, turn, (1, 2))
        yield rotated
        yield rotated[:, :, ::-1]


def small(pictures: NDArray[Any]) -> NDArray[np.float32]:
    """Return (N, 768) float32: pictures at 16 x 16 pixels, in [0, 1]."""
    count, side = len(pictures), pictures.shape[1] // 16
    means = pictures.reshape(count, 16, side, 16, side, 3).mean((2, 4)) / 255
    return np.asarray(means.reshape(count, -1), np.float32)


def nearest(
    a: NDArray[np.float32], b: NDArray[np.float32], forbidden: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return the root mean square distance of each of `a` to the nearest of `b` not forbidden to it, and its index."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    if forbidden is not None:
        square[forbidden] = np.inf
    return np.sqrt(np.maximum(square.min(1), 0) / a.shape[1]), square.argmin(1)


def copies(work: Work) -> dict[str, Any]:
    """Return distances to the nearest training crop (its eight views): of drawn, training and real test crops."""
    training = some_crops(work, "train", 1500)
    test = some_crops(work, "test", 192, filled=0.05)
    groups = np.array([sample.id.rsplit("-", 2)[0] for sample, _ in training])
    pictures, made = pictures_of(training), drawn(work, "fidelity", test)
    kinds = {
        "drawn": (small(made), None),
        "training": (small(pictures), groups[:, None] == groups[None]),
        "test": (small(pictures_of(test)), None),
    }
    found = {kind: np.full(len(values), np.inf, np.float32) for kind, (values, _) in kinds.items()}
    twins = np.zeros_like(made)
    for view in turned(pictures):
        there = small(view)
        for kind, (values, forbidden) in kinds.items():
            distance, index = nearest(values, there, forbidden)
            nearer = distance < found[kind]
            found[kind] = np.where(nearer, distance, found[kind])
            if kind == "drawn":
                twins[nearer] = view[index[nearer]]
    write_pairs(work.out / "copies.png", made, twins, np.argsort(found["drawn"])[:12])
    return {kind: values.tolist() for kind, values in found.items()}


def write_pairs(path: Path, upper: NDArray[np.uint8], lower: NDArray[np.uint8], which: NDArray[np.intp]) -> None:
    """Write pictures in a row, twice as large, each above its counterpart."""
    rows = [
        np.concatenate([np.pad(p, ((2, 2), (2, 2), (0, 0)), constant_values=255) for p in r[which]], 1)
        for r in (upper, lower)
    ]
    whole = np.concatenate(rows).repeat(2, 0).repeat(2, 1)
    Image.fromarray(np.ascontiguousarray(whole)).save(path)


def features(name: str, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (N, D): spatial means of the coarsest map of a named encoder."""
    if name in CARDS:
        model: Any = build.load(name)
        encoder = model.pyramid.encoder
    else:
        torch.manual_seed(0)
        encoder = build_encoder(name, weights="none").eval()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (encoder.mean, encoder.std))
    found = []
    with torch.inference_mode():
        for begin in range(0, len(pictures), 32):
            x = torch.from_numpy(pictures[begin : begin + 32]).permute(0, 3, 1, 2).float() / 255
            found.append(encoder((x - mean) / std).maps[-1].mean((2, 3)).numpy())
    return np.concatenate(found)


def sets(work: Work) -> dict[str, dict[str, float]]:
    """Return FID and KID to real training crops: of drawn pictures, and of real test pictures with the same masks."""
    test = some_crops(work, "test", 384)
    training = some_crops(work, "train", len(test))
    found: dict[str, dict[str, float]] = {"pictures": {"n": len(test)}}
    for name in (*CARDS, "resnet18"):
        encoder = name if name in CARDS else f"{name}, untrained"
        reference = features(name, pictures_of(training))
        for kind, pictures in (("drawn", drawn(work, "sets", test)), ("real test", pictures_of(test))):
            own = features(name, pictures)
            kid = kid_of(own, reference, subsets=50, size=min(100, len(own)))
            found[f"{encoder}: {kind}"] = {"fid": fid(own, reference), "kid": kid.value, "kid_sd": kid.deviation}
    return found


PIECES: dict[str, tuple[Callable[[Work], Any], Callable[[Any], None]]] = {
    "fidelity": (fidelity, show_fidelity),
    "copies": (copies, show_copies),
    "sets": (sets, show_sets),
}


def main() -> int:
    """Do what is left to do and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True, metavar="WEIGHTS")
    parser.add_argument("--data", choices=sorted(DATA), default="phantom")
    parser.add_argument("--out", type=Path, default=Path("runs/diffusion-use"))
    parser.add_argument("--only", nargs="+", choices=[*PIECES, "use"], default=[*PIECES, "use"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of drawing; default: the model's")
    parser.add_argument("--guidance", type=float, help="of drawing; default: the model's")
    parser.add_argument("--judge", default="", metavar="WEIGHTS", help="trained on real images; default: trained here")
    parser.add_argument("--batches", type=int, default=320, help="of training a segmenter")
    parser.add_argument("--pictures", type=int, default=128, help="pairs that are drawn for a segmenter")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="arithmetic of networks")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="real images of a segmenter")
    parser.add_argument("--crops", type=int, default=1500, help="at most so many in a set, to try it out")
    parser.add_argument("--fields", type=int, help="fields of each split of the phantom, to try it out")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    drawing = Drawing(chosen.steps, chosen.guidance, batch=16, precision=chosen.precision)
    data = DATA[chosen.data]
    if chosen.fields and chosen.data == "phantom":
        data = replace(data, arguments={"train": chosen.fields, "test": chosen.fields})
    work = Work(
        data, chosen.generator, chosen.out, drawing, chosen.batches, chosen.pictures, chosen.judge, chosen.crops
    )
    results = {name: work.kept(name, lambda n=name: PIECES[n][0](work)) for name in PIECES if name in chosen.only}
    if "use" in chosen.only:
        for seed in chosen.seeds:
            for count in chosen.counts:
                for arm in ARMS:
                    name = f"use-{arm}-{count}-{seed}"
                    work.kept(name, lambda a=arm, c=count, s=seed: use(work, a, c, s))
    for name, values in results.items():
        PIECES[name][1](values)
    if "fidelity" in results:
        write_numbers(work.out, data.name, results["fidelity"])
    if "use" in chosen.only:
        show_use(work.out, ARMS, chosen.seeds, chosen.counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
