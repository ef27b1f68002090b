"""Features of a frozen encoder, kept: the same pixels are looked at once.

Whoever trains a decoder on a frozen encoder with a few fixed views of each picture (`data.train.patch_epochs` with
`fixed: true`) computes each view's features in the first epochs and finds them again in all that follow.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from zoo.encoders.base import Encoder, Features

Entry = tuple[tuple[int, int], tuple[Tensor, ...]]
"""How many maps and how many sets of prefix tokens, and all tensors in a row; patch tokens last."""


class FeatureCache:
    """Features by the content of a picture, in memory, up to `limit` bytes.

    What does not fit is computed every time. On a CPU pictures are computed one by one, so that what is kept does not
    depend on which others were in a batch: a run that is resumed, with nothing kept, learns the same bit for bit.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = self.hits = self.misses = 0
        self._entries: dict[bytes, Entry] = {}

    def __deepcopy__(self, memo: object) -> FeatureCache:
        return FeatureCache(self.limit)  # a copy of a network (its average, say) keeps features of its own

    def key(self, picture: Tensor, pad: bool) -> bytes:
        """Return what stands for one picture (C, H, W)."""
        flat = picture.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes()
        return hashlib.blake2b(flat, digest_size=16, salt=bytes([pad])).digest() + str(tuple(picture.shape)).encode()

    def features(self, encoder: Encoder, x: Tensor, pad: bool) -> Features:
        """Return the features of (B, C, H, W): those that are kept, and the others computed and kept."""
        keys = [self.key(picture, pad) for picture in x]
        found = [self.get(key) for key in keys]
        missing = [i for i, entry in enumerate(found) if entry is None]
        for part in [[i] for i in missing] if x.device.type == "cpu" else [missing] if missing else []:
            with torch.no_grad():
                made = encoder.compute(x[part], pad)
            for place, i in enumerate(part):
                entry = found[i] = flat(made, place)
                self.put(keys[i], entry)
        return together([entry for entry in found if entry is not None], x.device)

    def get(self, key: bytes) -> Entry | None:
        """Return what is kept, and count."""
        found = self._entries.get(key)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep features, where there is room."""
        size = sum(t.numel() * t.element_size() for t in entry[1])
        if self.used + size <= self.limit and key not in self._entries:
            self._entries[key] = entry[0], tuple(t.detach().clone().cpu() for t in entry[1])
            self.used += size


def flat(features: Features, index: int) -> Entry:
    """Return one picture's features of a batch."""
    parts = [m[index : index + 1] for m in (*features.maps, *features.prefix)]
    if features.tokens is not None:
        parts.append(features.tokens[index : index + 1])
    return (len(features.maps), len(features.prefix)), tuple(parts)


def together(entries: list[Entry], device: torch.device) -> Features:
    """Return the features of a batch."""
    maps, prefixes = entries[0][0]
    rows = [torch.cat([entry[1][i].to(device) for entry in entries]) for i in range(len(entries[0][1]))]
    behind = rows[maps + prefixes :]
    return Features(tuple(rows[:maps]), behind[0] if behind else None, tuple(rows[maps : maps + prefixes]))
