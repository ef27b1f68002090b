"""The same weights as a bundle of MONAI: configs/, models/, docs/, as `monai.bundle` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.cards import WeightsCard
from zoo.families import build
from zoo.families.base import Family


class Network(nn.Module):
    """A family as MONAI calls networks: a tensor in, a tensor out.

    `forward(image)`: (B, C, H, W), uint8 or float in [0, 1] (what the family's encoding takes) -> the raw map `output`
    (B, K, H, W), unactivated, the first one where none is named.
    """

    def __init__(self, family: str, options: Mapping[str, Any], output: str | None = None) -> None:
        super().__init__()
        self.family: Family = zoo.create(family, **build.without_downloads(dict(options)))
        self.output = output or next(iter(self.family.spec.maps))

    def forward(self, image: Tensor) -> Tensor:
        """Return the raw map of a batch of images."""
        found: Tensor = self.family.forward(self.family.prepare({"image": image}))[self.output]
        return found


def write(family: Family, card: WeightsCard, out: Path) -> Path:
    """Write a bundle beside what `zoo.publish.folder.push` wrote into `out`."""
    options = json.loads(family.weights_metadata["options"])
    for name in ("configs", "models", "docs"):
        (out / name).mkdir(exist_ok=True)
    torch.save({f"family.{k}": v for k, v in family.state_dict().items()}, out / "models" / "model.pt")
    (out / "configs" / "metadata.json").write_text(_json(_metadata(family, card)), encoding="utf-8")
    (out / "configs" / "inference.json").write_text(_json(_inference(family, options)), encoding="utf-8")
    (out / "README.md").replace(out / "docs" / "README.md")
    return out


def _json(values: Any) -> str:
    return json.dumps(values, indent=2) + "\n"


def _version(package: str) -> str:
    return metadata.version(package)


def _metadata(family: Family, card: WeightsCard) -> dict[str, Any]:
    spec = family.spec
    name, first = next(iter(spec.maps.items()))
    classes = next((o.classes for o in spec.outputs.values() if o.classes), ())
    square = ["divisor * n"] * (len(spec.axes) - 1)
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "written by zoo weights push"},
        "monai_version": _version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {"histozoo": zoo.__version__},
        "name": card.name,
        "task": card.summary,
        "description": f"{card.summary} {card.notes}".strip(),
        "authors": "see docs/README.md",
        "copyright": card.licence.weights.name,
        "data_source": ", ".join(dict.fromkeys(t.dataset for t in card.trained_on)) or "see docs/README.md",
        "image_classes": card.input,
        "label_classes": card.output,
        "eval_metrics": {f"{n.dataset}:{n.split} {n.metric}": n.value for n in card.numbers},
        "intended_use": "research",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "RGB" if len(spec.channels) == 3 else "channels",
                    "num_channels": len(spec.channels),
                    "spatial_shape": square,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": dict(enumerate(spec.channels)),
                }
            },
            "outputs": {
                "pred": {
                    "type": name,
                    "format": "logits",
                    "num_channels": first.channels,
                    "spatial_shape": square,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": dict(enumerate(classes)),
                }
            },
        },
    }


def _inference(family: Family, options: dict[str, Any]) -> dict[str, Any]:
    tile = family.spec.tile
    return {
        "imports": ["$import torch", "$from PIL import Image", "$import numpy"],
        "bundle_root": ".",
        "image": "image.png",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "zoo.publish.monai.Network", "family": family.name, "options": options},
        "checkpoint": "$torch.load(@bundle_root + '/models/model.pt', map_location='cpu', weights_only=True)",
        "network": "$(@network_def.load_state_dict(@checkpoint), @network_def.eval().to(@device))[1]",
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [tile] * (len(family.spec.axes) - 1),
            "overlap": 0.25,
            "mode": "gaussian",
        },
        "pixels": "$torch.from_numpy(numpy.asarray(Image.open(@image).convert('RGB'))).permute(2, 0, 1)[None] / 255",
        "run": ["$torch.save(@inferer(@pixels.to(@device), @network).detach().cpu(), 'prediction.pt')"],
    }
