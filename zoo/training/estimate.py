"""What a run will cost, from a few real steps; and the largest batch that fits."""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from zoo.errors import UserError
from zoo.families.base import Family
from zoo.nn.precision import slow
from zoo.recipe import Data, Loading, Recipe, Stage
from zoo.training import feed, setup
from zoo.training.context import StepContext, movers_of, step_seed
from zoo.training.ema import Average
from zoo.training.folder import size
from zoo.training.layout import autocast_of, laid_out, memory_format
from zoo.training.log import clock
from zoo.types import Batch


@dataclass(frozen=True)
class DryRun:
    """What a run will cost: seconds, bytes."""

    parameters: int
    batches_an_epoch: int
    epochs: int
    seconds_a_batch: float
    seconds_waiting: float
    memory: int
    disk: int
    device: str
    arithmetic: str

    @property
    def seconds_an_epoch(self) -> float:
        """Training only; validation comes on top."""
        return self.batches_an_epoch * self.seconds_a_batch

    def __str__(self) -> str:
        whole = clock(self.epochs * self.seconds_an_epoch)
        waiting = self.seconds_waiting / max(1e-9, self.seconds_a_batch)
        rows = [
            ("parameters", f"{self.parameters / 1e6:.2f} million"),
            ("epoch", f"{self.batches_an_epoch} batches, {clock(self.seconds_an_epoch)} without validation"),
            ("run", f"{self.epochs} epochs, {whole} without validation"),
            ("batch", f"{1000 * self.seconds_a_batch:.0f} ms, {waiting:.0%} of it waiting for data"),
            ("memory", f"{size(self.memory)} at most, on {self.device}"),
            ("arithmetic", self.arithmetic),
            ("disk", f"{size(self.disk)} for weights and checkpoints"),
        ]
        return "\n".join(f"{name:<12}{text}" for name, text in rows)


def arithmetic(recipe: Recipe, device: torch.device) -> str:
    """Return the precision of a recipe's trainings, and what a CPU without it makes of it."""
    asked = list(dict.fromkeys(stage.train.precision for stage in recipe.all_stages))
    emulated = any(slow(precision, device) for precision in asked)
    return "32 (this processor has no bfloat16)" if emulated else ", ".join(asked)


def disk(recipe: Recipe, family: Family) -> int:
    """Return the bytes that a run writes at most: weights, a checkpoint, and a second one while it is replaced."""
    weights = sum(int(t.numel() * t.element_size()) for t in family.state_dict().values())
    train = max((stage.train for stage in recipe.all_stages), key=lambda t: t.keep)
    average = any(stage.train.ema for stage in recipe.all_stages)
    gradients = any(stage.train.accumulate > 1 for stage in recipe.all_stages)
    full: int = weights * (3 + average + gradients)
    kept = 2 + (train.keep if train.keep > 1 else 0)
    return 2 * full + (kept + 1) * weights + 10_000_000


def check_stage(family: Family, stage: Stage, data: Data) -> None:
    """Raise `UserError` where a stage's players, schedules or frozen parts are wrong; changes nothing."""
    train = stage.train
    schedules = [train.schedule, *(p.schedule for p in train.players.values() if p.schedule)]
    waiting = "early_stop" if train.early_stop else "schedule plateau"
    if data.validate_ is None and (train.early_stop or any(s.name == "plateau" for s in schedules)):
        raise UserError(f"data.validate: {waiting} waits for validations, and there are none. Write down what to use.")
    free = [n for n, p in family.named_parameters() if p.requires_grad]
    setup.Frozen(family, stage, free)
    try:
        movers = movers_of(family, setup.procedure_of(family, stage.train), stage.train, False)
        for mover in movers.values():
            mover.schedule.factor(0, 10)
    finally:
        for name, parameter in family.named_parameters():
            parameter.requires_grad_(name in free)


class Trial:
    """A family that does steps on given batches, as a run would, and is thrown away."""

    def __init__(self, recipe: Recipe, family: Family, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        stage = recipe.all_stages[0]
        self.family = copy.deepcopy(family).to(device).train()
        free = [n for n, p in self.family.named_parameters() if p.requires_grad]
        setup.Frozen(self.family, stage, free).apply()
        self.procedure = setup.procedure_of(self.family, stage.train)
        fp16 = stage.train.precision == "16" and device.type == "cuda"
        self.autocast = autocast_of(stage.train.precision, device)
        self.format = memory_format(self.family, stage.train.channels_last)
        average = Average(self.family, stage.train.ema) if stage.train.ema else None
        movers = movers_of(self.family, self.procedure, stage.train, fp16)
        self.context = StepContext(movers, accumulate=stage.train.accumulate, average=average)
        self.done = 0

    def step(self, batch: Batch) -> float:
        """Do one step and return its seconds."""
        began = time.perf_counter()
        self.context.begin(self.done, 0.0, step_seed(self.recipe.seed, self.done, 0))
        with self.autocast():
            self.procedure.step(self.family, laid_out(batch, self.format), self.context)
        self.context.flush()
        self.done += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def memory(self) -> int:
        """Return the most bytes that were in use."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


PATIENCE = 60.0
"""Seconds after which a dry run of a large network does with the steps that it has done, the first not counted."""


def dry_run(recipe: Recipe, device: torch.device, steps: int = 5) -> DryRun:
    """Do two steps to warm up and `steps` to measure, of the first stage, and return what the run will cost.

    Of a network whose steps take long it does fewer, but two at least.
    """
    stage = recipe.all_stages[0]
    family = setup.create(recipe)
    check_stage(family, stage, stage.data or recipe.data)
    trial = Trial(recipe, family, device)
    source = feed.Feed(stage.data or recipe.data, trial.family, seed=recipe.seed, device=device)
    batches, epoch = source.epoch(0), 0
    waits, works = [], []
    warm, start = 2, time.perf_counter()
    try:
        for number in range(steps + warm):
            if number > 1 and time.perf_counter() - start > PATIENCE:
                warm = min(warm, number - 1)
                break
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                epoch += 1
                batches = source.epoch(epoch)
                batch = next(batches)
            waits.append(time.perf_counter() - began)
            works.append(trial.step(batch))
        memory = trial.memory()
    finally:
        source.close()
    waiting = statistics.median(waits[warm:])
    return DryRun(
        parameters=sum(p.numel() for p in family.parameters()),
        batches_an_epoch=len(source),
        epochs=sum(s.train.epochs for s in recipe.all_stages),
        seconds_a_batch=waiting + statistics.median(works[warm:]),
        seconds_waiting=waiting,
        memory=memory,
        arithmetic=arithmetic(recipe, trial.device),
        disk=disk(recipe, family),
        device=str(device),
    )


def with_batch(recipe: Recipe, device: torch.device, world: int) -> tuple[Recipe, int]:
    """Return the recipe with the largest batch that fits, and that batch (over all devices)."""
    data = recipe.all_stages[0].data or recipe.data
    found = find_batch(recipe, setup.create(recipe), data.train, device, world)
    values = recipe.values()
    for part in [values, *values["stages"]]:
        if part.get("train"):
            part["train"]["find_batch"] = False
        if part.get("data"):
            part["data"]["train"]["batch"] = found
    return Recipe.model_validate(values), found


def find_batch(recipe: Recipe, family: Family, loading: Loading, device: torch.device, world: int = 1) -> int:
    """Return the largest batch, over all devices, that trains: doubled from the recipe's until memory runs out.

    An accelerator is tried until it says that it is full. On a CPU memory is predicted from the growth so far, because
    the system would rather end the process than refuse. Raises `UserError` where the recipe's own batch does not fit.
    """
    batch, fitting = loading.batch, 0
    samples = len(
        feed.open_loader(loading.model_copy(update={"batch": 1, "workers": 0}), family, seed=0, training=True)
    )
    sizes: list[tuple[int, int]] = []
    while batch <= samples:
        one = loading.model_copy(update={"batch": batch, "workers": 0})
        loader = feed.open_loader(one, family, seed=recipe.seed, training=True, rank=0, world=world)
        trial = Trial(recipe, family, device)
        try:
            item = next(iter(loader.epoch(0))).to(device)
            for _ in range(2):
                trial.step(item)
        except (torch.OutOfMemoryError, MemoryError):
            del trial
            _release(device)
            break
        fitting = batch
        sizes.append((batch, trial.memory()))
        del trial
        _release(device)
        if device.type != "cuda" and _predicted(sizes) > 0.8 * _available(sizes[0][1]):
            break
        batch *= 2
    if not fitting:
        raise UserError(
            f"train.find_batch: not even {loading.batch} samples a step fit into memory. Lower data.train.batch."
        )
    return fitting


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _predicted(sizes: list[tuple[int, int]]) -> float:
    """Return the memory that twice the last batch will take, in a straight line through the last two."""
    if len(sizes) == 1:
        return 2.0 * sizes[0][1]
    (b0, m0), (b1, m1) = sizes[-2:]
    return m1 + (m1 - m0) / (b1 - b0) * b1


def _available(used: int) -> float:
    """Return the memory that this process may come to use."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("MemAvailable"):
                    return 1024.0 * int(line.split()[1]) + used
    except OSError:
        pass
    return 8e9
