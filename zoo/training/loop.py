"""The loop: stages, epochs, batches. Its clock is batches; all that a step depends on is in a checkpoint or follows
from the clock."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.errors import DataError, Interrupted, UserError, ZooError
from zoo.families import build
from zoo.families.base import Family
from zoo.nn.precision import slow
from zoo.recipe import Recipe, Stage
from zoo.training import checkpoint, log, setup, standing
from zoo.training.best import Best
from zoo.training.context import StepContext, movers_of, step_seed
from zoo.training.ema import Average
from zoo.training.feed import Feed
from zoo.training.folder import RunFolder
from zoo.training.layout import autocast_of, laid_out, memory_format
from zoo.training.pictures import draw_panels
from zoo.training.shard import Shards, learning
from zoo.training.standing import Standing
from zoo.training.validate import Validation, lower_is_better, monitored
from zoo.types import Batch

ROWS = 50
"""Batches between rows of metrics.csv within an epoch."""


@dataclass
class Clock:
    """Where a run stands. `epoch` and `batch` count within the stage and the epoch; `epochs` and `batches` count from
    the beginning of the run; `stage_batch` from the beginning of the stage."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    stage_batch: int = 0
    epochs: int = 0
    batches: int = 0
    done: bool = False


class Stop:
    """Whether the user wants to stop: SIGINT and SIGTERM are noted and obeyed after the batch; the second one is
    obeyed at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context the signals are noted; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {s: signal.getsignal(s) for s in signals}

        def note(number: int, _frame: Any) -> None:
            self.asked = True
            signal.signal(number, before[signal.Signals(number)])

        for s in signals:
            signal.signal(s, note)
        try:
            yield
        finally:
            for s in signals:
                signal.signal(s, before[s])


class Run:
    """One process of a run, from its first batch or its last checkpoint to the end."""

    def __init__(
        self,
        fabric: Any,
        recipe: Recipe,
        folder: RunFolder,
        family: Family,
        *,
        state: dict[str, Any] | None,
        show: bool,
        spread: bool = False,
    ) -> None:
        """`spread`: whether what learns is cut over the processes (`zoo.training.shard`)."""
        self.fabric, self.recipe, self.folder, self.family = fabric, recipe, folder, family
        self.device: torch.device = fabric.device
        self.rank, self.world, self.first = fabric.global_rank, fabric.world_size, fabric.is_global_zero
        self.progress = log.Progress(show and self.first)
        self.clock = Clock(**state["clock"]) if state else Clock()
        self.state = state
        self.record = setup.record_of(recipe)
        self.hash = recipe.content_hash()
        self.stop = Stop()
        self.spread = spread
        self.shards: Shards | None = None
        self.free = [n for n, p in family.named_parameters() if p.requires_grad]
        self.table = log.Table(folder.metrics, self.clock.batches if state else None) if self.first else None
        self.loggers: list[Any] = []
        self.seconds = time.monotonic()
        self.sparing = checkpoint.Sparing(folder.last)

    # the run

    def go(self) -> None:
        """Train to the end. Raises `Interrupted` when the user stopped it and the state is saved."""
        if self.clock.done:
            self.progress.line(f"{self.folder.path}: the run is already finished")
            return
        if self.first:
            names = tuple(dict.fromkeys(n for s in self.recipe.all_stages for n in s.train.loggers))
            self.loggers = log.loggers(names, self.folder.path, self.recipe.name, self.recipe.values())
        if self.state:
            self.family.load_state_dict(self.state["family"])
        self._broadcast()
        if self.spread:
            self.shards = Shards(self.family, learning(self.recipe, self.free), self.device)
        with self.stop.listening():
            stages = self.recipe.all_stages
            self._announce()
            while self.clock.stage < len(stages):
                self._stage(stages[self.clock.stage])
                self._next_stage(len(stages))
        for logger in self.loggers:
            logger.finalize("success")
        kept = self.folder.best if self.folder.best.is_file() else self.folder.last
        self.progress.line(f"finished: {kept}")

    def _announce(self) -> None:
        count = sum(p.numel() for p in self.family.parameters()) / 1e6
        where = f"{self.world} x {self.device.type}" if self.world > 1 else str(self.device)
        what = f"goes on after batch {self.clock.batches}" if self.clock.batches else "begins"
        self.progress.line(f"{self.recipe.name} {what}: {count:.2f} million parameters on {where}")
        if any(slow(stage.train.precision, self.device) for stage in self.recipe.all_stages):
            self.progress.line("this processor has no bfloat16: computing in 32 bits, which is faster here")
        if beware := setup.narrow(self.recipe, self.family):
            self.progress.line(f"beware: {beware}")
        self.progress.line(f"run folder: {self.folder.path}")

    def _next_stage(self, stages: int) -> None:
        clock = self.clock
        self.clock = Clock(stage=clock.stage + 1, epochs=clock.epochs, batches=clock.batches)
        self.state = None
        if self.clock.stage == stages:
            self.clock.done = True
            if self.first:
                values = {"clock": asdict(self.clock), "world": self.world}
                checkpoint.save(self.folder.last_checkpoint, values)
                standing.tidy(self.folder.checkpoints)
        self._barrier()

    def _broadcast(self) -> None:
        if self.world > 1:
            with torch.no_grad():
                for value in (*self.family.parameters(), *self.family.buffers()):
                    value.copy_(self.fabric.broadcast(value.detach(), src=0))

    def whole(self) -> Any:
        """Return the context in which the module carries whole weights; every rank enters it together."""
        return nullcontext() if self.shards is None else self.shards.whole()

    def collect(self, value: Any) -> Any:
        """Return a value with whole tensors, on the first rank; every rank calls this."""
        return value if self.shards is None else self.shards.collect(value)

    def _barrier(self) -> None:
        if self.world > 1:
            self.fabric.barrier()

    # a stage

    def _stage(self, stage: Stage) -> None:
        work = StageWork(self, stage)
        try:
            if self.clock.batches == 0:
                work.rehearse()
            while not work.finished:
                self._epoch(work)
            if self.clock.stage + 1 == len(self.recipe.all_stages) and self.first and work.validation:
                self._calibrate(work.validation)
        finally:
            work.close()
        if work.average is not None:  # what is kept is what the next stage starts from
            work.average.keep()

    def _calibrate(self, validation: Validation) -> None:
        """Measure the operating point of the weights that are kept on the validation images, and store it with them."""
        if type(self.family).calibrate is Family.calibrate:
            return
        for path in (self.folder.last, self.folder.best):
            if not path.is_file():
                continue
            family = build.load(path, device=self.device)
            samples = validation.samples()
            with torch.inference_mode():
                options = family.calibrate(samples, lambda sample, f=family: validation.maps(f, sample))  # type: ignore[misc]
            if options is not None:
                build.with_options(path, options)
                before, after = family.options.model_dump(), options.model_dump()
                changed = [_told(k, v) for k, v in after.items() if v != before[k]]
                self.progress.line(f"{path.name}: measured on {len(samples)} validation images: {', '.join(changed)}")

    def _epoch(self, work: StageWork) -> None:
        clock = self.clock
        batches = work.feed.epoch(clock.epochs, clock.batch)
        self.progress.start(clock.batch)
        ended = False
        while not ended:
            try:
                batch = next(batches)
            except Exception as error:
                self._gave_up(work, error)
                raise
            work.step(batch)
            clock.batch, clock.stage_batch, clock.batches = clock.batch + 1, clock.stage_batch + 1, clock.batches + 1
            if clock.batches % ROWS == 0:
                work.row({})
            stopping = self._together(work)
            if work.average is not None:
                work.average.follow()
            ended = clock.batch >= len(work.feed) or clock.stage_batch >= work.total
            if ended:
                work.end_epoch()
            due = work.stage.train.checkpoint_every
            if ended or stopping or (due and clock.batches % due == 0):
                work.save()
            if stopping:
                how = Interrupted(self._how(f"stopped after batch {clock.batches}"))
                raise how if self.first else SystemExit(how.status)
            title = f"{work.title} epoch {clock.epoch + 1}/{work.epochs}"
            if not ended:
                self.progress.step(title, clock.batch, len(work.feed), work.terms.means())

    def _together(self, work: StageWork) -> bool:
        """Make running statistics the mean over ranks, and agree on whether to stop: one collective a batch.

        Raises `ZooError` where a loss is no number on any rank.
        """
        failed = work.terms.failure is not None
        if self.world == 1:
            if failed:
                raise ZooError(str(work.terms.failure))
            return self.stop.asked
        buffers = [b for b in self.family.buffers() if b.is_floating_point()]
        flags = torch.tensor([float(self.stop.asked), float(failed)], device=self.device)
        flat = work.all_reduce(torch.cat([*(b.reshape(-1).float() for b in buffers), flags]))
        start = 0
        for buffer in buffers:
            buffer.copy_(flat[start : start + buffer.numel()].view(buffer.shape))
            start += buffer.numel()
        if flat[-1] > 0:
            words = next(filter(None, work.gather(work.terms.failure)))
            raise ZooError(words) if self.first else SystemExit(ZooError.status)
        return bool(flat[-2] > 0)

    def _gave_up(self, work: StageWork, error: Exception) -> None:
        """Save what there is when the data fail, and say how to go on below the error's own words."""
        if self.world > 1:
            return  # the other ranks are waiting elsewhere; the last checkpoint stands
        work.save(last=True)
        if self.stop.asked:
            raise Interrupted(self._how(f"stopped after batch {self.clock.batches}")) from None
        if isinstance(error, DataError | UserError):
            data = work.stage.data or self.recipe.data
            names = " ".join(dict.fromkeys(ref.name for ref in data.train.datasets))
            more = f". What else is broken says: zoo data check {names}" if isinstance(error, DataError) else ""
            saved = self._how(f"The state after batch {self.clock.batches} is saved{more}")
            raise type(error)(f"{error}\n{saved}") from error
        error.add_note(self._how(f"The state after batch {self.clock.batches} is saved"))

    def _how(self, what: str) -> str:
        return f"{what}. Go on with: zoo train --resume {self.folder.path}"

    def save_weights(self, path: Any, average: Average | None) -> None:
        """Write the weights that are kept: the running average where there is one. Every rank calls this."""
        if not self.first and self.shards is None:
            return
        with average.swapped() if average else nullcontext():
            state = self.collect(self.family.state_dict())
        if self.first:
            build.save(
                self.family,
                path,
                state=state,
                recipe=self.recipe.name,
                recipe_hash=self.hash,
                seed=str(self.recipe.seed),
                trained_on=self.record.trained_on,
                validated_on=self.record.validated_on,
                started_from=self.record.started_from,
            )


class StageWork:
    """A stage at work: its feed, players, average, validation; and how it is saved and taken up again."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self.run, self.stage, self.clock = run, stage, run.clock
        train, family, recipe = stage.train, run.family, run.recipe
        self.title = stage.name if recipe.stages else recipe.name
        resumed = run.state if run.state and run.state.get("context") else None
        if train.weights and not resumed:
            run.progress.line(setup.start_from(family, train.weights))
        self.frozen = setup.Frozen(family, stage, run.free)
        self.procedure = setup.procedure_of(family, train)
        fp16 = train.precision == "16" and run.device.type == "cuda"
        self.context = StepContext(
            movers_of(family, self.procedure, train, fp16),
            accumulate=train.accumulate,
            all_reduce=self.all_reduce if run.world > 1 and run.shards is None else None,
            shards=run.shards,
        )
        self.average = Average(family, train.ema) if train.ema else None
        self.context.average = self.average
        self.autocast = autocast_of(train.precision, run.device)
        self.format = memory_format(family, train.channels_last, weights=run.shards is None)
        data = stage.data or recipe.data
        place: dict[str, Any] = {"seed": recipe.seed, "rank": run.rank, "world": run.world}
        self.feed = Feed(data, family, device=run.device, **place)
        self.total = train.epochs * len(self.feed)
        if train.batches is not None:
            self.total = min(self.total, train.batches)
        self.epochs = -(-self.total // len(self.feed))
        self.validation = Validation(data.validate_, family, gather=self.gather, **place) if data.validate_ else None
        self.best = Best(run.folder, train, lower_is_better(train.monitor, train.mode))
        every = 1 if run.device.type == "cpu" else 16
        self.terms = log.Terms(every, patience=20 if fp16 else 0)
        self.rates: dict[str, float] = {}
        self.still: Standing | None = None
        if resumed:
            self._load(resumed)

    @property
    def finished(self) -> bool:
        return self.clock.stage_batch >= self.total or self.best.stopped

    def close(self) -> None:
        """End the loaders' workers."""
        self.feed.close()
        if self.validation:
            self.validation.close()

    # a batch

    def step(self, batch: Batch) -> None:
        """Do one step of training."""
        clock, context = self.clock, self.context
        self.rates = {n: m.set_rate(clock.stage_batch, self.total) for n, m in context.movers.items()}
        self.run.family.train()
        self.frozen.apply()
        progress = clock.stage_batch / self.total
        context.begin(clock.batches, progress, step_seed(self.run.recipe.seed, clock.batches, self.run.rank))
        with self.run.whole(), self.autocast():
            self.procedure.step(self.run.family, laid_out(batch, self.format), context)
        context.flush(everything=clock.stage_batch + 1 == self.total)
        self.terms.add(clock.batches, self.rates, context.terms)

    def all_reduce(self, flat: Tensor) -> Tensor:
        """Return the mean over ranks."""
        mean: Tensor = self.run.fabric.all_reduce(flat, reduce_op="mean")
        return mean

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value."""
        if self.run.world == 1:
            return [value]
        found: list[Any] = [None] * self.run.world
        torch.distributed.all_gather_object(found, value)
        return found

    # an epoch's end

    def rehearse(self) -> None:
        """Validate one batch before training, so that a mistake there is met now and not after an epoch."""
        if self.validation is None:
            return
        with self.run.whole():
            values = self._validated(0.0, most=1)
        monitored(values, self.stage.train.monitor)

    def _validated(self, progress: float, most: int | None = None) -> dict[str, float]:
        """Return what the validation says; a slow one (pictures drawn in windows) tells how far it is."""
        assert self.validation is not None
        told = self.run.progress
        told.start(0)

        def tell(done: int, total: int) -> None:
            told.step(f"{self.title} validation", done, total, {}, "image")

        return self.validation.run(
            self.run.family, self.procedure, progress, autocast=self.autocast, most=most, tell=tell
        )

    def end_epoch(self) -> None:
        """Validate, draw, keep the best, write a row; then the clock stands at the beginning of the next epoch."""
        clock, train = self.clock, self.stage.train
        clock.epoch, clock.epochs, clock.batch = clock.epoch + 1, clock.epochs + 1, 0
        last = clock.stage_batch >= self.total
        values: dict[str, float] = {}
        with self.average.swapped() if self.average else nullcontext(), self.run.whole():
            if self.validation and (last or clock.epoch % train.validate_every == 0):
                values = self._validated(clock.stage_batch / self.total)
            wanted = train.pictures_every and (last or clock.epoch % train.pictures_every == 0)
            if self.run.first and self.validation and wanted:
                name = f"{self.title}-{clock.epoch:04d}.png" if self.run.recipe.stages else f"{clock.epoch:04d}.png"
                draw_panels(self.run.family, self.validation, self.run.folder.pictures / name)
        if values:
            value = monitored(values, train.monitor)
            for mover in self.context.movers.values():
                mover.schedule.observe(value, self.best.lower)
            for path in self.best.observe(value, clock.epochs):
                self.run.save_weights(path, self.average)
        self.row({f"validation/{name}": value for name, value in values.items()})
        if self.best.stopped:
            self.run.progress.line(f"stopped early: no better {train.monitor} in {self.best.waited} validations")

    def row(self, values: dict[str, float]) -> None:
        """Write a row of metrics.csv and tell the loggers."""
        means, clock = self.terms.take(self.gather), self.clock
        numbers = {f"train/{k}": v for k, v in means.items()} | {f"rate/{k}": v for k, v in self.rates.items()} | values
        if self.run.table is not None:
            seconds = time.monotonic() - self.run.seconds
            at = {"stage": self.stage.name, "epoch": clock.epoch, "batch": clock.batches, "seconds": round(seconds, 1)}
            self.run.table.add({**at, **numbers})
        for logger in self.run.loggers:
            logger.log_metrics(numbers, step=clock.batches)
        if values or clock.batch == 0:
            first = f"validation/{self.stage.train.monitor}"
            told = {**{k: v for k, v in values.items() if k == first}, **means, **values}
            shown = [f"{k} {v:.4g}" for k, v in told.items()]
            self.run.progress.line(log.fit([f"{self.title} epoch {clock.epoch}/{self.epochs}", *shown]))

    # state

    def save(self, last: bool = False) -> None:
        """Write the checkpoint, and last.safetensors if it is due or nothing follows. Every rank calls this."""
        self.terms.read()
        context, terms = self.context.state(self.gather), self.gather(self.terms.state())
        due = last or self.finished or self.run.stop.asked or self.run.sparing.due(time.monotonic())
        if self.gather(due)[0]:  # the first rank says: where weights are spread, each has a part in it
            self.run.sparing.write(lambda: self.run.save_weights(self.run.folder.last, self.average))
        family = self.run.collect(self.run.family.state_dict())
        average = None if self.average is None else self.run.collect(self.average.state())
        if self.run.first:
            still = self._standing(family)
            state = {
                "clock": asdict(self.clock),
                "world": self.run.world,
                "standing": still.record(),
                "family": still.without(family),
                "context": context,
                "procedure": self.procedure.state(),
                "average": average and average | {"values": still.without(average["values"])},
                "terms": terms,
                "best": self.best.state(),
                "seconds": time.monotonic() - self.run.seconds,
            }
            checkpoint.save(self.run.folder.last_checkpoint, state)
            self.best.tidy()
            standing.tidy(self.run.folder.checkpoints, still)
        self.run._barrier()

    def _standing(self, state: dict[str, Tensor]) -> Standing:
        """Return what stands still in this stage, written from the family's state when it is first asked for."""
        if self.still is None:
            self.still = Standing(Standing.path_of(self.run.folder.checkpoints, self.clock.stage))
            self.still.write(self.run.family, state)
        return self.still

    def _load(self, state: dict[str, Any]) -> None:
        if state.get("standing"):
            self.still = Standing.of(state["standing"], self.run.folder.checkpoints)
        self.context.load(state["context"], self.run.rank)
        self.procedure.load(state.get("procedure", {}))
        if self.average is not None:
            self.average.load(state["average"])
        self.terms.load(state["terms"][self.run.rank % len(state["terms"])])
        self.best.load(state["best"])
        self.run.seconds = time.monotonic() - state["seconds"]


def _told(option: str, value: Any) -> str:
    """Return an option and its value, or its name alone where the value would fill a page."""
    said = f"{option} {value}"
    return said if len(said) <= 80 else option
