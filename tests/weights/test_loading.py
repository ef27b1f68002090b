"""From a file into a module: every entry accounted for, made to fit on request only, in the memory of one copy."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from zoo.errors import UserError
from zoo.families import build
from zoo.weights import store

OPTIONS = {"encoder": "resnet10t", "classes": ["background", "gland", "lumen"]}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    build.save(zoo.create("unet", **OPTIONS), path)
    return path


def test_a_file_is_copied_entry_by_entry(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, other = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)) for _ in range(2))
    made[1](torch.randn(2, 4, 5, 5))
    store.write_tensors(tmp_path / "w.safetensors", made.state_dict(), {"a": "b"})
    assert store.load_file(other, tmp_path / "w.safetensors") == {"a": "b"}
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in made.state_dict().items())
    assert other[0].weight.requires_grad


def test_half_precision_is_read_as_what_the_module_has(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    store.write_tensors(tmp_path / "w.safetensors", {k: v.half() for k, v in net.state_dict().items()}, {})
    store.load_file(net, tmp_path / "w.safetensors")
    assert net.weight.dtype == torch.float32


def test_numbers_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    net = zoo.create("unet", **OPTIONS)
    with torch.no_grad():
        net.head.bias[0] = 1e6
    with pytest.raises(UserError, match=r"head\.bias: it holds numbers above 65504"):
        build.save(net, tmp_path / "w.safetensors", half=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["background", "gland"], "mode": "multiclass"}, 'load with adapt="classes"'),
        ({"channels": ["one"]}, 'load with adapt="input"'),
        ({"decoder": "fpn"}, "missing"),
    ],
)
def test_what_does_not_fit_is_said_with_what_would_mend_it(file: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        zoo.load(file, **change)


def test_a_prefix_is_recognised(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    path = tmp_path / "w.safetensors"
    store.write_tensors(path, {f"module.{k}": v for k, v in net.state_dict().items()}, {})
    with pytest.raises(UserError, match=r'Every name of the file has the prefix "module\."'):
        store.load_file(net, path)
    store.write_tensors(path, {k.removeprefix("0."): v for k, v in net.state_dict().items()}, {})
    with pytest.raises(UserError, match=r'Every name of the file lacks the prefix "0\."'):
        store.load_file(nn.Sequential(net), path)


def test_other_channels_on_request(file: Path) -> None:
    before = zoo.load(file)
    first = next(iter(before.state_dict()))
    weight = before.state_dict()[first]
    one = zoo.load(file, adapt="input", channels=["grey"])
    assert torch.allclose(one.state_dict()[first], weight.sum(1, keepdim=True), atol=1e-6)
    assert one.weights_notes == (f"{first}: spread from 3 to 1 input channels",)
    named = zoo.load(file, adapt="input", channels=["blue", "red", "green", "dapi"])
    found = named.state_dict()[first]
    assert torch.equal(found[:, :3], weight[:, [2, 0, 1]])
    assert torch.allclose(found[:, 3], weight.mean(1))
    grey = torch.full((1, 1, 32, 32), 0.7)
    many = zoo.load(file, adapt="both", channels=[f"c{i}" for i in range(6)]).state_dict()[first]
    wanted = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
    assert torch.allclose(nn.functional.conv2d(grey.expand(-1, 6, -1, -1), many), wanted, atol=1e-5)


def test_other_classes_on_request(file: Path) -> None:
    before = zoo.load(file).state_dict()
    torch.manual_seed(1)
    after = zoo.load(file, adapt="classes", classes=["background", "vessel", "lumen", "gland"])
    assert torch.equal(after.state_dict()["head.weight"][[0, 2, 3]], before["head.weight"][[0, 2, 1]])
    assert torch.equal(after.state_dict()["head.bias"][[0, 2, 3]], before["head.bias"][[0, 2, 1]])
    assert not any(torch.equal(after.state_dict()["head.weight"][1], row) for row in before["head.weight"])
    assert after.weights_notes[0] == "head.weight: 3 of 4 rows kept, the others start anew"
    others = {k: v for k, v in before.items() if not k.startswith("head.")}
    assert all(torch.equal(after.state_dict()[k], v) for k, v in others.items())


def test_one_row_for_two_classes_is_not_mixed_up(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    build.save(zoo.create("unet", encoder="resnet10t", classes=["background", "gland"]), path)
    after = zoo.load(path, adapt="classes", classes=["x", "gland"], mode="multilabel")
    assert after.weights_notes[0].startswith("head.weight: 1 of 2 rows kept")
    assert torch.equal(after.state_dict()["head.weight"][1], zoo.load(path).state_dict()["head.weight"][0])


def test_asking_for_one_does_not_allow_the_other(file: Path) -> None:
    with pytest.raises(UserError, match="do not fit"):
        zoo.load(file, adapt="classes", channels=["one"])
    with pytest.raises(UserError, match='adapt: "clases" is not one of none, input'):
        zoo.load(file, adapt="clases")
    with pytest.raises(UserError, match="missing"):
        zoo.load(file, adapt="both", encoder="resnet18")


def test_another_architecture_leaves_nothing_half_loaded(file: Path, tmp_path: Path) -> None:
    other = zoo.create("unet", encoder="resnet18", classes=OPTIONS["classes"])
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(UserError, match=rf"{file}: \d+ entries do not fit the model"):
        store.load_file(other, file)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def _memory(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key)).split()[1]) * 1024


@pytest.mark.parametrize("half", [False, True])
def test_loading_takes_the_memory_of_one_copy(tmp_path: Path, half: bool) -> None:
    """The peak, not what is left; benchmarks/loading.py does the same with a file of 1 GB."""
    path, shape = tmp_path / "w.safetensors", (1024, 1024)
    kind = torch.float16 if half else torch.float32
    store.write_tensors(path, {f"{i}.weight": torch.zeros(shape, dtype=kind) for i in range(64)}, {})
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        pytest.skip("the kernel does not let a process reset its peak")
    before = _memory("VmRSS")
    net = nn.ModuleList(nn.Linear(*shape, bias=False) for _ in range(64))
    store.load_file(net, path)
    size = 64 * 4 * 1024 * 1024
    assert _memory("VmHWM") - before < 1.2 * size + 2**26 * (0.5 if half else 1) / 4
