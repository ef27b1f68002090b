"""Training a recipe: `train`, `resume`, `dry_run`.

The first process decides everything (resolved options, batch size), writes it into a new run folder, and starts the
others; every process then works from the folder, so that a run and its resumption read the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError, ZooError, full
from zoo.recipe import Recipe
from zoo.training import estimate, feed, launch, setup, shard
from zoo.training.estimate import DryRun
from zoo.training.folder import RunFolder, environment
from zoo.training.log import Progress
from zoo.training.loop import Run


def train(
    recipe: Recipe,
    *,
    devices: int | str = 1,
    nodes: int = 1,
    strategy: str = "auto",
    accelerator: str = "auto",
    progress: bool = True,
    command: Sequence[str] | None = None,
) -> Path:
    """Train a recipe and return its run folder.

    `devices`, `nodes` and `accelerator` are Lightning Fabric's; with several devices the command that started this
    process is started once a device. `strategy`: "auto", "ddp" (each device holds all weights) or "fsdp" (weights that
    learn, their gradients, moments and averages are spread over the devices). `command` is what environment.json
    records (default: sys.argv). Raises `UserError` before anything is started where something is wrong, `DataError`
    where an item cannot be used, `Interrupted` when the user stopped the run and its state is saved.
    """
    fabric = launch.open_fabric(devices, nodes, strategy, accelerator)
    folder = RunFolder(recipe.run_folder)
    spread = strategy == "fsdp"
    if spread:
        shard.refuse(recipe, fabric.world_size)
    with _threads_kept():
        if launch.is_first():
            _begin(fabric, recipe, folder, progress, command, spread)
        return _work(fabric, folder, progress, fresh=True, spread=spread)


def resume(
    run: Path | str,
    *,
    devices: int | str | None = None,
    nodes: int = 1,
    strategy: str = "auto",
    accelerator: str = "auto",
    progress: bool = True,
) -> Path:
    """Go on with a run as if it had never stopped, and return its folder.

    `devices` and `strategy` default to what the run began with; on another number the run goes on, but not bit for bit.
    The thread count of the beginning is kept. Raises as `train`.
    """
    folder = RunFolder(Path(run).expanduser())
    recipe, found, _ = folder.open()
    if devices is None:
        devices = max(1, found["world"] // nodes)
    fabric = launch.open_fabric(devices, nodes, strategy, accelerator)
    if launch.is_first() and fabric.world_size != found["world"]:
        Progress(progress).line(
            f"note: the run began on {found['world']} devices and goes on on {fabric.world_size}: "
            "the result will differ slightly"
        )
    spread = strategy == "fsdp" or (strategy == "auto" and bool(found.get("spread")) and fabric.world_size > 1)
    if spread:
        shard.refuse(recipe, fabric.world_size)
    with _threads_kept():
        return _work(fabric, folder, progress, fresh=False, spread=spread)


def dry_run(recipe: Recipe, *, accelerator: str = "auto", steps: int = 5) -> DryRun:
    """Do a few real steps of the first stage, write nothing, and return what the run will cost. Raises as `train`."""
    fabric = launch.open_fabric(1, 1, "auto", accelerator)
    with _threads_kept():
        _set_threads(recipe)
        return estimate.dry_run(setup.resolve(recipe), fabric.device, steps)


def _begin(
    fabric: Any, recipe: Recipe, folder: RunFolder, progress: bool, command: Sequence[str] | None, spread: bool
) -> None:
    folder.refuse_existing()
    resolved = setup.resolve(recipe)
    threads = _set_threads(resolved)
    family = setup.create(resolved)
    for stage in resolved.all_stages:  # mistakes in players, freezing and schedules are met before anything is written
        estimate.check_stage(family, stage, stage.data or resolved.data)
    if spread:
        shard.refuse_family(family, [setup.procedure_of(family, stage.train) for stage in resolved.all_stages])
    needed = estimate.disk(resolved, family)
    folder.refuse_little_space(needed)
    more: dict[str, Any] = {"spread": True} if spread else {}
    if any(stage.train.find_batch for stage in resolved.all_stages):
        resolved, more["batch_found"] = estimate.with_batch(resolved, fabric.device, fabric.world_size)
        Progress(progress).line(f"batch: {more['batch_found']} samples a step; the learning rate is as the recipe says")
    for said in dict.fromkeys(feed.seen_twice(stage.data or resolved.data) for stage in resolved.all_stages):
        if said:
            Progress(progress).line(f"beware: {said}")
    found = environment(str(fabric.device), fabric.world_size, threads, command, **more)
    folder.create(resolved, found)


def _set_threads(recipe: Recipe) -> int:
    wanted = recipe.all_stages[0].train.threads
    if wanted is not None:
        torch.set_num_threads(wanted)
    return torch.get_num_threads()


def _work(fabric: Any, folder: RunFolder, progress: bool, *, fresh: bool, spread: bool) -> Path:
    fabric.launch()
    recipe, found, state = folder.open()
    if fresh and state is not None:
        raise UserError(f"{folder.path}: a run is already there. Go on with it: zoo train --resume {folder.path}")
    torch.set_num_threads(int(found["threads"]))
    family = fabric.to_device(setup.create(recipe))
    if spread and not fresh:
        shard.refuse_family(family, [setup.procedure_of(family, stage.train) for stage in recipe.all_stages])
    try:
        Run(fabric, recipe, folder, family, state=state, show=progress, spread=spread).go()
    except OSError as error:
        if why := full(error):
            again = f"zoo train --resume {folder.path}"
            raise ZooError(f"{folder.path}: cannot be written ({why}). Make room, then go on with: {again}") from None
        raise
    return folder.path


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Give a caller's thread count back."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(folder: Path) -> dict[str, Any]:
    """Return environment.json of a run."""
    values: dict[str, Any] = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return values
