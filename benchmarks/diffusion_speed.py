"""Steps per second of PixCell's transformer against diffusers' own PixArt transformer, at the same size and weights.

diffusers' transformer runs in the loop of its PixArt pipeline (whose class needs a text encoder's package). Both draw
the same latents from the same noise with the same scheduler and guidance, in turn within one process, and must agree.
diffusers computes keys and values of the condition in every step; here they are computed once.

  OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/diffusion_speed.py
  python benchmarks/diffusion_speed.py --layers 28 --precision bf16 --compile --device cuda --steps 20
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from zoo.families.diffusion import networks, sampling
from zoo.families.diffusion.networks.pixcell import PixCell


def build(args: argparse.Namespace) -> tuple[PixCell, Any]:
    """Return our network and diffusers' transformer, with the same random weights."""
    torch.manual_seed(0)
    ours = networks.build(
        "pixcell", size=args.size, layers=args.layers, heads=args.heads, head_width=args.head_width, tokens=args.tokens
    ).eval()
    assert isinstance(ours, PixCell)
    for value in ours.parameters():
        nn.init.normal_(value, 0.0, 0.02)
    width = args.heads * args.head_width
    theirs = PixArtTransformer2DModel(
        num_attention_heads=args.heads,
        attention_head_dim=args.head_width,
        in_channels=16,
        out_channels=32,
        num_layers=args.layers,
        cross_attention_dim=width,
        sample_size=args.size,
        caption_channels=1536,
        interpolation_scale=args.size / 64,
        use_additional_conditions=False,
    ).eval()
    state = ours.state_dict()
    outside = ("caption_projection.uncond_embedding", "y_pos_embed.y_pos_embed")
    theirs.load_state_dict({name: value for name, value in state.items() if name not in outside}, strict=True)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    ours, theirs = ours.to(args.device, dtype), theirs.to(args.device, dtype)
    if args.compile:
        ours.compile()
        theirs.compile()
    return ours, theirs


def runs(args: argparse.Namespace, ours: PixCell, theirs: Any) -> dict[str, Callable[[], Tensor]]:
    """Return what draws one batch of latents, by name."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(ours.parameters()).dtype
    noise = torch.randn(args.batch, 16, args.size, args.size, generator=generator).to(args.device, dtype)
    embedding = torch.randn(args.batch, args.tokens, 1536, generator=generator).to(args.device, dtype)
    null = ours.caption_projection.uncond_embedding.expand(args.batch, -1, -1)
    places = ours.y_pos_embed.get_buffer("y_pos_embed") if args.tokens > 1 else 0

    def zoo_sampler() -> Tensor:
        predict = sampling.guided(ours, {"embedding": embedding}, args.guidance)
        return sampling.sample(predict, noise, sampling.make_scheduler("dpm++"), args.steps)

    def diffusers_loop() -> Tensor:
        scheduler = sampling.make_scheduler("dpm++")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scheduler.set_timesteps(args.steps, device=args.device)
        told = torch.cat([null + places, embedding + places])
        x = noise
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            output = theirs(both, encoder_hidden_states=told, timestep=t.expand(len(both)), return_dict=False)[0]
            out, said = output.chunk(2)
            eps = (out + args.guidance * (said - out)).chunk(2, dim=1)[0]
            x = scheduler.step(eps, t, x, return_dict=False)[0]
        return x

    return {"zoo": zoo_sampler, "diffusers": diffusers_loop}


def main() -> None:
    """Time both in turn (CPU seconds on a CPU), and print the median of each and of their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-width", type=int, default=72)
    parser.add_argument("--size", type=int, default=32, help="side of the latent: 32 is 256 pixels")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    ours, theirs = build(args)
    with torch.inference_mode():
        ways = runs(args, ours, theirs)
        pictures = {name: way().float() for name, way in ways.items()}  # warms up as well
        apart = (pictures["zoo"] - pictures["diffusers"]).norm() / pictures["diffusers"].norm()
        # on a CPU its own time: what else runs there does not count
        clock = time.process_time if args.device == "cpu" else time.perf_counter
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                begin = clock()
                way()
                if args.device != "cpu":
                    torch.cuda.synchronize()
                seconds[name].append(clock() - begin)
    ratios = [b / a for a, b in zip(seconds["zoo"], seconds["diffusers"], strict=True)]
    for name, values in seconds.items():
        print(f"{name} {args.steps / statistics.median(values):.3f} steps/s")
    print(f"ratio {statistics.median(ratios):.2f} (of {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"apart {float(apart):.1e}")


if __name__ == "__main__":
    main()
