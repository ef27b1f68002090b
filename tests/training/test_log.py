"""metrics.csv, the watch for losses that are no number, and what stands on a terminal."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.errors import UserError
from zoo.training import log
from zoo.training.log import Progress, Table, Terms, clock, fit


def alone(value: Any) -> list[Any]:
    return [value]


def test_means_are_over_the_batches_that_named_a_term() -> None:
    terms = Terms(every=4)
    for batch in range(6):
        terms.add(batch, {"model": 0.1}, {"a": torch.tensor(float(batch))} | ({"b": 2.0} if batch == 1 else {}))
    assert terms.take(alone) == {"a": 2.5, "b": 2.0}
    assert terms.take(alone) == {}


def test_means_over_processes_weigh_each_batch_once() -> None:
    one, two = Terms(), Terms()
    for value in (1.0, 2.0, 3.0):
        one.add(0, {}, {"a": value})
    two.add(0, {}, {"a": 10.0})
    assert one.take(lambda own: [own, (two.sums, two.counts)]) == {"a": 4.0}


@pytest.mark.parametrize("every", [1, 5])
def test_a_bad_loss_is_told_with_its_batch_rate_and_term(every: int) -> None:
    terms = Terms(every=every)
    for batch in range(5):
        value = math.inf if batch == 3 else 1.0
        terms.add(batch, {"model": 0.0125}, {"dice": torch.tensor(0.5), "focal": torch.tensor(value)})
    words = str(terms.failure)
    assert words.startswith("training stopped: focal = inf in batch 3 (learning rate 0.0125 (model); other terms: dice")
    assert "Try a smaller learning rate" in words


def test_half_precision_bears_some_bad_losses() -> None:
    terms = Terms(patience=2)
    for batch, value in enumerate([math.nan, math.nan, 1.0, math.nan, math.nan]):
        terms.add(batch, {}, {"a": value})
    assert terms.failure is None
    terms.add(5, {}, {"a": math.nan})
    assert "batch 5" in str(terms.failure)
    assert terms.take(alone) == {"a": 1.0}


def test_the_state_goes_on() -> None:
    one = Terms()
    one.add(0, {}, {"a": 1.0})
    two = Terms()
    two.load(one.state())
    for terms in (one, two):
        terms.add(1, {}, {"a": 4.0})
    assert one.take(alone) == two.take(alone) == {"a": 2.5}


def test_a_table_takes_new_columns_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = Table(path)
    for batch in (5, 10, 15):
        table.add({"stage": "train", "epoch": batch // 5, "batch": batch, "seconds": 1.0, "a": 0.5})
    table.add({"stage": "train", "epoch": 4, "batch": 20, "seconds": 2.0, "b": 1 / 3})
    lines = path.read_text().splitlines()
    assert lines[0] == "stage,epoch,batch,seconds,a,b"
    assert lines[1] == "train,1,5,1,0.5,"
    assert lines[-1] == "train,4,20,2,,0.333333"
    with path.open("a") as file:
        file.write("train,5,2")  # a kill in the middle of a row
    Table(path, after=10)
    assert [line.split(",")[2] for line in path.read_text().splitlines()[1:]] == ["5", "10"]
    Table(path)
    assert path.read_text() == "stage,epoch,batch,seconds\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_line_on_a_terminal_of_80_columns() -> None:
    stream = Terminal()
    progress = Progress(True, stream)
    progress.start(0)
    for done in (1, 2):
        progress.drawn = 0.0
        numbers = {f"a-long-name-{i}": 1.23456 for i in range(9)}
        progress.step("dsb2018-unet-mobile epoch 3/100", done, 1200, numbers)
    progress.line("done")
    text = stream.getvalue()
    assert text.count("\n") == 1
    drawn = [part for part in text.split("\r") if part]
    assert len(drawn) == 3
    assert all(len(part.rstrip("\n")) < 80 for part in drawn)
    assert drawn[0].startswith("dsb2018-unet-mobile epoch 3/100  1/1200")
    assert drawn[2].startswith("done")
    assert len(drawn[2].rstrip("\n")) >= len(drawn[1].rstrip())  # nothing of the old line is left


def test_plain_lines_elsewhere() -> None:
    stream = io.StringIO()
    progress = Progress(True, stream)
    progress.start(0)
    progress.step("toy epoch 1/2", 1, 10, {})
    progress.line("toy epoch 1/2  loss 1")
    assert stream.getvalue() == "toy epoch 1/2  loss 1\n"
    progress.drawn -= 61  # a minute without a word
    progress.step("toy validation", 3, 8, {}, "image")
    assert stream.getvalue().splitlines()[-1].startswith("toy validation  3/8")
    assert " image/s" in stream.getvalue()
    Progress(False, stream).line("silence")
    assert "silence" not in stream.getvalue()


def test_words() -> None:
    assert [clock(s) for s in (12.4, 185, 7800)] == ["12 s", "3:05 min", "2:10 h"]
    assert fit(["a" * 50, "b" * 20, "c" * 20]) == "a" * 50 + "  " + "b" * 20


def test_a_logger_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")

    monkeypatch.setattr(log, "_logger", missing)
    with pytest.raises(UserError, match=r'"wandb" is not installed.*pip install histozoo\[wandb\]'):
        log.loggers(("wandb",), tmp_path, "toy", {})
