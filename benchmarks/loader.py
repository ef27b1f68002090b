"""Do the loader's workers keep a training fed?

    python benchmarks/loader.py [RECIPE] [--workers 2] [--steps 20] [--rounds 3] [--threads 1] [key=value ...]

Three things are measured in turn, `rounds` times, and the medians are printed: a training step on a batch that is
already there (what the network consumes), the loader alone (what the workers give), and steps fed by the loader, which
compete with it for the cores, with the share of time that they wait. "fed" is the time of bare steps over that of fed
ones: 1.00 means that the network never waits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch

from zoo.data.loading import Loader
from zoo.recipe import load_recipe
from zoo.training import setup
from zoo.training.estimate import Trial, check_stage
from zoo.training.feed import open_loader
from zoo.types import Batch


def endless(loader: Loader) -> Iterator[Batch]:
    """Yield one epoch after another."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = load_recipe(given.recipe, given.overrides)
    stage = recipe.all_stages[0]
    data = stage.data or recipe.data
    family = setup.create(recipe)
    check_stage(family, stage, data)
    trial = Trial(recipe, family, torch.device("cpu"))
    loader = open_loader(data.train.model_copy(update={"workers": given.workers}), family, seed=0, training=True)
    began = time.perf_counter()
    batches = [batch for _, batch in zip(range(len(loader)), endless(loader), strict=False)]
    first = time.perf_counter() - began
    print(f"{recipe.name}: batch {data.train.batch}, {given.workers} workers, {given.threads} threads")
    print(f"first epoch (fills the cache): {len(batches) * data.train.batch / first:.0f} samples/s")
    stream = endless(loader)
    for _ in range(3):
        trial.step(next(stream))
    bare, alone, fed, waits = [], [], [], []
    for _ in range(given.rounds):
        began = time.perf_counter()
        for step in range(given.steps):
            trial.step(batches[step % len(batches)])
        bare.append((time.perf_counter() - began) / given.steps)
        began, waited = time.perf_counter(), 0.0
        for _ in range(given.steps):
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            trial.step(batch)
        fed.append((time.perf_counter() - began) / given.steps)
        waits.append(waited / given.steps / fed[-1])
        began = time.perf_counter()
        for _ in range(given.steps):
            next(stream)
        alone.append((time.perf_counter() - began) / given.steps)
    loader.close()
    size = data.train.batch
    step, gives, both = (statistics.median(times) for times in (bare, alone, fed))
    print(f"bare step: {step * 1e3:.0f} ms, {size / step:.0f} samples/s")
    ratio, waiting = step / gives, 100 * statistics.median(waits)
    print(f"loader alone: {gives * 1e3:.0f} ms a batch, {size / gives:.0f} samples/s, {ratio:.1f} x what a step eats")
    print(f"fed step: {both * 1e3:.0f} ms, waiting {waiting:.1f} % of the time, fed {step / both:.2f}")


if __name__ == "__main__":
    main()
