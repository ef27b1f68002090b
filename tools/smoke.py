"""The smoke test of an installation: it finds its recipes and cards, checks a recipe, builds, saves and loads a model,
predicts, trains two batches of the quickstart and judges them. Run it outside the checkout: `python smoke.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

SMALL = (
    "data.train.samples=8",
    "data.train.batch=4",
    "data.train.workers=1",
    "data.train.datasets.0.limit=2",
    "data.validate.datasets.0.limit=1",
    "train.epochs=1",
)


def main() -> int:
    """Return 0 where everything works; an exception says what does not."""
    import numpy as np

    import zoo
    from zoo.bench.run import bench
    from zoo.cards import dataset_files
    from zoo.families import build
    from zoo.recipe import load_recipe, recipe_files
    from zoo.training.check import check
    from zoo.training.run import train

    place = Path(zoo.__file__).resolve().parent
    for found in (recipe_files(), dataset_files()):
        assert found, f"{place} finds no recipes or cards"
    assert check("quickstart") == []
    model = zoo.create("unet", encoder="resnet10t", classes=["background", "gland"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "w.safetensors"
        build.save(model, file)
        prediction = zoo.load(file).predict(np.full((70, 90, 3), 200, np.uint8))
        recipe = load_recipe("quickstart", [*SMALL, f"output={folder}/run"])
        judged = bench([str(train(recipe, progress=False))], ["stardist-2d"], Path(folder) / "bench", limit=1)
        assert judged.status == 0
        assert (Path(folder) / "bench" / "report.html").is_file()
    assert prediction.map.shape == (70, 90)
    print(f"smoke test passed: histozoo {zoo.__version__} in {place}, {len(recipe_files())} recipes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
