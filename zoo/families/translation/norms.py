"""Instance norm whose statistics can be those of a whole picture, so that its tiles do not differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoo.nn.norms import InstanceNorm2d


class Instance(InstanceNorm2d):
    """Instance norm without parameters. While a `survey` measures, statistics are pooled over the batch, as if its
    tiles were one picture; afterwards, and until it ends, every picture is normalised with them."""

    measuring: bool = False
    pooled: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        if self.measuring:
            wide = x.float()
            mean = wide.mean((0, 2, 3), keepdim=True)
            self.pooled = (mean, (wide - mean).square().mean((0, 2, 3), keepdim=True))
        if self.pooled is None:
            return super().forward(x)
        mean, variance = self.pooled
        scale = torch.rsqrt(variance + self.eps)
        return torch.addcmul((-mean * scale).to(x.dtype), x, scale.to(x.dtype))


@contextmanager
def surveyed(module: nn.Module, tiles: Tensor, run: nn.Module | None = None) -> Iterator[None]:
    """Within the context instance norms of `module` use the statistics of `tiles` (B, C, h, w) taken together."""
    norms = [part for part in module.modules() if isinstance(part, Instance)]
    for norm in norms:
        norm.measuring = True
    try:
        with torch.no_grad():
            (run or module)(tiles)
        for norm in norms:
            norm.measuring = False
        yield
    finally:
        for norm in norms:
            norm.measuring, norm.pooled = False, None
