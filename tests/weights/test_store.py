"""Files of weights: equal bytes for equal content, readable differences, nothing lost to a broken file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import nn

from zoo.errors import UserError
from zoo.weights import store


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.int64), "c": torch.zeros(0, 2)}
    store.write_tensors(tmp_path / "deep" / "w.safetensors", tensors, {"family": "x", "note": "ä"})
    found, meta = store.read_tensors(tmp_path / "deep" / "w.safetensors")
    assert meta == {"family": "x", "note": "ä"}
    assert set(found) == set(tensors)
    assert all(torch.equal(found[k], tensors[k]) and found[k].dtype == tensors[k].dtype for k in tensors)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["w.safetensors"]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    a = {"x": torch.ones(3), "y": torch.zeros(2, 2)}
    meta = {f"key{i}": str(i) for i in range(20)}
    digests = set()
    for i in range(4):
        order = list(meta.items())
        order = order[i:] + order[:i]
        tensors = dict(reversed(a.items())) if i % 2 else a
        path = tmp_path / f"{i}.safetensors"
        store.write_tensors(path, tensors, dict(order))
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


TYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.int16, torch.uint16),
    *(torch.float16, torch.bfloat16, torch.int32, torch.uint32, torch.float32, torch.complex64, torch.float64),
    *(torch.int64, torch.uint64),
]


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=6), st.sets(st.sampled_from(TYPES)))
def test_the_bytes_are_those_of_the_formats_library(
    tmp_path_factory: pytest.TempPathFactory, meta: dict[str, str], types: set[torch.dtype]
) -> None:
    """With the metadata sorted, which the library writes in the order of a hash map."""
    content = {f"{i % 3}.{t}": torch.arange(6).view(3, 2).to(t) for i, t in enumerate(sorted(types, key=str))}
    content |= {"x": torch.arange(4.0), "number": torch.tensor(3), "empty": torch.zeros(0, 4)}
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    store.write_tensors(path, content, meta)
    data = save_bytes(content, meta)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if meta:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    else:
        header.pop("__metadata__", None)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    assert path.read_bytes() == len(text).to_bytes(8, "little") + text + data[8 + length :]
    assert torch.equal(load_bytes(path.read_bytes())["x"], torch.arange(4.0))


def test_shared_memory_is_written_once_each(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    store.write_tensors(tmp_path / "w.safetensors", {"a": base, "b": base, "c": base[1:]}, {})
    found, _ = store.read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(found["a"], found["b"])
    assert torch.equal(found["c"], base[1:])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    store.write_tensors(path, {"a": torch.ones(2)}, {})

    def broken(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="No space"):
        store.write_tensors(path, {"a": torch.zeros(2)}, {})
    assert torch.equal(store.read_tensors(path)[0]["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 4, b"\xff" * 64, b"PK\x03\x04 not weights", b"\x08" + b"\0" * 7 + b'{"a": 1}']
)
def test_a_corrupt_file_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"w\.safetensors: cannot be read as safetensors"):
        store.read_tensors(path)


def test_a_truncated_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    store.write_tensors(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot be read"):
        store.read_tensors(path)


def test_other_formats_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="not a safetensors file"):
        store.read_tensors(path)


def test_a_difference_is_readable() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state = dict(model.state_dict())
    state["0.weight"] = torch.zeros(4, 2)
    state["extra"] = state.pop("1.bias")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        store.load_strictly(model, state, "w.safetensors")
    assert str(caught.value).splitlines() == [
        "w.safetensors: 3 entries do not fit the model. Expected the same names and shapes.",
        "  missing    1.bias (1,)",
        "  unexpected extra (1,)",
        "  mismatched 0.weight: the model has (3, 2), the file (4, 2)",
    ]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_many_differences_are_cut() -> None:
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(20))
    with pytest.raises(UserError, match=r"40 entries .*(\n.*){12}\n  \.\.\. and 28 more"):
        store.load_strictly(model, {}, "w")


def test_finding(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no best\.safetensors"):
        store.find(tmp_path)
    store.write_tensors(tmp_path / "last.safetensors", {"a": torch.ones(1)}, {})
    assert store.find(tmp_path).path.name == "last.safetensors"
    store.write_tensors(tmp_path / "best.safetensors", {"a": torch.ones(1)}, {})
    assert store.find(tmp_path).path.name == "best.safetensors"
    assert store.find(tmp_path / "last.safetensors").name == "last"
    with pytest.raises(UserError, match='no weights "nothing-of-the-kind"'):
        store.find("nothing-of-the-kind")


def test_checksum(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert store.checksum(path) == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(UserError, match="cannot be read"):
        store.checksum(tmp_path / "absent")


def test_a_mistyped_path_names_the_runs_beside_it(tmp_path: Path) -> None:
    for name in ("first", "second", "pictures"):
        (tmp_path / name).mkdir()
    for name in ("first", "second"):
        (tmp_path / name / "recipe.yaml").touch()
    with pytest.raises(UserError, match=r"Did you mean \S*/first") as error:
        store.find(tmp_path / "frist")
    assert "pictures" not in str(error.value)
    store.write_tensors(tmp_path / "w.safetensors", {"a": torch.ones(1)}, {})
    with pytest.raises(UserError, match=r"Did you mean \S*/w.safetensors"):
        store.find(tmp_path / "w.safetensor")
