"""The same function with fewer operations, for inference: what a network computes after training, up to rounding.

- A batch norm behind a convolution, in evaluation mode, is a scale and a shift a channel, which the convolution's own
  weights take over. Which norm follows which convolution is seen in a run, not guessed from names.
- A 3 x 3 convolution over a map enlarged twice by repeating pixels reads every pixel of the small map several times
  with different weights. Summed beforehand, they are a transposed convolution of the small map: 4 products where there
  were 9. (Aitken et al. 2017 show that the two are one function.)
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

M = TypeVar("M", bound=nn.Module)

CONVOLUTIONS = frozenset({"convolution", "_convolution", "conv1d", "conv2d", "conv3d"})
MEAN = 3  # where torch's batch norms, all of them, are handed the running mean
TAPS = ((2,), (1, 2), (0, 1), (0,))
"""Row k of the transposed kernel is the sum of these rows of the convolution's."""


@dataclass(frozen=True)
class Pair:
    """A convolution and the batch norm that alone reads what it makes, by their names in the module."""

    convolution: str
    norm: str


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches which convolution's output goes into which batch norm, and into nothing else."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, Tensor] = {}  # outputs of convolutions: kept, so that no other tensor gets their identity
        self.weight: dict[int, int] = {}
        self.mean: dict[int, int] = {}
        self.readers: Counter[int] = Counter()
        self.runs: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.readers.update({id(t) for t in tree_leaves((args, kwargs)) if id(t) in self.made})
        found = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in CONVOLUTIONS:
            self.made[id(found)], self.weight[id(found)] = found, id(args[1])
            self.runs[id(args[1])] += 1
        elif "batch_norm" in name and len(args) > MEAN:
            self.runs[id(args[MEAN])] += 1
            if id(args[0]) in self.made:
                self.mean[id(args[0])] = id(args[MEAN])
        return found


def pairs(module: nn.Module, run: Callable[[], Any]) -> tuple[Pair, ...]:
    """Return the norms of `module` that can be folded; `run()` sends it one input, in evaluation mode.

    Left alone are convolutions and norms that run more than once, have hooks or computed weights, or whose output
    something else sees too.
    """
    with torch.inference_mode(), _Trace() as trace:
        result = run()
    seen = {id(t) for t in tree_leaves(result)}
    every = list(module.named_modules(remove_duplicate=False))
    times = Counter(id(m) for _, m in every)
    single = [(name, m) for name, m in every if times[id(m)] == 1 and not _hooked(m)]
    weights = {id(m._parameters.get("weight")): name for name, m in single if _foldable_convolution(m)}
    means = {id(m._buffers.get("running_mean")): name for name, m in single if _foldable_norm(m)}
    return tuple(
        Pair(weights[weight], means[mean])
        for output, mean in trace.mean.items()
        if (weight := trace.weight[output]) in weights
        and mean in means
        and trace.readers[output] == trace.runs[weight] == trace.runs[mean] == 1
        and output not in seen
    )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _foldable_convolution(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return (
        isinstance(module, _ConvNd) and not module.transposed and weight is not None and weight.dtype is torch.float32
    )


def _foldable_norm(module: nn.Module) -> bool:
    usual = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm) or _with_activation(
        module
    )
    return usual and isinstance(module, _BatchNorm) and module.running_mean is not None and not module.training


def _with_activation(module: nn.Module) -> bool:
    return type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm.")


def fused(module: M, found: tuple[Pair, ...], *, upsampled: bool = True) -> M:
    """Return a copy of `module` with those norms folded; it shares every tensor that did not change.

    `upsampled`: also replace convolutions over repeated pixels (a gain on a CPU). The copy is for inference, in
    evaluation mode. Raises `TypeError` or `RuntimeError` for a module that cannot be copied.
    """
    tensors = [*module.parameters(), *module.buffers()]
    clone = copy.deepcopy(module, {id(t): t for t in tensors})
    for pair in found:
        convolution, norm = clone.get_submodule(pair.convolution), clone.get_submodule(pair.norm)
        assert isinstance(convolution, _ConvNd)
        assert isinstance(norm, _BatchNorm)
        _replace(clone, pair.convolution, folded(convolution, norm))
        after: Any = norm
        _replace(clone, pair.norm, nn.Sequential(after.drop, after.act) if _with_activation(norm) else nn.Identity())
    if upsampled:
        for name, block in list(clone.named_modules()):
            if _doubles(block):
                _replace(clone, name, Doubled(block))
    return clone


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    module.get_submodule(parent)._modules[own] = new


def folded(convolution: _ConvNd, norm: _BatchNorm) -> _ConvNd:
    """Return the convolution that computes `norm(convolution(x))` of a norm in evaluation mode."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + norm.eps).rsqrt()
    shift = -mean.double() if convolution.bias is None else convolution.bias.detach().double() - mean.double()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    weight = convolution.weight.detach()
    new = copy.copy(convolution)  # whatever its class does around the convolution (padding, say) stays
    new._parameters = {
        "weight": _fixed((weight * scale.view(-1, *(1,) * (weight.ndim - 1))).to(weight.dtype)),
        "bias": _fixed(shift.to(weight.dtype)),
    }
    return new


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


# --- convolutions over repeated pixels --------------------------------------------------------------------------------


def doubling_kernel(weight: Tensor) -> Tensor:
    """Return (I, O, 4, 4) of (O, I, 3, 3): a transposed convolution with it, stride 2 and padding 1, is the convolution
    with `weight`, padding 1, of the map enlarged twice by repeating pixels."""
    rows = torch.stack([weight[:, :, list(taps)].sum(2) for taps in TAPS], 2)
    both = torch.stack([rows[..., list(taps)].sum(3) for taps in TAPS], 3)
    return both.transpose(0, 1).contiguous(memory_format=torch.channels_last)


def _doubles(block: nn.Module) -> bool:
    """Return whether it is smp's U-Net block whose first convolution reads a map of repeated pixels."""
    known: Any = block
    if type(block).__name__ != "UnetDecoderBlock" or known.interpolation_mode != "nearest" or _hooked(block):
        return False
    first = known.conv1[0]
    usual = type(first) is nn.Conv2d and first.kernel_size == (3, 3) and first.padding == (1, 1)
    plain = usual and first.groups == 1 and first.stride == first.dilation == (1, 1) and not _hooked(first)
    attention = getattr(known.attention1, "attention", known.attention1)
    return plain and isinstance(attention, nn.Identity)


class Doubled(nn.Module):
    """smp's U-Net block: enlarge, stack the skip, convolve twice; the enlarged map is never made."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = block
        self._kernels: Mapping[int, tuple[Tensor, Tensor]] = {}

    def _split(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return the kernels over the enlarged map's `channels` and over the skip's."""
        if channels not in self._kernels:
            weight = self.block.conv1[0].weight
            own = weight[:, channels:].contiguous(memory_format=torch.channels_last)
            self._kernels = {channels: (doubling_kernel(weight[:, :channels]), own)}
        return self._kernels[channels]

    def forward(self, x: Tensor, height: int, width: int, skip_connection: Tensor | None = None) -> Tensor:
        """Return (B, O, height, width) of (B, C, h, w) and the skip (B, S, height, width)."""
        if (height, width) != (2 * x.shape[2], 2 * x.shape[3]):
            whole: Tensor = self.block(x, height, width, skip_connection)
            return whole
        first, *rest = self.block.conv1
        kernel, own = self._split(x.shape[1])
        found = F.conv_transpose2d(x, kernel, first.bias, stride=2, padding=1)
        if skip_connection is not None:
            found += F.conv2d(skip_connection, own, padding=1)
        for layer in (*rest, self.block.conv2, self.block.attention2):
            found = layer(found)
        return found
