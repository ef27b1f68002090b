"""Reading published cases, the rule that fills weights, comparing: on cases written here."""

from __future__ import annotations

import importlib.util
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_system import CONFIGURATION, STATE, Toy, network, write

from zoo import paths
from zoo.cases import Case, LayoutError, fill
from zoo.verify.run import compare, tolerance, verify


def twin(key: str, shape: tuple[int, ...]) -> Any:
    """Return the fill rule's value, written out number by number."""
    count = int(np.prod(shape))
    draws = np.random.default_rng(zlib.crc32(key.encode("utf-8"))).standard_normal(count)
    fan = 1
    for size in shape[1:]:
        fan *= size
    values = []
    for draw in draws:
        n = np.float32(draw)
        if key.endswith("running_var"):
            values.append(1 + 0.1 * abs(n))
        elif len(shape) > 1:
            values.append(n / math.sqrt(fan))
        elif len(shape) == 1 and key.split(".")[-1] in ("weight", "gamma", "scale"):
            values.append(1 + 0.1 * n)
        else:
            values.append(0.1 * n)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("conv.weight", (4, 3, 3, 3)),
        ("norm.weight", (7,)),
        ("gamma", (5,)),
        ("layer.scale", (2,)),
        ("norm.running_var", (6,)),
        ("norm.running_mean", (6,)),
        ("decoder_head.Nuclei#TYPE.0.bias", (3,)),
        ("temperature", ()),
        ("weight", ()),
        ("running_var", ()),
    ],
)
def test_the_fill_rule(key: str, shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(fill(key, shape), twin(key, shape), rtol=1e-6, atol=1e-7)


def test_integers_and_halves() -> None:
    assert fill("steps", (), "int64").dtype == torch.int64
    assert not fill("mask", (3,), "bool").any()
    assert fill("conv.weight", (2, 2), "float16").dtype == torch.float16


def test_the_fill_rule_of_the_published_folder() -> None:
    """The same numbers, bit for bit, as the script that lies beside the published cases."""
    root = paths.parity_root()
    if root is None or not (root / "parity.py").is_file():
        pytest.skip("the published cases are not on this machine (set ZOO_PARITY)")
    spec = importlib.util.spec_from_file_location("published_parity", root / "parity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["published_parity"] = module
    spec.loader.exec_module(module)
    for key, shape in [("a.weight", (3, 2, 3, 3)), ("b.weight", (9,)), ("c.running_var", (4,)), ("d", ()), ("e", (2,))]:
        assert torch.equal(fill(key, shape), module.fill(key, shape))


def test_aliases_constants_and_prefixes() -> None:
    spec = {k: {"shape": [2, 2], "dtype": "float32"} for k in ("a.x", "a.y", "b.x")}
    case = Case(
        "c", {"system": "s", "state_dict": spec, "aliases": {"a.x": "a.y"}}, constants={"b.x": torch.ones(2, 2)}
    )
    state = case.state_dict("a.")
    assert set(state) == {"x", "y"}
    assert torch.equal(state["x"], fill("a.y", (2, 2)))
    assert torch.equal(state["x"], state["y"])
    assert case.taken == {"a.x", "a.y"}
    assert torch.equal(case.state_dict()["b.x"], torch.ones(2, 2))


def test_a_layout_takes_no_memory_and_is_compared() -> None:
    spec = {
        "conv.weight": {"shape": [3, 2, 3, 3]},
        "conv.bias": {"shape": [3]},
        "steps": {"shape": [], "dtype": "int64"},
    }
    case = Case("c", {"system": "s", "state_dict": spec}, layout_only=True)
    with case.building():
        module = Toy([2, 3], 1)
    assert module.conv.weight.device.type == "meta"
    case.load(module)
    with pytest.raises(LayoutError, match=r"2 entries.*missing +other.weight|unexpected|missing") as caught:
        case.load(module, lambda state: {k.replace("conv.bias", "conv.bars"): v for k, v in state.items()})
    assert (caught.value.wrong, caught.value.total) == (2, 3)


def test_the_error_is_relative_and_in_double() -> None:
    assert compare(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))[0] == pytest.approx(0.1)
    assert compare(torch.zeros(2), torch.tensor([0.0, 1e-6]))[0] == pytest.approx(1e-3)
    assert compare(torch.tensor([2**40]), torch.tensor([2**40 + 1]))[0] > 0
    assert compare(torch.zeros(2), torch.zeros(3))[0] == math.inf
    assert compare(torch.zeros(2), torch.tensor([math.nan, 0.0]))[0] == math.inf
    assert compare(torch.zeros(2), None)[0] == math.inf
    assert compare(torch.tensor([True]), np.array([True]))[0] == 0


def test_tolerances() -> None:
    manifest = {"tolerance": {"default": 1e-4, "integer": 0, "out.rough": 1e-2}}
    assert tolerance(manifest, "out.rough", torch.zeros(1)) == 1e-2
    assert tolerance(manifest, "out.rough", torch.zeros(1, dtype=torch.int32)) == 1e-2
    assert tolerance(manifest, "out.fine", torch.zeros(1)) == 1e-4
    assert tolerance(manifest, "out.ids", torch.zeros(1, dtype=torch.bool)) == 0
    assert tolerance({}, "out.fine", torch.zeros(1)) == 0


def test_a_case_that_holds(tmp_path: Path) -> None:
    path = network(tmp_path, "a.name.with.dots")
    report = verify(str(path), path.with_name(path.name + ".json"))
    assert report.ok
    assert set(report.errors) == {"out.maps", "out.order"}
    assert report.errors["out.order"] == 0
    assert report.errors["out.maps"] < 1e-6


def test_a_case_that_does_not_hold(tmp_path: Path) -> None:
    """Published with padding 1, answered by a configuration of padding 0: another shape, and no crash."""
    path = network(tmp_path, configuration=CONFIGURATION | {"padding": 0})
    report = verify(str(path), path.with_suffix(".json"))
    assert not report.ok
    assert report.as_values()["errors"] == {"out.maps": None, "out.order": None}
    assert "shape (1, 3, 3, 3) where (1, 3, 5, 5) was published" in report.note


@pytest.mark.parametrize(
    ("about", "note"),
    [
        ({"system": "toys"}, 'no system "toys". Did you mean toy?'),
        ({"kind": "transform", "component": "Shear"}, "no answer for a case of kind transform, component Shear"),
        ({"component": "forgets"}, "out.loss: not computed"),
        ({"component": "crashes"}, "ZeroDivisionError: float division by zero"),
        ({"state": {"w": {"shape": [2]}}}, "made no use of w of the state dict"),
    ],
)
def test_what_cannot_be_answered_is_a_note(tmp_path: Path, about: dict[str, Any], note: str) -> None:
    path = write(tmp_path, "c", {"in.a": torch.ones(3), "out.loss": torch.tensor(3.0)}, **about)
    report = verify("c", path.with_suffix(".json"))
    assert not report.ok
    assert note in report.note


def test_broken_files_are_notes(tmp_path: Path) -> None:
    path = write(tmp_path, "c", {"in.a": torch.ones(3), "out.loss": torch.tensor(3.0)})
    path.with_suffix(".safetensors").write_bytes(b"nothing")
    assert "cannot be read as safetensors" in verify("c", path.with_suffix(".json")).note
    path.with_suffix(".json").write_text("{", encoding="utf-8")
    assert "not a manifest in JSON" in verify("c", path.with_suffix(".json")).note
    path.with_suffix(".json").write_text("[1]", encoding="utf-8")
    assert 'no "system"' in verify("c", path.with_suffix(".json")).note
    for key, value in (("configuration", [1]), ("tolerance", 1e-4), ("state_dict", [["a"]])):
        path.with_suffix(".json").write_text(json.dumps({"system": "toy", "kind": "loss", key: value}), "utf-8")
        assert f'c.json: "{key}" is not an object' in verify("c", path.with_suffix(".json")).note
    path.with_suffix(".json").write_text('{"system": "toy"}', encoding="utf-8")
    assert 'no "kind"' in verify("c", path.with_suffix(".json")).note
    none = write(tmp_path, "none", None)
    assert "nothing to compare" in verify("none", none.with_suffix(".json")).note


def test_names_and_shapes_alone(tmp_path: Path) -> None:
    about = {"kind": "manifest", "configuration": CONFIGURATION}
    right = write(tmp_path, "right", None, STATE, **about)
    assert verify("right", right.with_suffix(".json")).as_values() == {
        "case": "right",
        "ok": True,
        "errors": {"state_dict": 0.0},
        "note": "",
    }
    other = {**STATE, "module.conv.bias": {"shape": [4], "dtype": "float32"}}
    wrong = write(tmp_path, "wrong", None, other, **about)
    report = verify("wrong", wrong.with_suffix(".json"))
    assert not report.ok
    assert report.errors["state_dict"] == pytest.approx(1 / 3)
    assert "conv.bias" in report.note


def test_json_of_a_report_has_no_infinity(tmp_path: Path) -> None:
    path = write(tmp_path, "c", {"in.a": torch.ones(3), "out.loss": torch.zeros(2)})
    values = verify("c", path.with_suffix(".json")).as_values()
    assert json.loads(json.dumps(values, allow_nan=False))["errors"] == {"out.loss": None}
