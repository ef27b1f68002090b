"""From the scores and boxes of queries to a list of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.nn.boxes import to_corners


def top_boxes(
    probability: Tensor, boxes: Tensor, sizes: Tensor, most: int = 100
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the strongest pairs of query and class: scores (B, k), classes (B, k), corners (B, k, 4), queries (B, k).

    `probability` (B, Q, C) in [0, 1]; `boxes` (B, Q, 4) centre and size in [0, 1]; `sizes` (B, 2) height and width of
    the images, in whose pixels the corners come. k is `most`, or Q * C where that is less. A query may come with
    several classes; nothing is suppressed or clipped (Zhu et al. 2021).
    """
    B, Q, C = probability.shape
    scores, places = probability.reshape(B, -1).topk(min(most, Q * C), dim=1)
    queries = torch.div(places, C, rounding_mode="floor")
    corners = to_corners(boxes).gather(1, queries[..., None].expand(-1, -1, 4))
    height, width = sizes.to(corners).unbind(1)
    return scores, places % C, corners * torch.stack([width, height, width, height], 1)[:, None], queries
