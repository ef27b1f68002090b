"""Decoded samples in memory, decoded once and shared by the loader's processes.

The samples lie in anonymous shared memory, mapped before the workers are forked: whichever process decodes a sample
first, every other one reads the same bytes without a copy. Pages are taken only as they are filled. Where processes are
spawned and not forked, each keeps what it decoded itself.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

_ALIGN = 64
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def memory_limit() -> int:
    """Return the bytes of memory that this process may use in all."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(_CGROUP.read_text()))
    except (OSError, ValueError):
        return total


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


class SharedCache:
    """Values 0..count-1, each put once. Arrays in them come back read-only.

    `limit`: bytes that are held at most (None: a quarter of the memory); what does not fit is not kept.
    """

    def __init__(self, count: int, limit: int | None = None) -> None:
        self.count = count
        self.limit = _aligned(memory_limit() // 4 if limit is None else limit) or _ALIGN
        context = multiprocessing.get_context("fork")
        self._memory: mmap.mmap | None
        try:
            self._memory = mmap.mmap(-1, self.limit)
        except OSError:  # a machine that promises no more memory than it has
            self._memory = None
        self._places = context.RawArray("q", 2 * count)  # start and length of each value; length 0 = not here
        self._used = context.Value("q", 0)
        self._own: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count, "limit": self.limit}  # a spawned process cannot map anonymous memory

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.count, self.limit = state["count"], state["limit"]
        self._memory, self._own = None, {}

    def get(self, index: int) -> Any | None:
        """Return a value, or None where it is not held."""
        if self._memory is None:
            return self._own.get(index)
        start, length = self._places[2 * index : 2 * index + 2]
        if not length:
            return None
        view = memoryview(self._memory).toreadonly()[start : start + length]
        head = 8 * int.from_bytes(view[:8], "little")
        sizes = [int.from_bytes(view[8 + i : 16 + i], "little") for i in range(0, head, 8)]
        parts, at = [], _aligned(8 + head)
        for size in sizes:
            parts.append(view[at : at + size])
            at += _aligned(size)
        return pickle.loads(parts[0], buffers=parts[1:])

    def put(self, index: int, value: Any) -> None:
        """Keep a value, where there is room."""
        if self._memory is None:
            self._own[index] = value
            return
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        sizes = [len(parts), *(part.nbytes for part in parts)]
        first = _aligned(8 * len(sizes))
        length = first + sum(_aligned(size) for size in sizes[1:])
        with self._used.get_lock():
            start = self._used.value
            if start + length > self.limit or self._places[2 * index + 1]:
                return
            self._used.value = start + length
        self._memory[start : start + 8 * len(sizes)] = b"".join(size.to_bytes(8, "little") for size in sizes)
        at = start + first
        for part in parts:
            self._memory[at : at + part.nbytes] = part
            at += _aligned(part.nbytes)
        self._places[2 * index] = start
        self._places[2 * index + 1] = length  # last: a reader sees the value whole or not at all
