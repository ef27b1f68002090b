"""Low-rank adaptation of linear layers (Hu et al. 2022, LoRA, section 4.1), also of parts of a fused layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo.errors import UserError


class LowRank(nn.Module):
    """Adds alpha / rank * up @ down to the chosen row blocks of a weight (outputs, inputs).

    A fused query-key-value layer has three blocks; (0, 2) adapts queries and values. `up` starts at zero, so that an
    adapted layer begins as the layer it was.
    """

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        alpha: float,
        blocks: int,
        adapted: Sequence[int],
        spread: float | None = None,
    ) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.rows, self.blocks, self.adapted, self.scale = outputs // blocks, blocks, tuple(adapted), alpha / rank
        count = len(self.adapted)
        self.down = nn.Parameter(weight.detach().new_empty(count, rank, inputs))
        self.up = nn.Parameter(weight.detach().new_zeros(count, self.rows, rank))
        if spread is not None:
            nn.init.normal_(self.down, std=spread)
            return
        for part in self.down:
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        change = self.scale * torch.bmm(self.up, self.down).to(weight.dtype)
        parts = list(torch.split(weight, self.rows))
        for index, block in enumerate(self.adapted):
            parts[block] = parts[block] + change[index]
        return torch.cat(parts)


def add_low_rank(
    layer: nn.Linear,
    rank: int,
    *,
    alpha: float | None = None,
    blocks: int = 1,
    adapted: Sequence[int] = (0,),
    spread: float | None = None,
) -> None:
    """Adapt a linear layer in place: its weight stands still, `down` and `up` learn. `alpha` is `rank` unless given.

    `spread`: standard deviation that `down` is drawn with; None = uniform, as torch fills a linear layer.

    The layer stays an `nn.Linear` whose `weight` is the adapted one, for code that reads `layer.weight`. Raises
    `UserError` for an impossible rank or blocks that do not divide the outputs.
    """
    if not 1 <= rank <= min(layer.weight.shape):
        raise UserError(f"adapt: rank is {rank}. Expected 1 to {min(layer.weight.shape)}, the width of the layer.")
    if layer.out_features % blocks:
        raise UserError(f"adapt: {layer.out_features} outputs are no {blocks} equal blocks. Adapt the layer whole.")
    layer.requires_grad_(False)
    change = LowRank(layer.weight, rank, float(rank if alpha is None else alpha), blocks, adapted, spread)
    parametrize.register_parametrization(layer, "weight", change)


def merged(module: nn.Module) -> nn.Module:
    """Return the module where it has no adapters, else a copy whose weights hold them."""
    adapted = any(isinstance(part, LowRank) for part in module.modules())
    if adapted:
        module = copy.deepcopy(module)
        merge_low_rank(module)
    return module


def merge_low_rank(module: nn.Module) -> None:
    """Write every adapter of a module into its weights, in place; the outputs stay as they are.

    Adapted layers inside the module are replaced by plain ones: torch keeps what makes `weight` of an adapted layer on
    a class that copies of a network share, so that taking it away from one would break the others.
    """
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if parametrize.is_parametrized(layer, "weight") and isinstance(layer, nn.Linear):
                setattr(parent, name, _plain(layer))
    if parametrize.is_parametrized(module, "weight") and isinstance(module, nn.Linear):
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _plain(layer: nn.Linear) -> nn.Linear:
    """Return a linear layer with a copy of another's weight as it is now."""
    made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.weight.detach().clone())
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().clone())
    return made.train(layer.training)


_ADAPTED = ".parametrizations.weight.original"


def is_adapted(name: str) -> bool:
    """Return whether a name of a state dict is that of a weight under an adapter."""
    return name.endswith(_ADAPTED)


def under_adapters(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return a state dict in which plain weights have the names that `names` gives those under an adapter."""
    found = dict(state)
    for name in filter(is_adapted, names):
        plain = f"{name.removesuffix(_ADAPTED)}.weight"
        if name not in found and plain in found:
            found[name] = found.pop(plain)
    return found


@contextmanager
def without_low_rank(module: nn.Module) -> Iterator[None]:
    """Leave every adapter of a module aside inside; nothing is changed for good."""
    changes = [part for part in module.modules() if isinstance(part, LowRank)]
    scales = [change.scale for change in changes]
    try:
        for change in changes:
            change.scale = 0.0
        yield
    finally:
        for change, scale in zip(changes, scales, strict=True):
            change.scale = scale
