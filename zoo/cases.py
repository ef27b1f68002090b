"""A published case: what a published model was given, and the rule that fills its weights.

A case is a manifest (`NAME.json`) and a tensor file (`NAME.safetensors`) side by side. No published weights are stored:
a state dict is filled by a rule that depends on nothing but a parameter's name and shape, on both sides. `zoo verify`
reads cases and compares; what stands here is what the part that answers gets to see: never the expected values.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import ZooError
from zoo.weights import store

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]
Convert = Callable[[State], State]
Fill = Callable[[str, tuple[int, ...], str], "Tensor"]
Answer = Callable[["Case"], Mapping[str, Any]]
"""What the registry kind "cases" holds for a system: a case -> output name (without `out.`) -> tensor, array or number.

It dispatches on `kind`, `source`, `component` and `configuration`, never on a file's name, and raises `CaseError` for
what it does not know. Of a case without tensors (`layout_only`) only the names and shapes are wanted: it loads its
module (`Case.load`) and returns nothing.
"""


class CaseError(ZooError):
    """A case that this build cannot answer; one sentence that becomes the note of its report."""


class LayoutError(CaseError):
    """Names or shapes of a module and of a published state dict differ in `wrong` of `total` entries."""

    def __init__(self, message: str, wrong: int, total: int) -> None:
        super().__init__(message)
        self.wrong, self.total = wrong, total


def fill(key: str, shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    """Return the value that every side gives the parameter or buffer called `key`.

    Integers and booleans are zero. Floats are drawn from the standard normal seeded by the CRC-32 of the name, then:
    two or more dimensions, over the root of the product of all dimensions but the first; a `running_var`, 1 + 0.1 |n|;
    one dimension called `weight`, `gamma` or `scale`, 1 + 0.1 n; anything else, 0.1 n. (A fact of the format.)
    """
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    if not kind.is_floating_point:
        return torch.zeros(shape, dtype=kind)
    normal = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    draw = np.asarray(normal, dtype=np.float32)  # a scalar for the shape ()
    last = key.rsplit(".", 1)[-1]
    value: Any
    if last == "running_var":
        value = 1 + 0.1 * np.abs(draw)
    elif len(shape) >= 2:
        value = draw / np.sqrt(math.prod(shape[1:]))
    elif len(shape) == 1 and last in ("weight", "gamma", "scale"):
        value = 1 + 0.1 * draw
    else:
        value = 0.1 * draw
    return torch.from_numpy(np.array(value, dtype=np.float32)).reshape(shape).to(kind)


@dataclass
class Case:
    """What a published model was given.

    `name`: as the user wrote it, for messages only. `inputs`, `constants`: tensors of the file without their prefixes
    `in.` and `const.`. `wanted`: names of the outputs to compute, without `out.`. `layout_only`: there is no tensor
    file; names and shapes are all that is compared.
    """

    name: str
    manifest: Mapping[str, Any]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    layout_only: bool = False
    taken: set[str] = field(default_factory=set, repr=False)
    """Entries of the manifest's state dict that were asked for; `zoo verify` refuses an answer that left some out."""

    @property
    def system(self) -> str:
        """Return the published system's name."""
        return str(self.manifest.get("system", ""))

    @property
    def kind(self) -> str:
        """Return network, loss, target, postprocess, metric, transform, procedure, end_to_end or manifest."""
        return str(self.manifest.get("kind", ""))

    @property
    def source(self) -> str:
        """Return where the published code comes from: repository, commit, function."""
        return str(self.manifest.get("source", ""))

    @property
    def component(self) -> str:
        """Return the published class or function, "" where the manifest names none."""
        return str(self.manifest.get("component") or "")

    @property
    def configuration(self) -> dict[str, Any]:
        """Return the arguments of the published code."""
        return dict(self.manifest.get("configuration") or {})

    def state_dict(self, prefix: str = "", fill: Fill = fill) -> State:
        """Return the published state dict: filled by the rule, constants as stored, aliases sharing one value.

        `prefix`: only the entries whose names begin so, without it (values depend on the whole name). Where there are
        no tensors the values are empty ones of torch's device "meta": names, shapes and dtypes, no memory.
        """
        import torch

        spec: Mapping[str, Mapping[str, Any]] = self.manifest.get("state_dict") or {}
        aliases: Mapping[str, str] = self.manifest.get("aliases") or {}
        found: State = {}
        for key in [name for name in spec if name.startswith(prefix)]:
            source = aliases.get(key, key)
            shape, dtype = tuple(spec[key]["shape"]), str(spec[key].get("dtype", "float32"))
            if self.layout_only:
                value = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            else:
                stored = self.constants.get(source)
                value = fill(source, shape, dtype) if stored is None else stored
            found[key.removeprefix(prefix)] = value
            self.taken.add(key)
        return found

    def load(self, module: nn.Module, convert: Convert | None = None, prefix: str = "", fill: Fill = fill) -> None:
        """Copy the published state dict into a module of ours, every entry accounted for.

        `convert` turns the published names and layouts into ours; it is the function that pulling the published weights
        calls. Raises `LayoutError` where names or shapes differ. Of a case without tensors nothing is copied.
        """
        state = self.state_dict(prefix, fill)
        if convert is not None:
            state = convert(state)
        expected = module.state_dict()
        lines = store.difference(expected, state)
        if lines:
            shown = "; ".join(" ".join(line.split()) for line in lines[:3])
            more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
            raise LayoutError(
                f"{len(lines)} entries of the state dict do not fit: {shown}{more}", len(lines), len(expected)
            )
        if not self.layout_only:
            module.load_state_dict(state, strict=True)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Build modules inside: of a case without tensors they take no memory (torch's device "meta")."""
        import torch

        with torch.device("meta") if self.layout_only else torch.device("cpu"):
            yield

    def unknown(self, what: str = "") -> CaseError:
        """Return the error that says what of this case this build does not have."""
        part = what or f"a case of kind {self.kind}" + (f", component {self.component}" if self.component else "")
        return CaseError(f"this build has no answer for {part} of system {self.system} ({self.source})")
