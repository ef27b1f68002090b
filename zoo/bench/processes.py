"""Units of work in processes of their own, so that what ends one of them ends nothing else.

A unit's process is started afresh (spawned), tells its parent which image it begins, and hands its outcome back. Where
the system ends it (memory, a fault in compiled code), the unit starts again without that image; what was predicted
before comes from the cache. A unit that dies `DEATHS` times is given up.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from zoo.bench.results import Failure
from zoo.bench.work import Begin, Outcome, Say, Unit

DEATHS = 4
Work = Callable[[Unit, Say, Begin], Outcome]


@dataclass
class _Running:
    """A unit that is being worked on, where it stands, and how often it died."""

    index: int
    unit: Unit
    process: Any
    connection: Connection
    deaths: int = 0
    at: tuple[int, str] | None = None


def run(units: Sequence[Unit], work: Work, jobs: int, say: Say, threads: int | None = None) -> list[Outcome]:
    """Return the outcome of every unit, in order, working on `jobs` of them at a time; `threads` a process."""
    found: list[Outcome | None] = [None] * len(units)
    waiting = list(enumerate(units))[::-1]
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index, unit = waiting.pop()
                running.append(_start(index, unit, work, threads))
            for connection in wait([r.connection for r in running]):
                one = next(r for r in running if r.connection is connection)
                done = _listen(one, say)
                if done is None:
                    continue
                running.remove(one)
                if done is False:
                    if again := _again(one, work, say, threads, found):
                        running.append(again)
                else:
                    found[one.index] = done
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()
    return [outcome or Outcome() for outcome in found]


def _start(index: int, unit: Unit, work: Work, threads: int | None, deaths: int = 0) -> _Running:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, unit, work, threads), daemon=True)
    process.start()
    theirs.close()
    return _Running(index, unit, process, ours, deaths)


def _listen(one: _Running, say: Say) -> Outcome | Literal[False] | None:
    """Return the outcome where it came, False where the process is gone without one, None where it goes on."""
    try:
        kind, value = one.connection.recv()
    except (EOFError, OSError):
        one.process.join()
        one.connection.close()
        return False
    if kind == "done":
        one.process.join()
        one.connection.close()
        outcome: Outcome = value
        return outcome
    if kind == "begin":
        one.at = value
    else:
        say(str(value))
    return None


def _again(one: _Running, work: Work, say: Say, threads: int | None, found: list[Outcome | None]) -> _Running | None:
    """Start a unit again whose process died, without the image that it died of; give up after `DEATHS`."""
    label = one.unit.weights.label
    why = ended(one.process.exitcode)
    if one.at is None or one.deaths + 1 >= DEATHS:
        found[one.index] = Outcome(failures=[Failure(label, "", "", f"its process was ended ({why}). Nothing is left")])
        say(f"failed: {label}: its process was ended ({why})")
        return None
    say(f"{label}: the process was ended ({why}) at {one.at[1]}; going on without that image")
    unit = replace(one.unit, skip=one.unit.skip | {one.at})
    return _start(one.index, unit, work, threads, one.deaths + 1)


def ended(code: int | None) -> str:
    """Return how a process ended, in words."""
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"status {code}"


def _child(connection: Connection, unit: Unit, work: Work, threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)
        import torch

        torch.set_num_threads(threads)

    def say(line: str) -> None:
        connection.send(("say", line))

    def begin(dataset: int, image: str) -> None:
        connection.send(("begin", (dataset, image)))

    connection.send(("done", work(unit, say, begin)))
    connection.close()
