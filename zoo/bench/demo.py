"""The demonstration: train the quickstart, judge it on images it has never seen, predict on real ones, write a report.

Everything it uses comes with the installation: synthetic tissue, and the real images inside stardist and scikit-image.
"""

from __future__ import annotations

import base64
import html
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.bench import report
from zoo.bench.results import Results
from zoo.bench.run import bench
from zoo.data.samples import write_samples
from zoo.errors import UserError
from zoo.families.build import load
from zoo.inference.files import predict_files
from zoo.recipe import load_recipe
from zoo.training.check import load_recipe_for_training
from zoo.training.run import train

RECIPE = "quickstart"
FLOORS = {"phantom-nuclei": 0.75, "stardist-2d": 0.70}
"""Dice below which the demonstration counts as failed: far below what it reaches, far above what a broken one does."""
REAL = ("stardist-2d", "stardist-he", "skimage-ihc")
"""Real images that come with installed packages."""
PHANTOM_FIELDS = 12


@dataclass(frozen=True)
class Demo:
    """What the demonstration found: dataset -> Dice, where the report is, what stayed below its floor."""

    dice: dict[str, float]
    report: Path
    below: tuple[str, ...]


def demo(out: Path, *, overrides: Sequence[str] = (), say: Callable[[str], None] = lambda _: None) -> Demo:
    """Run the demonstration into the folder `out`, replacing an earlier one there; return what it found.

    `overrides` change the recipe, as in `zoo train`. Raises `UserError` where `out` holds something else.
    """
    _clear(out)
    run = out / "run"
    recipe = load_recipe_for_training(RECIPE, [f"output={run}", *overrides])
    say(f"1 of 3: train {RECIPE} ({recipe.summary})")
    train(recipe, progress=True)
    say("2 of 3: judge it on images it has never seen")
    results = bench([str(run)], _datasets(), out / "bench", limit=PHANTOM_FIELDS, mpp="native", say=say)
    say("3 of 3: predict on real images")
    for name in REAL:
        list(write_samples(name, out / "images" / name, count=1))
    pictures = [p for n in REAL for p in sorted((out / "images" / n).iterdir()) if len(p.suffixes) == 1]
    summary = predict_files(load(run), pictures, out / "predictions", mpp="native", progress=False)
    if summary.failures:
        raise UserError("demo: " + "; ".join(failure["error"] for failure in summary.failures))
    dice = dice_of(results)
    lead = "The quickstart, trained a moment ago on synthetic tissue, on images it has never seen."
    page = report.write(results, "Histozoo: the demonstration", lead, _gallery(out / "predictions"))
    below = tuple(name for name, floor in FLOORS.items() if not dice.get(name, math.nan) >= floor)
    return Demo(dice, page, below)


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
    """Return dataset -> mean Dice of the trained model."""
    rows = [row for row in results.rows if not row.baseline and "dice" in row.means]
    return {row.dataset: row.means["dice"].value for row in rows}


def _gallery(folder: Path) -> str:
    """Return a section of HTML with the overlays of the real images inside it."""
    figures = []
    for path in sorted(folder.rglob("*.overlay.png")):
        data = base64.b64encode(path.read_bytes()).decode()
        name = html.escape(path.name.removesuffix(".overlay.png"))
        figures.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
        )
    return f"<section><h2>Real images</h2>\n{''.join(figures)}\n</section>" if figures else ""
