"""Runs training scenarios in forked children, so that they can be killed; prints one JSON line an action.

Used as a script: the import of torch and Lightning, which takes longer than the runs, is paid once.

    scenario.py RECIPE.json ACTION...     with ACTION one of
        train:OUT             train into OUT
        kill:OUT:N            train into OUT and SIGKILL the process after batch N
        tear:OUT:N            train into OUT and SIGKILL the process halfway through checkpoint number N
        term:OUT:N            train into OUT and send SIGTERM to the process in batch N
        resume:OUT            resume the run in OUT
        pair:OUT[:N]          train on two processes, as torchrun would start them; the second gets SIGTERM in batch N
        pair-resume:OUT       resume that
        fsdp:OUT[:N], fsdp-resume:OUT       the same with weights spread over the two
        fsdp-over:OUT         spread the weights of a run that began otherwise, and go on
        again:OUT:RUN         resume a copy of a run of two processes on one
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.recipe import Recipe
from zoo.training import checkpoint, loop, run, shard


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_batch(number: int, then: Any) -> None:
    step = loop.StageWork.step

    def patched(self: loop.StageWork, batch: Any) -> None:
        step(self, batch)
        if self.clock.batches == number:
            then()

    loop.StageWork.step = patched  # type: ignore[method-assign]


def in_checkpoint(number: int) -> None:
    """Die when half of checkpoint `number` is on disk, still under its temporary name."""
    count = 0
    write = checkpoint.write_bytes

    def patched(path: Path, data: bytes) -> None:
        nonlocal count
        if path.name == "last.pt":
            count += 1
            if count == number:
                with path.with_name(f".{path.name}.{os.getpid()}.part").open("wb") as file:
                    file.write(data[: len(data) // 2])
                    file.flush()
                    os.fsync(file.fileno())
                kill()
        write(path, data)

    checkpoint.write_bytes = patched


def act(values: dict[str, Any], action: str) -> None:
    what, out, *number = action.split(":")
    if what == "kill":
        after_batch(int(number[0]), kill)
    elif what == "tear":
        in_checkpoint(int(number[0]))
    elif what == "term":
        after_batch(int(number[0]), lambda: os.kill(os.getpid(), signal.SIGTERM))
    if what.startswith(("pair", "fsdp")):
        pair(values, what, out, *number)
    elif what == "again":
        shutil.copytree(number[0], out)
        run.resume(out, devices=1, accelerator="cpu", progress=False)
    elif what == "resume":
        run.resume(out, progress=False)
    else:
        run.train(Recipe.model_validate({**values, "output": out}), progress=False)


def pair(values: dict[str, Any], what: str, out: str, number: str = "") -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    second = os.fork()
    rank = 1 if second == 0 else 0
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "GROUP_RANK": 0, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="pair")
    note_bytes(Path(out), rank)
    shard.LARGE = int(os.environ.get("LARGE", shard.LARGE))
    if number and rank == 1:
        after_batch(int(number), lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = 0
    try:
        if what in ("pair", "fsdp"):
            recipe = Recipe.model_validate({**values, "output": out})
            strategy = "fsdp" if what == "fsdp" else "ddp"
            run.train(recipe, devices=2, strategy=strategy, accelerator="cpu", progress=False)
        else:
            run.resume(out, strategy="fsdp" if what == "fsdp-over" else "auto", accelerator="cpu", progress=False)
    except SystemExit as error:
        status = int(error.code or 0)
    except ZooError as error:
        sys.stderr.write(f"{error}\n")
        status = error.status
    if rank == 0:
        _, other = os.waitpid(second, 0)
        status = status if os.WEXITSTATUS(other) == status else 99
    sys.stderr.flush()
    os._exit(status)


def note_bytes(out: Path, rank: int) -> None:
    """Write what a process holds of weights, moments and averages when a stage ends, in bytes of each: stored-RANK."""
    close = loop.StageWork.close

    def patched(self: loop.StageWork) -> None:
        close(self)
        moving = {n: p for n, p in self.run.family.named_parameters() if p.requires_grad}
        moments = [s.values() for m in self.context.movers.values() for s in m.optimizer.state.values()]
        held = {
            "blocks": len(self.run.shards.modules) - 1 if self.run.shards else 0,
            "weights": [shard.local(p) for p in moving.values()],
            "moments": [shard.local(t) for values in moments for t in values if t.ndim],
            "averages": [shard.local(self.average.values[n]) for n in moving] if self.average else [],
        }
        sums = {k: v if isinstance(v, int) else sum(t.numel() * t.element_size() for t in v) for k, v in held.items()}
        (out / f"stored-{rank}.json").write_text(json.dumps(sums))

    loop.StageWork.close = patched  # type: ignore[method-assign]


def digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def main() -> None:
    values = json.loads(Path(sys.argv[1]).read_text())
    import lightning.fabric  # noqa: F401  (paid once, before forking)

    from zoo.data import loading  # noqa: F401

    if any(action.startswith("fsdp") for action in sys.argv[2:]):
        import torch._dynamo
        import torch.distributed.fsdp  # noqa: F401

    for action in sys.argv[2:]:
        pid = os.fork()
        if pid == 0:
            try:
                act(values, action)
            except ZooError as error:
                sys.stderr.write(f"{error}\n")
                sys.stderr.flush()
                os._exit(error.status)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        out = Path(action.split(":")[1])
        result = {
            "action": action,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "last": digest(out / "last.safetensors"),
            "best": digest(out / "best.safetensors"),
        }
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
