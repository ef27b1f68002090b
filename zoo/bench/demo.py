"""The demonstration: train the quickstart, judge it on images it has never seen, predict on real ones, write a report.

Everything it uses comes with the installation: synthetic tissue, and the real images inside stardist and scikit-image.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.bench import pictures, report
from zoo.bench.report_tables import text
from zoo.bench.results import Results
from zoo.bench.run import bench
from zoo.data.datasets import open_dataset
from zoo.data.samples import write_samples
from zoo.errors import UserError
from zoo.families.base import Family
from zoo.families.build import load
from zoo.families.score import Task
from zoo.inference.files import predict_files
from zoo.recipe import load_recipe
from zoo.training.check import load_recipe_for_training
from zoo.training.run import train

RECIPE = "quickstart"
FLOORS = {"phantom-nuclei": 0.88, "stardist-2d": 0.85}
"""Dice below which the demonstration counts as failed: below what it reaches, above what Otsu's threshold does."""
REAL = ("stardist-2d", "stardist-he", "skimage-ihc")
"""Real images that come with installed packages."""
PHANTOM_FIELDS = 40
"""Fields of the phantom that are judged: five slides."""


@dataclass(frozen=True)
class Demo:
    """What the demonstration found: dataset -> Dice, where the report is, what stayed below its floor, what failed."""

    dice: dict[str, float]
    report: Path
    below: tuple[str, ...]
    failures: tuple[str, ...] = ()


def demo(out: Path, *, overrides: Sequence[str] = (), say: Callable[[str], None] = lambda _: None) -> Demo:
    """Run the demonstration into the folder `out`, replacing an earlier one there; return what it found.

    `overrides` change the recipe, as in `zoo train`. Raises `UserError` where `out` holds something else.
    """
    _clear(out)
    run = out / RECIPE
    recipe = load_recipe_for_training(RECIPE, [f"output={run}", *overrides])
    say(f"1 of 3: train {RECIPE} ({recipe.summary})")
    train(recipe, progress=True)
    say("2 of 3: judge it on images it has never seen")
    results = bench([str(run)], _datasets(), out / "bench", limit=PHANTOM_FIELDS, mpp="native", say=say)
    say("3 of 3: predict on real images")
    for name in REAL:
        list(write_samples(name, out / "images" / name, count=1))
    files = [p for n in REAL for p in sorted((out / "images" / n).iterdir()) if len(p.suffixes) == 1]
    family = load(run)
    summary = predict_files(family, files, out / "predictions", mpp="native", progress=False)
    page = _report(family, results)
    dice = dice_of(results)
    below = tuple(name for name, floor in FLOORS.items() if not dice.get(name, math.nan) >= floor)
    failed = [f.error for f in results.failures] + [str(failure["error"]) for failure in summary.failures]
    return Demo(dice, page, below, tuple(failed))


def _clear(out: Path) -> None:
    """Remove an earlier demonstration; anything else in the folder is left alone and is an error."""
    marker = out / ".zoo-demo"
    if out.exists() and any(out.iterdir()) and not marker.is_file():
        raise UserError(f"{out}: the folder holds something else. Choose another with --out")
    try:
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        marker.write_text("made by zoo demo, which replaces this folder\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}). Choose another with --out") from None


def _datasets() -> list[str]:
    """Return what the recipe says it is to be judged on."""
    sources = load_recipe(RECIPE).evaluate.datasets
    return [f"{s.name}:{s.split}" if "split" in s.model_fields_set else s.name for s in sources]


def dice_of(results: Results) -> dict[str, float]:
    """Return dataset -> mean Dice of the trained model's semantic map."""
    rows = [row for row in results.rows if not row.baseline and row.kind == "semantic"]
    return {row.dataset: row.means["dice"].value for row in rows}


def _report(family: Family, results: Results) -> Path:
    """Write the benchmark's page again, with what it is about and the real images that nobody labelled."""
    lead = (
        "Recipe quickstart, trained a moment ago: a small U-Net that has seen nothing but synthetic tissue, as H&E and "
        "made to look like fluorescence. Judged on synthetic tissue of other seeds and on a real fluorescence image, "
        "shown on two real images that nobody labelled. Brown stain it has never met: skimage-ihc shows where it ends."
    )
    shown = [_section(family, results.out, name) for name in REAL if not open_dataset(name).card.truths]
    return report.write(results, "Histozoo: the demonstration", lead, "\n".join(shown))


def _section(family: Family, folder: Path, name: str) -> str:
    """Return HTML with the image of a dataset without truths beside what the model says of it."""
    dataset = open_dataset(name)
    sample = dataset[0]
    image = pictures.as_rgb8(sample.image)
    files = {"image": f"pictures/{name}/image.jpg"}
    pictures.write_jpeg(folder / files["image"], pictures.fitted(image))
    found = family.predict(np.moveaxis(sample.image, 0, -1), mpp="native")  # type: ignore[arg-type]
    for output, prediction in (found if isinstance(found, dict) else {next(iter(family.spec.outputs)): found}).items():
        spec = family.spec.outputs[output]
        task = Task(output, spec.kind, "", spec.classes, spec.classes, (), colours=spec.colours)
        files[output] = f"pictures/{name}/{output}.jpg"
        pictures.write_jpeg(folder / files[output], pictures.drawn(image, prediction, task, ours=True))
    summary = text(dataset.card.summary)
    return f"<section>\n<h2>{text(name)}</h2>\n<p>{summary}</p>\n{report.figures(folder, files)}\n</section>"
