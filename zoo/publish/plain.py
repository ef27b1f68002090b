"""The same weights as a folder that needs torch, numpy and Pillow, and neither torchvision nor the zoo.

`model.pt2` is the exported network (torch.export), `spec.json` says how pixels become numbers and maps become classes,
`run.py` does it for one image.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.families.base import Family
from zoo.nn.lora import merged

SCRIPT = Path(__file__).with_name("run_plain.py")


class _Maps(nn.Module):
    """A family as a function of one tensor: encoded pixels in, a tuple of activated maps out."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.family.activate(self.family.forward({"image": image}))
        return tuple(maps[name] for name in self.family.spec.maps)


def write(family: Family, out: Path) -> Path:
    """Write model.pt2, spec.json and run.py into a folder. Raises `UserError` where the network cannot be exported."""
    spec = family.spec
    sides = len(spec.axes) - 1
    if sides != 2 or spec.stitch != "maps" or spec.scale != 1:
        raise UserError(
            f"family {family.name}: a plain folder holds networks of 2-D maps. Expected --format hub or monai"
        )
    example = torch.zeros(2, len(spec.channels), spec.tile, spec.tile)
    batch = torch.export.Dim("batch", min=1, max=64)
    try:
        whole = cast("Family", merged(family.eval()))
        program = torch.export.export(_Maps(whole), (example,), dynamic_shapes={"image": {0: batch}})
    except Exception as error:  # the exporter fails in many ways
        reason = " ".join((str(error).splitlines() or [""])[0].split())[:160]
        raise UserError(f"family {family.name}: torch cannot export it ({reason}). Use --format hub or monai") from None
    torch.export.save(program, out / "model.pt2")
    (out / "spec.json").write_text(json.dumps(_spec(family), indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(SCRIPT, out / "run.py")
    return out


def _spec(family: Family) -> Mapping[str, Any]:
    spec = family.spec
    return {
        "channels": list(spec.channels),
        "um_per_pixel": spec.mpp,
        "encoding": asdict(spec.encoding),
        "tile": spec.tile,
        "margin": min(spec.margin, spec.tile // 4),
        "maps": {name: {"channels": m.channels, "activation": m.activation} for name, m in spec.maps.items()},
        "outputs": {name: {"kind": o.kind, "classes": list(o.classes)} for name, o in spec.outputs.items()},
        "torch": torch.__version__.partition("+")[0],
    }
