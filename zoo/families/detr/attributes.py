"""What is said of each box: a linear head on queries, or a network on regions cut out of early maps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.losses.detection import asymmetric_sum

REGION = (24, 30)
"""Height and width of a region in cells (Rehman et al. 2024, AttriDet)."""


class RegionNetwork(nn.Module):
    """AttriDet's attribute network: three convolutions with pooling, three linear layers; names as published.

    `forward(pooled)`: (N, C, 24, 30) -> (N, outputs).
    """

    def __init__(self, channels: int, outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 128, 3, padding=1)
        self.conv2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        flat = 64 * (REGION[0] // 8) * (REGION[1] // 8)
        self.fc1 = nn.Linear(flat, 1024)
        self.fc2 = nn.Linear(1024, 256)
        self.fc3 = nn.Linear(256, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, outputs)."""
        x = pooled
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.leaky_relu(convolution(x)), 2)
        x = F.leaky_relu(self.fc1(self.dropout(x.flatten(1))))
        x = F.leaky_relu(self.fc2(self.dropout(x)))
        made: Tensor = self.fc3(self.dropout(x))
        return made


def crop_regions(maps: Sequence[Tensor], boxes: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return (N, sum of channels, 24, 30): boxes cut out of maps, in the maps' order, by RoIAlign (He et al. 2017).

    `maps`: (B, C, H, W) each. `boxes`: for each map, for each image (n, 4) corners in that map's own pixels; the
    half-pixel shift is not applied, and the number of samples adapts to the size (as AttriDet does).
    """
    from torchvision.ops import roi_align

    return torch.cat(
        [
            roi_align(
                map_.float(), [b.float() for b in own], REGION, spatial_scale=1.0, sampling_ratio=-1, aligned=False
            )
            for map_, own in zip(maps, boxes, strict=True)
        ],
        1,
    )


def whole_cells(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Return corners (..., 4) in [0, 1] as whole pixels of a map of (height, width), at least one wide and high."""
    height, width = size
    scale = corners.new_tensor([width, height, width, height])
    found = (corners.clamp(0, 1) * scale).floor()
    low = torch.minimum(found[..., :2], scale[:2] - 1)
    return torch.cat([low, torch.maximum(found[..., 2:], low + 1)], -1)


class RegionHead(nn.Module):
    """Regions of the maps of stride 4 and 8, brought to `channels` where those are given, through `RegionNetwork`."""

    def __init__(self, inputs: Sequence[int], outputs: int, channels: Sequence[int] | None, dropout: float) -> None:
        super().__init__()
        wanted = tuple(channels or inputs)
        self.inputs = nn.ModuleList(
            nn.Conv2d(i, c, 1) if channels is not None else nn.Identity() for i, c in zip(inputs, wanted, strict=True)
        )
        self.network = RegionNetwork(sum(wanted), outputs, dropout)

    def forward(self, maps: Sequence[Tensor], corners: Tensor) -> Tensor:
        """Return (B, N, outputs) for maps (B, C, H, W) and corners (B, N, 4) in [0, 1] of the maps."""
        brought = [layer(map_) for layer, map_ in zip(self.inputs, maps, strict=True)]
        boxes = [list(whole_cells(corners.detach().float(), (m.shape[-2], m.shape[-1]))) for m in brought]
        found: Tensor = self.network(crop_regions(brought, boxes))
        return found.view(*corners.shape[:2], -1)


def by_attribute(logits: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the logits (..., size) of each attribute."""
    ends = list(itertools.accumulate(sizes))
    return [logits[..., end - size : end] for end, size in zip(ends, sizes, strict=True)]


def attribute_loss(logits: Tensor, labels: Tensor, sizes: Sequence[int], kind: str) -> Tensor:
    """Return the loss of N boxes' attributes: what is known of them, -1 = not known.

    `logits` (N, sum of sizes), `labels` (N, A), `sizes`: number of values of each attribute. "cross_entropy": a mean
    over what is known. "asymmetric": AttriDet's, of two logits an attribute, over boxes of which all is known, a sum
    divided by their number. Zero where nothing is known.
    """
    if kind == "asymmetric":
        whole = (labels >= 0).all(1)
        wanted = F.one_hot(labels[whole].clamp_min(0), 2).float()
        found = logits[whole].view(-1, len(sizes), 2)
        return asymmetric_sum(found, wanted) / max(int(whole.sum()), 1)
    total, known = logits.new_zeros((), dtype=torch.float32), 0
    for part, own in zip(by_attribute(logits.float(), sizes), labels.unbind(1), strict=True):
        told = own >= 0
        known += int(told.sum())
        total = total + F.cross_entropy(part[told], own[told], reduction="sum")
    return total / max(known, 1)
