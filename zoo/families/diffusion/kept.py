"""What a frozen network says of a picture, kept by the picture's content, so that it is computed once.

Values go through half precision before they are used, fresh ones too, and are computed a picture at a time: what comes
from memory, from the disk or from the network is the same to the bit, and a resumed run with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo import paths

Where = Literal["none", "memory", "disk"]
MEMORY = 2**30
"""Bytes that are held in memory at most; the oldest go first."""


def identity(network: nn.Module, *words: str) -> str:
    """Return a hash of a network's weights and of what else decides its answer."""
    digest = hashlib.blake2b("\n".join((type(network).__name__, *words)).encode(), digest_size=16)
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Kept:
    """Answers to pictures. `where`: none | memory | disk (`ZOO_CACHE`/diffusion, and memory)."""

    def __init__(self, where: Where = "memory", folder: Path | None = None, limit: int = MEMORY) -> None:
        self.where, self.limit, self.used = where, limit, 0
        self.folder = (folder or paths.cache_root() / "diffusion") if where == "disk" else None
        self.memory: OrderedDict[str, NDArray[np.float16]] = OrderedDict()
        self.hits = self.misses = 0

    def of(self, kind: str, pictures: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (B, ...) float32: for each of `pictures` (B, ...) what `compute` says of (1, ...), as (1, ...).

        `kind` names what computes, down to its weights (`identity`).
        """
        found = [self._one(kind, picture[None], compute) for picture in pictures]
        return torch.stack([torch.from_numpy(value.astype(np.float32)) for value in found]).to(pictures.device)

    def _one(self, kind: str, picture: Tensor, compute: Callable[[Tensor], Tensor]) -> NDArray[np.float16]:
        plain = picture.detach().cpu().contiguous()
        head = f"{kind} {tuple(plain.shape)} {plain.dtype}".encode()
        key = hashlib.blake2b(head + plain.numpy().tobytes(), digest_size=16).hexdigest()
        value = self._get(kind, key)
        if value is None:
            self.misses += 1
            value = compute(picture)[0].detach().float().cpu().numpy().astype(np.float16)
            self._put(kind, key, value)
        else:
            self.hits += 1
        return value

    def _path(self, kind: str, key: str) -> Path | None:
        return None if self.folder is None else self.folder / kind / key[:2] / f"{key}.npy"

    def _get(self, kind: str, key: str) -> NDArray[np.float16] | None:
        value = self.memory.get(key)
        if value is not None:
            self.memory.move_to_end(key)
            return value
        path = self._path(kind, key)
        if path is None:
            return None
        try:
            value = np.asarray(np.load(path), np.float16)
        except (OSError, ValueError, EOFError):  # not there, or cut short by a crash
            return None
        self._hold(key, value)
        return value

    def _put(self, kind: str, key: str, value: NDArray[np.float16]) -> None:
        if self.where == "none":
            return
        self._hold(key, value)
        path = self._path(kind, key)
        if path is None:
            return
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.save(file, value)
            part.replace(path)
        except OSError:  # a full disk costs the cache, not the run
            self.folder = None
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _hold(self, key: str, value: NDArray[np.float16]) -> None:
        self.memory[key] = value
        self.used += value.nbytes
        while self.used > self.limit and len(self.memory) > 1:
            self.used -= self.memory.popitem(last=False)[1].nbytes
