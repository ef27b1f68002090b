"""`zoo verify` as scripts use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_system import STATE, network, write

Zoo = Callable[..., tuple[int, str, str]]


def test_a_line_a_case(zoo: Zoo, tmp_path: Path) -> None:
    good = network(tmp_path)
    bad = write(tmp_path, "bad", {"in.a": torch.ones(3), "out.loss": torch.tensor(4.0)})
    status, out, _err = zoo("verify", good, f"{good}.json", f"{good}.safetensors")
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("ok") and "out." in line for line in lines)
    status, out, _err = zoo("verify", bad, good)
    assert status == 1
    assert len(out.splitlines()) == 2
    assert out.startswith(f"FAIL  {bad}: out.loss 2.5e-01 (tolerance 1e-04)")


def test_json_is_alone_on_standard_output(zoo: Zoo, tmp_path: Path) -> None:
    good = network(tmp_path)
    strange = write(tmp_path, "strange", {"out.loss": torch.zeros(1)}, system="nothing-here")
    status, out, err = zoo("verify", "--json", good, strange)
    found = json.loads(out)
    assert status == 1
    assert [set(item) for item in found] == [{"case", "ok", "errors", "note"}] * 2
    assert [item["case"] for item in found] == [str(good), str(strange)]
    assert [item["ok"] for item in found] == [True, False]
    assert found[1]["errors"] == {}
    assert "nothing-here" in found[1]["note"]
    assert "a library that talks" in err


def test_a_folder_stands_for_its_cases(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(tmp_path / "toy")
    write(
        tmp_path / "toy" / "deep",
        "names",
        None,
        STATE,
        kind="manifest",
        configuration={"channels": [2, 3], "padding": 1},
    )
    monkeypatch.setenv("ZOO_PARITY", str(tmp_path))
    monkeypatch.chdir(tmp_path / "toy")
    status, out, _err = zoo("verify", "toy", "toy/network")
    assert status == 0
    assert len(out.splitlines()) == 3


def test_a_folder_of_the_same_name_hides_no_case(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(tmp_path / "cases" / "toy")
    (tmp_path / "toy").mkdir()
    monkeypatch.setenv("ZOO_PARITY", str(tmp_path / "cases"))
    monkeypatch.chdir(tmp_path)
    status, out, _err = zoo("verify", "toy")
    assert (status, len(out.splitlines())) == (0, 1)


def test_a_path_that_is_not_there(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(tmp_path / "toy")
    monkeypatch.setenv("ZOO_PARITY", str(tmp_path))
    status, out, err = zoo("verify", "toy/network", "toy/netwrk", "--json")
    assert status == 2
    assert out == ""
    assert "toy/netwrk: no such case" in err
    assert "Did you mean toy/network?" in err
    assert zoo("verify")[0] == 2
