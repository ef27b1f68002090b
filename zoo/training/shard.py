"""Spreading what learns over devices (`--strategy fsdp`): PyTorch's fully_shard, and what the loop asks of it.

Between steps each process stores its share of every weight that learns, of its gradient, moments and running average,
as DTensors cut along the first axis. During a step, and while validating, weights are whole on every device: then
nothing that a family or a procedure does in a forward is a collective, and processes may differ in it (a picture that
one has kept, a decoder that another needs not). Gradients of a large repeated block are cut as soon as its backward is
done, those of the rest when all of it is. What never learns in a run is whole everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError, ZooError
from zoo.families.base import Family, Procedure
from zoo.recipe import Recipe

LARGE = 1_000_000
"""Numbers that a repeated block must have for its gradients to be cut on their own."""


def is_cut(value: Any) -> bool:
    """Return whether a value is a tensor of which each process holds a part."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, sharing its memory."""
    found: Tensor = tensor.to_local() if is_cut(tensor) else tensor  # type: ignore[attr-defined]
    return found


@torch.no_grad()
def fill(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be cut; no process waits for another."""
    if not is_cut(target):
        target.copy_(whole)
        return
    mesh = target.device_mesh  # type: ignore[attr-defined]
    parts = whole.chunk(mesh.size(), 0)
    rank = mesh.get_local_rank()
    local(target).copy_(parts[rank] if rank < len(parts) else whole[:0])


def collect(value: Any, keep: bool) -> Any:
    """Return a value of nested dicts and lists with every cut tensor whole, on the CPU.

    Every process calls this with the same structure; a process that does not `keep` gets None in place of tensors.
    """
    if isinstance(value, Mapping):
        return {k: collect(v, keep) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [collect(v, keep) for v in value]
    if is_cut(value):
        gathered = _gathered(value)
        return gathered.cpu() if keep else None
    return value


@torch.no_grad()
def _gathered(tensor: Any) -> Tensor:
    """Return a cut tensor whole. (Its own `full_tensor` does the same and takes several times as long.)"""
    part, world = local(tensor), tensor.device_mesh.size()
    rows = -(-tensor.shape[0] // world)
    own = part.new_zeros(rows, *tensor.shape[1:])
    own[: len(part)] = part
    parts = [torch.empty_like(own) for _ in range(world)]
    torch.distributed.all_gather(parts, own)
    return torch.cat(parts)[: tensor.shape[0]]


def refuse(recipe: Recipe, world: int) -> None:
    """Raise `UserError` where a recipe cannot be trained so on that many devices."""
    if world < 2:
        raise UserError("--strategy fsdp: there is one device. Expected two or more to spread over: --devices 2")
    for stage in recipe.all_stages:
        if stage.train.precision == "16":
            raise UserError(
                f"--strategy fsdp: stages: {stage.name}: train.precision=16 scales losses by what each device sees. "
                "Expected bf16 or 32, or --strategy ddp."
            )


def refuse_family(family: Family, procedures: Sequence[Procedure]) -> None:
    """Raise `UserError` where a module cannot be cut, or a procedure wants its weights whole between steps."""
    for procedure in procedures:
        if procedure.copies_weights:
            raise UserError(
                f"--strategy fsdp: the procedure {type(procedure).__name__} copies the model's weights as it goes. "
                "Expected --strategy ddp."
            )
    for name, parameter in family.named_parameters():
        if parameter.requires_grad and parameter.ndim == 0:
            raise UserError(f"--strategy fsdp: {name} is a single number, which cannot be cut. Use --strategy ddp.")


def learning(recipe: Recipe, free: Collection[str]) -> set[str]:
    """Return the names of parameters that learn in some stage; `free`: those that the family lets move."""
    return {name for name in free if any(not name.startswith(stage.freeze) for stage in recipe.all_stages)}


def blocks_of(module: nn.Module, learns: Collection[str]) -> list[nn.Module]:
    """Return the large repeated blocks: elements of a list or a sequence, two or more of a class, outermost first.

    A block has parts (a lone layer is none) and shares no parameter with anything outside of it.
    """
    uses = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    sizes = {name: p.numel() for name, p in module.named_parameters() if name in learns}
    found: list[str] = []
    for name, parent in module.named_modules():
        within = f"{name}.".startswith(tuple(f"{block}." for block in found))
        if within or not isinstance(parent, nn.ModuleList | nn.Sequential):
            continue
        kinds = Counter(type(child) for child in parent)
        for key, child in parent.named_children():
            start = f"{name}.{key}." if name else f"{key}."
            inside = Counter(id(p) for _, p in child.named_parameters(remove_duplicate=False))
            large = sum(n for other, n in sizes.items() if other.startswith(start)) >= LARGE
            alone = all(uses[p] == count for p, count in inside.items())
            parts = bool(list(child.children())) and not isinstance(child, nn.ModuleList | nn.ModuleDict)
            if large and alone and parts and kinds[type(child)] > 1:
                found.append(start[:-1])
    return [module.get_submodule(name) for name in found]


class Root(nn.Module):
    """The outermost module that fully_shard knows. A call makes weights whole; with a loss in hand it also sees to it
    that the loss's backward ends with cut gradients, wherever the loss came from."""

    def __init__(self, family: nn.Module) -> None:
        super().__init__()
        self.family = family
        self.loss: Tensor | None = None

    def forward(self) -> Tensor | None:
        loss, self.loss = self.loss, None
        return None if loss is None else loss.clone()


class Shards:
    """A family whose learning parameters are cut. Its blocks get hooks; the family keeps its class and its methods."""

    def __init__(self, family: Family, learns: Collection[str], device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        mesh = init_device_mesh(device.type, (self.world,))
        blocks = blocks_of(family, learns)
        with _without(family, learns):
            cut = [fully_shard(m, mesh=mesh, reshard_after_forward=False) for m in (*blocks, Root(family))]
        self.modules: list[Any] = cut
        self.root: Any = cut[-1]
        self.root.set_reshard_after_backward(False)
        self.family, self.device = family, device
        self.parameters = {n: p for n, p in family.named_parameters() if is_cut(p)}
        self.inside = {id(p) for block in blocks for p in block.parameters()}
        self.places = {id(p): i for i, p in enumerate(self.parameters.values())}
        self.leaves: dict[int, nn.Parameter] = {}
        """The whole parameter of each cut one, by the identity of the latter."""
        self.open = False

    # whole weights

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the context the module carries whole weights. Every process enters it together."""
        self._gather()
        try:
            yield
        finally:
            self._free()

    def _gather(self) -> None:
        self.root()
        for module in self.modules[:-1]:
            module.unshard()
        whole = dict(self.family.named_parameters())
        self.leaves = {id(p): whole[name] for name, p in self.parameters.items()}
        for own in self.parameters.values():  # what stands still changes from stage to stage
            self.leaves[id(own)].requires_grad_(own.requires_grad)
        self.open = True

    def _free(self) -> None:
        for module in self.modules:
            module.reshard()
        self.open = False

    def moved(self, more: bool) -> None:
        """Take note that parts have moved: the whole weights are old. `more`: this step may ask for them again."""
        if self.open:
            self._free()
            if more:
                self._gather()

    # a backward

    def backward(self, loss: Tensor, parameters: Sequence[nn.Parameter], turn: tuple[int, int], retain: bool) -> None:
        """Add to the gradient parts of these parameters the mean over processes of a loss's gradients.

        `turn`: which player of how many. As with `ddp` a parameter that the loss of some process does not depend on
        counts as zero there, and keeps its gradient (none, at first) where no loss depends on it. Raises `ZooError` on
        every process where that cannot be done.
        """
        leaves = [self.leaves[id(p)] for p in parameters]
        own = reached(loss, leaves)
        told = torch.zeros(len(self.places) + turn[1])
        told[-1 - turn[0]] = 1
        for parameter, yes in zip(parameters, own, strict=True):
            told[self.places[id(parameter)]] = float(yes)
        told = told.to(self.device)
        torch.distributed.all_reduce(told)
        counts = told.tolist()
        if counts[-1 - turn[0]] < self.world:
            self._fail("some devices moved another player than others")
        uneven = [p for p in parameters if 0 < counts[self.places[id(p)]] < self.world]
        if any(id(p) in self.inside for p in uneven):
            self._fail("the losses of some devices depend on a block of the model that those of others do not")
        missing = {id(p) for p in uneven}
        absent = [q for p, q, yes in zip(parameters, leaves, own, strict=True) if id(p) in missing and not yes]
        if any(counts[self.places[id(p)]] for p in parameters):
            self.root.loss = _Zeros.apply(loss, *absent) if absent else loss
            torch.autograd.backward(self.root(), retain_graph=retain, inputs=leaves)
        if any(leaf.grad is not None for leaf in leaves):
            self._fail("weights of a repeated block were used both by it and outside of it")

    def _fail(self, what: str) -> None:
        words = (
            f"--strategy fsdp: {what}. That can only be trained whole. "
            "Start again, or go on from the last checkpoint with --resume RUN, with --strategy ddp."
        )
        raise ZooError(words) if self.rank == 0 else SystemExit(ZooError.status)

    # state

    def collect(self, value: Any) -> Any:
        """Return a value with every cut tensor whole on the first process; every process calls this."""
        return collect(value, self.rank == 0)


def optimizer_state(optimizer: torch.optim.Optimizer, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimiser's kept state with whole moments cut as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def cut(parameter: nn.Parameter, value: Any) -> Any:
        if not is_cut(parameter) or not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        part = torch.empty_like(parameter.detach())
        fill(part, value)
        return part

    state = {i: {k: cut(parameters[i], v) for k, v in values.items()} for i, values in kept["state"].items()}
    return {**kept, "state": state}


def mean_gradient(parameter: nn.Parameter, gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Return the part of the mean of what several processes kept for a parameter; None counts as zero among others."""
    there = [g for g in gradients if g is not None]
    if not there:
        return None
    part = torch.empty_like(parameter.detach())
    fill(part, there[0] if len(gradients) == 1 else torch.stack(there).sum(0) / len(gradients))
    return part


def reached(loss: Tensor, leaves: Sequence[Tensor]) -> list[bool]:
    """Return for each leaf whether the graph of a loss ends in it."""
    seen: set[Any] = set()
    found: set[int] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return [id(leaf) in found for leaf in leaves]


class _Zeros(torch.autograd.Function):
    """A loss as it is, with a gradient of zero for leaves that it does not depend on."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *leaves: Tensor) -> Tensor:
        ctx.leaves = leaves
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(leaf) for leaf in ctx.leaves)


@contextmanager
def _without(family: nn.Module, learns: Collection[str]) -> Iterator[None]:
    """Within the context the module seems to have none but the parameters of these names."""
    kept = {id(p) for name, p in family.named_parameters() if name in learns}
    hidden = [
        (module, name, parameter)
        for module in family.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) not in kept
    ]
    for module, name, _ in hidden:
        module._parameters[name] = None
    try:
        yield
    finally:
        for module, name, parameter in hidden:
            module._parameters[name] = parameter
