"""Other people's files: every format is read, nothing in any is executed, and a bad one is one line."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.weights import readers

W = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, 2.0]), "steps": torch.tensor(3)}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bare_state_dict(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(W, path, _use_new_zipfile_serialization=not legacy)
    same(readers.read(path).tensors, W)
    same(readers.state_dict(path), W)


def test_the_suffix_is_not_believed(tmp_path: Path) -> None:
    torch.save({"desc": W}, tmp_path / "weights.tar")  # as Cerberus is published
    same(readers.state_dict(tmp_path / "weights.tar"), W)
    np.savez(tmp_path / "w.pth", **{k: v.numpy() for k, v in W.items()})
    (tmp_path / "w.pth.npz").rename(tmp_path / "w.pth")
    same(readers.read(tmp_path / "w.pth").tensors, W)


@pytest.mark.parametrize("key", [None, "desc"])
def test_a_checkpoint_with_an_optimiser_and_settings(tmp_path: Path, key: str | None) -> None:
    model = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    settings = argparse.Namespace(lr=0.1, out=Path("/somewhere"))
    counts: dict[str, int] = defaultdict(int, {"seen": 4})
    content = {
        "desc": OrderedDict(("module." + k, v) for k, v in model.state_dict().items()),
        "optimizer": optimiser.state_dict(),
        "args": settings,
        "counts": counts,
        "best": np.float64(0.5),
        "history": [np.float32(1.0), None, "text"],
        "epoch": 7,
    }
    path = tmp_path / "c.ckpt"
    torch.save(content, path)
    same(readers.state_dict(path, key), dict(model.state_dict()))
    contents = readers.read(path)
    assert contents.values["epoch"] == 7
    assert "optimizer.state.0.exp_avg" in contents.tensors
    assert {"desc", "optimizer"} <= contents.groups


def test_a_module_named_model_is_not_taken_for_a_wrapper(tmp_path: Path) -> None:
    given = {"model.1.bias": torch.ones(2), "model.4.bias": torch.zeros(2)}
    torch.save(given, tmp_path / "latest_net_G.pth")
    same(readers.state_dict(tmp_path / "latest_net_G.pth"), given)


def test_an_unknown_key_is_said(tmp_path: Path) -> None:
    torch.save({"state": W}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r'nothing lies under "desc"\. It has state'):
        readers.state_dict(tmp_path / "w.pth", "desc")


def test_tied_weights_and_half_precision(tmp_path: Path) -> None:
    shared = torch.arange(1000.0)
    given = {f"layer{i}": shared for i in range(3)} | {"half": torch.ones(3, dtype=torch.bfloat16), "none": shared[:0]}
    torch.save(given, tmp_path / "w.pt")
    same(readers.read(tmp_path / "w.pt").tensors, given)


@pytest.mark.parametrize(("kernel", "inside"), [("kernel:0", False), ("kernel", False), ("kernel:0", True)])
def test_keras_legacy_layout(tmp_path: Path, kernel: str, inside: bool) -> None:
    """Read through the attributes, in the order of `layer_names`; Keras 2 writes ":0", Keras 3 does not."""
    path = tmp_path / "weights_best.h5"
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if inside else file
        root.attrs["layer_names"] = np.array([b"input", b"conv2d_7", b"batch_normalization", b"conv2d_3", b"nested"])
        root.create_group("input").attrs["weight_names"] = np.array([], "S1")
        for layer, shape in (("conv2d_7", (3, 3, 1, 2)), ("conv2d_3", (1, 1, 2, 4))):
            group = root.create_group(layer)
            group.attrs["weight_names"] = np.array([f"{layer}/{kernel}".encode()])
            group[f"{layer}/{kernel}"] = np.full(shape, len(shape), np.float32)
        group = root.create_group("batch_normalization")
        group.attrs["weight_names"] = np.array([b"batch_normalization/gamma:0"])
        group["batch_normalization/gamma:0"] = np.ones(2, ">f4")
        group = root.create_group("nested")
        group.attrs["weight_names"] = np.array([b"conv2d/kernel:0"])
        group.create_dataset("conv2d/kernel:0", data=np.ones((1, 1, 4, 4), np.float32), compression="gzip")
        group["not listed"] = np.ones(3)
    contents = readers.read(path)
    names = ["conv2d_7.kernel", "batch_normalization.gamma", "conv2d_3.kernel", "nested.conv2d.kernel"]
    assert list(contents.tensors) == names
    assert contents.tensors["conv2d_7.kernel"].shape == (3, 3, 1, 2)
    assert torch.equal(contents.tensors["batch_normalization.gamma"], torch.ones(2))
    assert json.loads(contents.values["layer_names"])[0] == "input"


def test_other_hdf5_files_are_their_datasets_by_path(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.ones((2, 2))
        file["layers/conv2d/name"] = "text"
        file.attrs["version"] = 3
    assert list(readers.read(tmp_path / "w.h5").tensors) == ["layers.conv2d.vars.0"]


# --- what is refused, each in one line --------------------------------------------------------------------------------


class Boom:
    """Runs a command where a pickle is trusted."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _savez(path: Path, **arrays: Any) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _zip(path: Path, entries: dict[str, bytes], packed: bool = False) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def _npy(header: bytes, data: bytes = b"") -> bytes:
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _script(path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Net(), torch.ones(1)).save(str(path))


def _rebuilt(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Callable[[Path], None]:
    """A torch file whose tensor claims another shape than its storage holds."""

    def write(path: Path) -> None:
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(4)}, buffer)
        with zipfile.ZipFile(buffer) as archive:
            entries = {i.filename: archive.read(i) for i in archive.infolist()}
        name = next(n for n in entries if n.endswith("data.pkl"))
        text = entries[name]
        at = text.index(b"K\x00K\x04\x85")  # offset 0, size (4,)
        end = text.index(b"K\x01\x85", at) + 3  # stride (1,)
        parts = [pickle.dumps(x, protocol=2)[2:-1] for x in (offset, size, stride)]
        parts = [part.replace(b"q\x00", b"").replace(b"q\x01", b"") for part in parts]
        head, memo = text[:at], text[at:end]
        keep = memo[memo.index(b"\x85") + 1 : memo.rindex(b"K\x01\x85")]
        entries[name] = head + parts[0] + parts[1] + keep + parts[2] + text[end:]
        _zip(path, entries)

    return write


def _nested(path: Path) -> None:
    tree: Any = {"w": torch.ones(1)}
    for _ in range(40):
        tree = {"a": tree, "b": tree}
    torch.save(tree, path)


def _external(path: Path) -> None:
    secret = path.with_suffix(".secret")
    secret.write_bytes(b"\1" * 64)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (8,), "f8", external=[(str(secret), 0, 64)])


def _linked(path: Path) -> None:
    with h5py.File(path.with_suffix(".other"), "w") as other:
        other["w"] = np.ones(3)
    with h5py.File(path, "w") as file:
        file["w"] = h5py.ExternalLink(str(path.with_suffix(".other")), "/w")


def _huge_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (10**7, 10**5), "f8", chunks=(100, 100), compression="gzip")


def _virtual(path: Path) -> None:
    with h5py.File(path.with_suffix(".other"), "w") as other:
        other["w"] = np.ones(3)
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(path.with_suffix(".other")), "w", (3,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("w", layout)


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _truncated(path: Path) -> None:
    torch.save(W, path)
    path.write_bytes(path.read_bytes()[:-200])


def _hex_bomb(path: Path) -> None:
    # x = b"..."; x = encode(x, "hex") forty times over: 2**40 bytes
    body = b"\x80\x02c_codecs\nencode\nq\x00X\x02\x00\x00\x00abX\x06\x00\x00\x00latin1\x86R"
    body += b"q\x01" + b"h\x00h\x01X\x03\x00\x00\x00hex\x86Rq\x01" * 40 + b"."
    _zip(path, {"a/data.pkl": body, "a/version": b"3\n"})


F4 = {"dtype": "F32", "shape": [2]}
CORPUS: dict[str, tuple[Callable[[Path], None], str]] = {
    "os.system": (lambda p: torch.save({"a": Boom(os.system, f"touch {p}.executed")}, p), "asks for .*system"),
    "eval": (lambda p: torch.save({"a": Boom(eval, f"open({str(p) + '.executed'!r}, 'w')")}, p), "asks for .*eval"),
    "legacy pickle": (
        lambda p: torch.save([Boom(os.mkdir, f"{p}.executed")], p, _use_new_zipfile_serialization=False),
        "asks for .*mkdir",
    ),
    "plain pickle": (lambda p: p.write_bytes(pickle.dumps(Boom(os.system, f"touch {p}.executed"))), r"w: "),
    "getattr": (lambda p: torch.save(Boom(getattr, "text", "upper"), p), "asks for|pickle"),
    "whole module": (lambda p: torch.save(nn.Linear(1, 1), p), "asks for torch.nn.modules.linear.Linear"),
    "numpy objects": (
        lambda p: _savez(p, a=np.array([Boom(os.system, f"touch {p}.executed")], object)),
        "pickled objects",
    ),
    "TorchScript": (_script, "TorchScript"),
    "hex bomb": (_hex_bomb, "nothing in it was executed"),
    "packed torch file": (lambda p: _zip(p, {"a/data.pkl": b"\x80\x02}." + b" " * 10**6}, True), "are packed"),
    "npz bomb": (
        lambda p: _zip(
            p, {"a.npy": _npy(b"{'descr':'|u1','fortran_order':False,'shape':(30000000,)}", bytes(3 * 10**7))}, True
        ),
        "claim to hold",
    ),
    "npz claims": (
        lambda p: _zip(p, {"a.npy": _npy(b"{'descr':'<f8','fortran_order':False,'shape':(1000000000000,)}")}),
        "claims 8000.0 GB",
    ),
    "npz header is code": (lambda p: _zip(p, {"a.npy": _npy(b"__import__('os').system('true')")}), "cannot be read"),
    "npz huge header": (lambda p: _zip(p, {"a.npy": _npy(b"{" + b" " * 60000 + b"}")}), "cannot be read"),
    "zip path traversal": (lambda p: _zip(p, {"../../evil.npy": _npy(b"{}")}), "leads outside"),
    "zip absolute": (lambda p: _zip(p, {"/etc/evil/data.pkl": b"\x80\x02}."}), "leads outside"),
    "zip of something": (lambda p: _zip(p, {"readme.txt": b"hello"}), "a zip file of something else"),
    "torch out of bounds": (_rebuilt((100, 100), (100, 1)), r"cannot be read|claims"),
    "torch far offset": (_rebuilt((4,), (1,), 2**31 - 9), r"cannot be read|claims"),
    "torch expanded": (_rebuilt((2**30,), (0,)), "claims 4.3 GB"),
    "endless nesting": (_nested, "without end"),
    "meta tensor": (lambda p: torch.save({"a": torch.empty(2, device="meta")}, p), "no dense tensor"),
    "sparse tensor": (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "no dense tensor"),
    "no tensors": (lambda p: torch.save({"epoch": 3}, p), "holds no tensors"),
    "a number": (lambda p: torch.save(3, p), "no state dict"),
    "truncated torch": (_truncated, "damaged"),
    "hdf5 external bytes": (_external, "in another file"),
    "hdf5 external link": (_linked, "link to elsewhere"),
    "hdf5 virtual": (_virtual, "in another file"),
    "hdf5 claims": (_huge_hdf5, "claims 8000.0 GB"),
    "hdf5 damaged": (_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "cannot be read as hdf5"),
    "st overlap": (
        _bytes(_safetensors({"a": F4 | {"data_offsets": [0, 8]}, "b": F4 | {"data_offsets": [4, 12]}}, bytes(12))),
        "cannot be read as safetensors",
    ),
    "st hole": (
        _bytes(_safetensors({"a": F4 | {"data_offsets": [0, 8]}, "b": F4 | {"data_offsets": [16, 24]}}, bytes(24))),
        "cannot be read as safetensors",
    ),
    "st outside": (
        _bytes(_safetensors({"a": F4 | {"data_offsets": [0, 8]}}, bytes(4))),
        "cannot be read as safetensors",
    ),
    "st shape": (
        _bytes(_safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, bytes(8))),
        "cannot be read as safetensors",
    ),
    "st huge header": (_bytes(struct.pack("<Q", 2**39) + b"{" + bytes(64)), "cannot be read as safetensors"),
    "st header of spaces": (_bytes(_safetensors(b"{" + b" " * 1000 + b"}", b"")), "holds no tensors|cannot be read"),
    "web page": (_bytes(b"<!DOCTYPE html><html>sign in</html>"), "is a web page"),
    "git lfs": (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "pointer of Git LFS"),
    "empty": (_bytes(b""), "is empty"),
    "noise": (_bytes(bytes(range(64))), "of no known kind"),
    "tar": (_bytes(bytes(257) + b"ustar" + bytes(300)), "archive"),
}


@pytest.mark.parametrize("case", CORPUS)
def test_malicious_and_broken_files(tmp_path: Path, case: str) -> None:
    write, expected = CORPUS[case]
    path = tmp_path / "w"
    write(path)
    with pytest.raises(UserError, match=expected) as caught:
        readers.read(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"{path}: ")
    assert len(text) - len(str(path)) < 330
    assert not list(tmp_path.glob("*.executed"))


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        readers.read(tmp_path / "absent.pth")
