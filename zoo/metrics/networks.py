"""Features of pictures from networks that published numbers are measured with. Weights are the caller's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

STAGES = ("layer1", "layer2", "layer3", "layer4")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet50() -> nn.Module:
    """Return torchvision's ResNet-50 without its classifier, untrained, in evaluation mode."""
    from torch import nn
    from torchvision.models import resnet50 as make

    network = make(weights=None)
    network.fc = nn.Identity()
    return network.eval()  # type: ignore[no-any-return]


def stage_means(network: nn.Module, pictures: Tensor, *, halved: bool = True) -> dict[str, Tensor]:
    """Return the spatial means (B, C) of a ResNet's four stages, as `phv` takes them.

    `pictures`: (B, 3, H, W) float in [0, 1]; they are not resized. `halved`: pictures in [0, 1] are taken for ones in
    [-1, 1], (x + 1) / 2 before the normalisation, as the published evaluation of ASP does: needed for comparison with
    its numbers.
    """
    import torch

    x = (pictures + 1) / 2 if halved else pictures
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    net: Any = network
    with torch.inference_mode():
        x = net.maxpool(net.relu(net.bn1(net.conv1((x - mean) / std))))
        found = {}
        for stage in STAGES:
            x = getattr(net, stage)(x)
            found[stage] = x.mean((2, 3))
    return found
