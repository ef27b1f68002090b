"""What does not learn in a stage: written once beside the checkpoints, which then hold only what differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.fetch import checksum
from zoo.weights import store

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Standing:
    """A file of the tensors that stood still when a stage began, and what of a state differs from it.

    Which tensors are worth a place in it is a guess (`candidates`). Every checkpoint is compared with the file, bit for
    bit, and holds what has moved all the same.
    """

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.path, self.sha256 = path, sha256

    @staticmethod
    def path_of(folder: Path, stage: int) -> Path:
        """Return where the file of a stage lies."""
        return folder / f"still-{stage:02d}.safetensors"

    @classmethod
    def of(cls, record: Mapping[str, str], folder: Path) -> Standing:
        """Return the file that a checkpoint names."""
        return cls(folder / Path(record["file"]).name, record["sha256"])

    def record(self) -> dict[str, str] | None:
        """Return plain values by which a checkpoint names the file, or None where nothing stands still."""
        return None if self.sha256 is None else {"file": self.path.name, "sha256": self.sha256}

    def write(self, module: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the file from what of a module (of its `state`, where that is not to hand whole) stands still, if
        anything does."""
        tensors = candidates(module, state)
        if tensors:
            store.write_tensors(self.path, tensors, {})
            self.sha256 = checksum(self.path)

    def without(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what of a state is not, bit for bit, in the file."""
        if self.sha256 is None:
            return dict(state)
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:  # mapped, not read into memory
            inside = set(file.keys())
            return {k: v for k, v in state.items() if k not in inside or not same(v, file.get_tensor(k))}

    def restore(self, *states: dict[str, Tensor]) -> None:
        """Put back, into each state, what `without` left out. Raises `UserError` where the file is not what it was."""
        again = "Copy it again, or start the run again in another output folder."
        if not self.path.is_file():
            raise UserError(f"{self.path}: the checkpoint needs this file, which is not there. {again}")
        if checksum(self.path) != self.sha256:
            raise UserError(f"{self.path}: it has changed since the checkpoint was written. {again}")
        tensors, _ = store.read_tensors(self.path)
        for state in states:
            for name in tensors.keys() - state.keys():
                state[name] = tensors[name].clone()


def tidy(folder: Path, keep: Standing | None = None) -> None:
    """Remove the files that the last checkpoint does not name; call once it is written."""
    for path in folder.glob("still-*.safetensors"):
        if keep is None or path != keep.path:
            path.unlink()


def candidates(module: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the entries of a module's state that seem to stand still: parameters that want no gradient, and the
    buffers of layers none of whose own parameters learns. Empty where every parameter learns."""
    still = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    if not still:
        return {}
    for prefix, layer in module.named_modules():
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            start = f"{prefix}." if prefix else ""
            still |= {start + name for name, _ in layer.named_buffers(recurse=False)}
    return {name: value for name, value in (state or module.state_dict()).items() if name in still}


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are alike bit for bit, -0 and not-a-number included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    kind = _WHOLE.get(one.element_size())
    one, other = one.detach().cpu().contiguous(), other.contiguous()
    return torch.equal(one.view(kind), other.view(kind)) if kind else torch.equal(one, other)


def restored(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a checkpoint with what stood still put back. Raises `UserError`."""
    record = state.get("standing")
    if record:
        average = state.get("average")
        Standing.of(record, folder).restore(state["family"], *([average["values"]] if average else []))
    return state
