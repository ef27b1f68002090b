"""Pictures to latents and back: the frozen autoencoders of latent diffusion, KL and VQ, as diffusers has them.

Sources: Kingma and Welling 2014; van den Oord et al. 2017; Rombach et al. 2022 (section 3.1).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.errors import UserError, suggest


class FirstStage(nn.Module):
    """Pictures (B, C, H, W) in [-1, 1] to latents (B, channels, H / factor, W / factor), and back.

    A model's latent is (z - shift) * scale of the autoencoder's z.
    """

    channels: int
    factor: int
    scale: float = 1.0
    shift: float = 0.0
    size: int = 256

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and standard deviation of the model's latents; None where there is no deviation (VQ)."""
        raise NotImplementedError

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return latents: the mean, or with `noise` (standard normal, of their shape) a draw."""
        mean, deviation = self.moments(pictures)
        return mean if noise is None or deviation is None else mean + deviation * noise

    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures, clamped to [-1, 1]."""
        return self.raw(latents / self.scale + self.shift).clamp(-1, 1)

    def raw(self, z: Tensor) -> Tensor:
        """Return the autoencoder's pictures of its own latents."""
        raise NotImplementedError

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Return the latent of a binary mask (B, h, w) or (B, 1, h, w), drawn as a black and white picture."""
        plane = mask if mask.ndim == 4 else mask[:, None]
        return self.encode(2 * plane.to(next(self.parameters()).dtype).expand(-1, 3, -1, -1) - 1)


class KL(FirstStage):
    """diffusers' `AutoencoderKL`; the defaults are those of Stable Diffusion 3."""

    def __init__(
        self,
        *,
        channels: int = 16,
        levels: Sequence[int] = (128, 256, 512, 512),
        blocks: int = 2,
        groups: int = 32,
        scale: float = 1.5305,
        shift: float = 0.0609,
        quant_conv: bool = False,
        post_quant_conv: bool | None = None,
        attention: bool = True,
        pictures: int = 3,
        size: int = 256,
    ) -> None:
        """`levels`: channels, each but the last halves the picture; `attention`: in the middle."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        super().__init__()
        self.channels, self.factor, self.scale, self.shift = channels, 2 ** (len(levels) - 1), scale, shift
        self.size = size
        self.vae = AutoencoderKL(
            in_channels=pictures,
            out_channels=pictures,
            down_block_types=("DownEncoderBlock2D",) * len(levels),
            up_block_types=("UpDecoderBlock2D",) * len(levels),
            block_out_channels=tuple(levels),
            layers_per_block=blocks,
            latent_channels=channels,
            norm_num_groups=groups,
            sample_size=size,
            scaling_factor=scale,
            shift_factor=shift,
            use_quant_conv=quant_conv,
            use_post_quant_conv=quant_conv if post_quant_conv is None else post_quant_conv,
            mid_block_add_attention=attention,
        )

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and standard deviation of the model's latents."""
        found = self.vae.encode(pictures).latent_dist
        return (found.mean - self.shift) * self.scale, found.std * self.scale

    def raw(self, z: Tensor) -> Tensor:
        """Return the decoder's pictures."""
        return cast(Tensor, self.vae.decode(z, return_dict=False)[0])


class VQ(FirstStage):
    """diffusers' `VQModel`; the defaults are those of vq-f4. Codes are looked up on decoding only, not on encoding."""

    def __init__(
        self,
        *,
        channels: int = 3,
        codes: int = 8192,
        code_width: int | None = None,
        levels: Sequence[int] = (128, 256, 512),
        blocks: int = 2,
        groups: int = 32,
        attention: Sequence[int] = (),
        pictures: int = 3,
        size: int = 256,
    ) -> None:
        """`codes` of `code_width` numbers; `attention`: levels (from 0) that have it, beside the middle."""
        from diffusers.models.autoencoders.vq_model import VQModel

        super().__init__()
        self.channels, self.factor, self.size = code_width or channels, 2 ** (len(levels) - 1), size
        count = range(len(levels))
        self.vae = VQModel(
            in_channels=pictures,
            out_channels=pictures,
            down_block_types=tuple(f"{'Attn' if i in attention else ''}DownEncoderBlock2D" for i in count),
            up_block_types=tuple(f"{'Attn' if i in attention else ''}UpDecoderBlock2D" for i in reversed(count)),
            block_out_channels=tuple(levels),
            layers_per_block=blocks,
            latent_channels=channels,
            sample_size=size,
            num_vq_embeddings=codes,
            norm_num_groups=groups,
            vq_embed_dim=code_width or channels,
        )

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latents before any code is looked up."""
        return cast(Tensor, self.vae.encode(pictures).latents), None

    def raw(self, z: Tensor) -> Tensor:
        """Return pictures of the nearest codes."""
        return cast(Tensor, self.vae.decode(z, return_dict=False)[0])

    def unquantised(self, z: Tensor) -> Tensor:
        """Return pictures of the latents as they are."""
        return cast(Tensor, self.vae.decode(z, force_not_quantize=True, return_dict=False)[0])

    def codes(self, z: Tensor) -> Tensor:
        """Return (B * h * w,) int64, the nearest code of each position."""
        return cast(Tensor, self.vae.quantize(z)[2][2])


FIRST_STAGES: dict[str, type[FirstStage]] = {"kl": KL, "vq": VQ}


def find(name: str, arguments: Mapping[str, Any]) -> type[FirstStage]:
    """Return the class of a name. Raises `UserError` for an unknown name or argument."""
    if name not in FIRST_STAGES:
        raise UserError(f'no first stage "{name}". {suggest(name, sorted(FIRST_STAGES))}'.strip())
    known = [key for key in inspect.signature(FIRST_STAGES[name]).parameters if key != "self"]
    for key in arguments:
        if key not in known:
            raise UserError(f'first stage "{name}" has no argument "{key}". {suggest(key, known)}'.strip())
    return FIRST_STAGES[name]


def outline(name: str, **arguments: Any) -> tuple[int, int]:
    """Return channels of a first stage's latents and pixels a number of them along a side; builds nothing."""
    bound = inspect.signature(find(name, arguments)).bind(**arguments)
    bound.apply_defaults()
    said = bound.arguments
    return int(said.get("code_width") or said["channels"]), 2 ** (len(said["levels"]) - 1)


def build(name: str, **arguments: Any) -> FirstStage:
    """Return an untrained, frozen autoencoder. Raises `UserError` for an unknown name or argument."""
    return find(name, arguments)(**arguments).requires_grad_(False).eval()


def to_uint8(pictures: Tensor) -> Tensor:
    """Return uint8 of pictures in [-1, 1]: (x + 1) * 127.5, rounded."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def load(stage: FirstStage, name: str) -> None:
    """Fill an autoencoder with weights of a name or a file, as diffusers or latent diffusion lays them out.

    Raises `UserError` where they are not on this machine, or do not fit.
    """
    from zoo.families.diffusion.latent_layouts import first_stage_state
    from zoo.weights import readers, store

    path = store.find(name).path
    state = readers.state_dict(path)
    for prefix in ("first_stage_model.", "first_stage.vae."):
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inside or state
    state = {key: value for key, value in state.items() if not key.startswith("loss.")}
    if any(key.startswith("encoder.down.") for key in state):
        state = first_stage_state(state)
    module = cast(nn.Module, stage.vae)
    lines = store.difference(module.state_dict(), state)
    if lines:
        raise UserError(
            f"{path}: {len(lines)} entries do not fit the first stage. First: {' '.join(lines[0].split())}."
        )
    module.load_state_dict(state, strict=True)
