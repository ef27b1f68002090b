"""A training step of ours beside a bare loop over the same network, optimiser and batches.

    python benchmarks/training_step.py [--size 256] [--batch 4] [--rounds 15] [--threads 1] [--family unet]

Rounds of a few steps each are interleaved (ours, bare, bare, ours, ...), and the median over rounds of bare / ours is
printed: 1 means that the loop costs nothing; the aim is at least 0.95. Both are channels-last and keep no average.
Beyond the bare loop ours reseeds the random state, sets the rate, normalises through the family's `prepare`, watches
for losses that are no number and records terms.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch

from zoo.families.base import Family
from zoo.recipe import Recipe
from zoo.training import setup
from zoo.training.context import StepContext, movers_of, step_seed
from zoo.training.feed import Feed
from zoo.training.log import Terms
from zoo.training.loop import laid_out, memory_format
from zoo.types import Batch


def recipe(family: str, size: int, batch: int) -> Recipe:
    """Return a recipe on the phantom."""
    loading = {"datasets": "phantom-nuclei:train", "size": [size, size], "batch": batch, "samples": batch, "workers": 0}
    values = {"zoo": 1, "name": "benchmark", "summary": "A step.", "family": family, "data": {"train": loading}}
    return Recipe.model_validate({**values, "train": {}})


def ours(family: Family, made: Recipe) -> Callable[[Batch], None]:
    """Return our step, as `zoo.training.loop` does it."""
    train = made.all_stages[0].train
    chosen = memory_format(family, True)
    procedure = family.procedure()
    context = StepContext(movers_of(family, procedure, train, False), accumulate=1)
    terms = Terms()
    count = 0

    def step(batch: Batch) -> None:
        nonlocal count
        rates = {name: mover.set_rate(count, 10_000) for name, mover in context.movers.items()}
        family.train()
        context.begin(count, count / 10_000, step_seed(0, count, 0))
        procedure.step(family, laid_out(batch, chosen), context)
        context.flush()
        terms.add(count, rates, context.terms)
        count += 1

    return step


def bare(family: Family) -> Callable[[Batch], None]:
    """Return a step as anybody would write it."""
    family.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(family.parameters(), lr=1e-3, weight_decay=1e-4)
    family.train()
    mean = torch.tensor(family.spec.encoding.mean).view(1, -1, 1, 1)
    std = torch.tensor(family.spec.encoding.std).view(1, -1, 1, 1)

    def step(batch: Batch) -> None:
        image = (batch.inputs["image"].float() / 255 - mean) / std
        maps = family.forward({"image": image.contiguous(memory_format=torch.channels_last)})
        loss = torch.stack(list(family.loss(maps, batch, 0.0).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[Batch], None], batch: Batch, steps: int) -> float:
    """Return the seconds of one step, the mean of a few."""
    began = time.perf_counter()
    for _ in range(steps):
        step(batch)
    return (time.perf_counter() - began) / steps


def main() -> int:
    """Print both medians and their ratio; exit 1 where it is below the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 256), ("batch", 4), ("rounds", 15), ("steps", 2), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--family", default="unet")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    made = setup.resolve(recipe(args.family, args.size, args.batch))
    family = setup.create(made)
    batch = next(iter(Feed(made.data, family, seed=0).epoch(0)))
    steps = {"ours": ours(copy.deepcopy(family), made), "bare": bare(copy.deepcopy(family))}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        seconds(step, batch, 2)
    for number in range(args.rounds):
        for name in sorted(steps, reverse=number % 2 == 0):
            found[name].append(seconds(steps[name], batch, args.steps))
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratio = statistics.median(b / o for b, o in zip(found["bare"], found["ours"], strict=True))
    print(
        f"{args.family}, {args.batch} x {args.size}², {args.threads} thread(s), {args.rounds} rounds, "
        f"torch {torch.__version__}"
    )
    print(f"ours {1000 * medians['ours']:.1f} ms   bare {1000 * medians['bare']:.1f} ms   bare / ours {ratio:.3f}")
    return 0 if ratio >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
