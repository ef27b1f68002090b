"""The published StarDist networks: a U-Net in 2-D and 3-D, a ResNet in 3-D, and the head on any features.

Schmidt et al. 2018 (arXiv 1806.03535) and Weigert et al. 2020 (arXiv 1908.03636). Layers carry the names of the
published models' layers, so that a published file of weights maps by name; `forward` can return what any of them gives.
What differs from torch's habits is written out: "same" padding is one pixel more after than before where a stride
leaves an odd total, batch norm has eps 1e-3 and momentum 0.01, dropout comes last in a block.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Trace(dict[str, Tensor]):
    """What layers gave, by name, where it is wanted: if all were kept, all those of a volume would stay in memory.

    `names`: every layer that was run.
    """

    def __init__(self, wanted: Collection[str] = ()) -> None:
        super().__init__()
        self.wanted, self.names = frozenset(wanted), list[str]()

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.names.append(name)
        if name in self.wanted:
            super().__setitem__(name, value)


CONVOLUTION: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
DROPOUT: dict[int, type[nn.Module]] = {2: nn.Dropout, 3: nn.Dropout}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "linear": lambda x: x,
}
"""Activations by the names that published configurations use."""


PRIOR = -3.0
"""Logit of a probability before anything is learnt, about 0.05 (Lin et al. 2017, section 4.1): objects are few, and a
network that sees one in every pixel has thousands of candidates."""


class SameConv(nn.Module):
    """A convolution whose output has ceil(n / stride) pixels an axis: half of the zeros before, the larger half after.

    `weight` (outputs, inputs, *kernel), `bias` (outputs,) or None. (B, inputs, *S) -> (B, outputs, *ceil(S / stride)).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int] | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride or (1,) * len(kernel))
        self._plain = all(k % 2 for k in self.kernel) and all(s == 1 for s in self.stride)
        padding = tuple(k // 2 for k in self.kernel) if self._plain else 0
        self.conv: Any = CONVOLUTION[len(self.kernel)](inputs, outputs, self.kernel, self.stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self._plain:
            widths: list[int] = []
            for n, k, s in zip(x.shape[2:], self.kernel, self.stride, strict=True):
                total = max((math.ceil(n / s) - 1) * s + k - n, 0)
                widths = [total // 2, total - total // 2, *widths]  # F.pad counts axes from the last
            x = F.pad(x, widths)
        found: Tensor = self.conv(x)
        return found


def glorot(module: SameConv) -> None:
    """Set a convolution as U-Net, features and heads begin: uniform after Glorot and Bengio 2010, zero bias."""
    nn.init.xavier_uniform_(module.conv.weight)
    if module.conv.bias is not None:
        nn.init.zeros_(module.conv.bias)


def he_normal(module: SameConv) -> None:
    """Set a convolution as the ResNet begins: normal, cut at two sigma, with std sqrt(2 / fan-in) after the cut."""
    weight = module.conv.weight
    fan_in = weight[0].numel()
    std = math.sqrt(2 / fan_in) / 0.87962566103423978  # std of a unit normal that is cut at two sigma
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    if module.conv.bias is not None:
        nn.init.zeros_(module.conv.bias)


class Layers(nn.Module):
    """Named layers of a published network, and the counters behind those that are named by kind and number."""

    def __init__(self, dims: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.dims, self.momentum = dims, momentum
        self.layers = nn.ModuleDict()
        self._count: Counter[str] = Counter()

    def auto(self, kind: str) -> str:
        """Return the next automatic name of a kind: conv2d, conv2d_1, ..."""
        number = self._count[kind]
        self._count[kind] += 1
        return kind if number == 0 else f"{kind}_{number}"

    def conv(
        self,
        name: str | None,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        bias: bool = True,
        begin: Callable[[SameConv], None] = glorot,
    ) -> str:
        """Add a convolution and return its name."""
        name = name or self.auto(f"conv{self.dims}d")
        layer = SameConv(inputs, outputs, kernel, stride, bias)
        begin(layer)
        self.layers[name] = layer
        return name

    def norm(self, channels: int) -> str:
        """Add a batch norm and return its name."""
        name = self.auto("batch_normalization")
        self.layers[name] = BATCH_NORM[self.dims](channels, eps=1e-3, momentum=self.momentum)
        return name


def pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the maximum of each window of `size`."""
    if all(s == 1 for s in size):
        return x
    window = tuple(size)
    return F.max_pool2d(x, window) if x.ndim == 4 else F.max_pool3d(x, window)


def repeat(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Return each pixel repeated along each axis."""
    if all(f == 1 for f in factors):
        return x
    return F.interpolate(x, scale_factor=tuple(float(f) for f in factors), mode="nearest")


class UNetBackbone(Layers):
    """The published U-Net: a stem that pools to the grid, levels down, a middle, levels up.

    `channels`: of the output, which is on the grid. `divisor`: what each axis of the input must be a multiple of.
    """

    def __init__(self, dims: int, in_channels: int, grid: Sequence[int], options: Any) -> None:
        super().__init__(dims, options.momentum)
        self.kernel = options.kernel or (3,) * dims
        self.pool = options.pool or (2,) * dims
        self.depth = options.depth if options.depth is not None else (3 if dims == 2 else 2)
        self.grid, self.options = tuple(grid), options
        self.divisor = tuple(p**self.depth * g for p, g in zip(self.pool, grid, strict=True))
        self._blocks: dict[str, tuple[str | None, str]] = {}
        self._activation = ACTIVATIONS[options.activation]
        self.dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        width = self._stem(in_channels)
        base, convs = options.filters, options.convs
        filters = [int(base * options.expansion**n) for n in range(self.depth + 1)]
        skips: list[int] = []
        for n in range(self.depth):
            for i in range(convs):
                width = self._block(f"down_level_{n}_no_{i}", width, filters[n])
            skips.append(width)
        for i in range(convs - 1):
            width = self._block(f"middle_{i}", width, filters[self.depth])
        width = self._block(f"middle_{convs}", width, int(base * options.expansion ** max(0, self.depth - 1)))
        for n in reversed(range(self.depth)):
            width += skips[n]
            for i in range(convs - 1):
                width = self._block(f"up_level_{n}_no_{i}", width, filters[n])
            last = options.last_activation if n == 0 else options.activation
            outputs = int(base * options.expansion ** max(0, n - 1))
            width = self._block(f"up_level_{n}_no_{convs}", width, outputs, last)
        self.channels = width

    def _stem(self, width: int) -> int:
        """Plan convolutions and pooling until the grid is reached; the stem knows neither norm nor prefix."""
        self._stems: list[tuple[list[str], tuple[int, ...], str]] = []
        pooled = [1] * self.dims
        while tuple(pooled) != self.grid:
            step = tuple(2 if g > p else 1 for g, p in zip(self.grid, pooled, strict=True))
            pooled = [p * s for p, s in zip(pooled, step, strict=True)]
            names = []
            for _ in range(self.options.convs):
                names.append(self.conv(None, width, self.options.filters, self.kernel))
                width = self.options.filters
            self._stems.append((names, step, self.auto(f"max_pooling{self.dims}d")))
        return width

    def _block(self, name: str, inputs: int, outputs: int, activation: str | None = None) -> int:
        full = self.options.prefix + name
        self.conv(full, inputs, outputs, self.kernel)
        norm = self.norm(outputs) if self.options.batch_norm else None
        self._blocks[full] = (norm, activation or self.options.activation)
        return outputs

    def _run(self, name: str, x: Tensor, trace: Trace) -> Tensor:
        full = self.options.prefix + name
        norm, activation = self._blocks[full]
        x = self.layers[full](x)
        if norm is not None:
            trace[full] = x
            x = ACTIVATIONS[activation](self.layers[norm](x))
        else:
            x = trace[full] = ACTIVATIONS[activation](x)
        found: Tensor = self.dropout(x)
        return found

    def forward(self, x: Tensor, trace: Trace) -> Tensor:
        """Return (B, channels, *S / grid) for (B, C, *S) with S a multiple of `divisor`; `trace` takes layers."""
        for names, step, pooling in self._stems:
            for name in names:
                x = trace[name] = self._activation(self.layers[name](x))
            x = trace[pooling] = pool(x, step)
        convs, skips = self.options.convs, []
        for n in range(self.depth):
            for i in range(convs):
                x = self._run(f"down_level_{n}_no_{i}", x, trace)
            skips.append(x)
            x = pool(x, self.pool)
        for i in (*range(convs - 1), convs):
            x = self._run(f"middle_{i}", x, trace)
        for n in reversed(range(self.depth)):
            x = torch.cat([repeat(x, self.pool), skips[n]], dim=1)
            for i in (*range(convs - 1), convs):
                x = self._run(f"up_level_{n}_no_{i}", x, trace)
        return x


class ResNetBackbone(Layers):
    """The published 3-D ResNet: two plain convolutions, then residual blocks that stride until the grid is reached."""

    def __init__(self, dims: int, in_channels: int, grid: Sequence[int], options: Any) -> None:
        super().__init__(dims, options.momentum)
        kernel = options.kernel or (3,) * dims
        self._activation = ACTIVATIONS[options.activation]
        self._first = [
            self.conv(None, in_channels, options.filters, (7,) * dims, begin=he_normal),
            self.conv(None, options.filters, options.filters, (3,) * dims, begin=he_normal),
        ]
        self.divisor = tuple(grid)
        self._blocks: list[tuple[list[tuple[str, str | None]], tuple[str, str | None] | None, str]] = []
        pooled, width, bias = [1] * dims, options.filters, not options.batch_norm
        outputs = options.filters
        for _ in range(options.blocks):
            step = tuple(2 if g > p else 1 for g, p in zip(grid, pooled, strict=True))
            pooled = [p * s for p, s in zip(pooled, step, strict=True)]
            if max(step) > 1:
                outputs *= 2
            main: list[tuple[str, str | None]] = []
            inputs = width
            for i in range(options.convs):
                stride = step if i == 0 else None
                name = self.conv(None, inputs, outputs, kernel, stride, bias, he_normal)
                main.append((name, self.norm(outputs) if options.batch_norm else None))
                inputs = outputs
            shortcut = None
            if max(step) > 1 or width != outputs:
                shortcut = (self.conv(None, width, outputs, (1,) * dims, step, bias, he_normal), None)
            self._blocks.append((main, shortcut, self.auto("add")))
            width = outputs
        if tuple(pooled) != tuple(grid):
            raise ValueError(
                f"{options.blocks} residual blocks cannot reach the grid {tuple(grid)}. Use more blocks or a finer grid"
            )
        self.channels = width

    def forward(self, x: Tensor, trace: Trace) -> Tensor:
        """Return (B, channels, *S / grid) for (B, C, *S) with S a multiple of `divisor`."""
        for name in self._first:
            x = trace[name] = self.layers[name](x)
        for main, shortcut, together in self._blocks:
            kept = x
            for i, (name, norm) in enumerate(main):
                x = trace[name] = self.layers[name](x)
                if norm is not None:
                    x = self.layers[norm](x)
                if i < len(main) - 1:
                    x = self._activation(x)
            if shortcut is not None:
                kept = trace[shortcut[0]] = self.layers[shortcut[0]](kept)
            x = trace[together] = kept + x
            x = self._activation(x)
        return x


class Heads(Layers):
    """What is read off the features: `prob` (B, 1, ...) logits, `dist` (B, rays, ...), `prob_class` (B, K + 1, ...).

    `features`: filters of the convolution before the heads, 0 = none. Classes have a branch of their own from the
    backbone's output; their channel 0 is the background.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        rays: int,
        classes: int | None,
        features: int,
        kernel: Sequence[int],
        activation: str,
    ) -> None:
        super().__init__(dims)
        self._activation = ACTIVATIONS[activation]
        self.branches: dict[str, str | None] = {"": None}
        one = (1,) * dims
        width = features or inputs
        if features:
            self.branches[""] = self.conv("features", inputs, features, kernel)
        self.conv("prob", width, 1, one)
        nn.init.constant_(self.layers["prob"].conv.bias, PRIOR)  # type: ignore[union-attr, arg-type]
        self.conv("dist", width, rays, one)
        if classes is not None:
            self.branches["class"] = self.conv("features_class", inputs, features, kernel) if features else None
            self.conv("prob_class", width, classes + 1, one)

    def _features(self, branch: str, x: Tensor, trace: Trace) -> Tensor:
        name = self.branches[branch]
        if name is None:
            return x
        found = trace[name] = self._activation(self.layers[name](x))
        return found

    def forward(self, x: Tensor, trace: Trace) -> dict[str, Tensor]:
        """Return the raw maps of the backbone's output (B, C, ...)."""
        found = self._features("", x, trace)
        maps = {"prob": self.layers["prob"](found), "dist": self.layers["dist"](found)}
        if "prob_class" in self.layers:
            maps["prob_class"] = self.layers["prob_class"](self._features("class", x, trace))
        return maps
