"""Multi-scale deformable attention of ours beside a plain one of `grid_sample`, over sizes; interleaved.

    python benchmarks/deformable_attention.py [--rounds 7] [--threads 1] [--device cpu]

Prints, a line a size, the median over rounds of (grid_sample / ours) of the time of forward and backward together, and
of the memory that one forward pass keeps for its backward pass: above 1, ours is faster, or keeps less. Where
`transformers` is installed its deformable DETR's attention is timed too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.deformable import Sizes, deformable_sample

Sample = Callable[[Tensor, Sizes, Tensor, Tensor], Tensor]

CASES: tuple[tuple[str, int, int, int, int, int, int], ...] = (
    ("decoder, 320 x 240, 60 queries", 4, 320, 240, 60, 4, 32),
    ("decoder, 640 x 480, 100 queries", 2, 640, 480, 100, 8, 32),
    ("encoder, 320 x 240", 2, 320, 240, 0, 8, 32),
    ("encoder, 640 x 480", 1, 640, 480, 0, 8, 32),
)
"""Name, images, width, height, queries (0 = every token), heads, features a head; 4 levels from stride 8, 4 points."""


def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return the same by one `grid_sample` a level, as the published definition goes."""
    B, _, M, d = value.shape
    Q, K = locations.shape[1], locations.shape[4]
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in sizes], 1)):
        maps = part.permute(0, 2, 3, 1).reshape(B * M, d, *sizes[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, align_corners=False, padding_mode="zeros"))
    mixed = torch.stack(sampled, -2).flatten(-2) * weights.transpose(1, 2).reshape(B * M, 1, Q, len(sizes) * K)
    return mixed.sum(-1).view(B, M * d, Q).transpose(1, 2)


def others() -> dict[str, Sample]:
    """Return the attention of transformers, where it is installed."""
    try:
        from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
    except ImportError:
        return {}
    module = MultiScaleDeformableAttention()

    def sample(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor(list(sizes), device=value.device)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        found: Tensor = module(value, shapes, list(sizes), starts, locations, weights, 64)
        return found

    return {"transformers": sample}


def inputs(case: tuple[str, int, int, int, int, int, int], device: str) -> tuple[Tensor, Sizes, Tensor, Tensor]:
    """Return values, sizes, locations near each query's place, and weights that sum to 1."""
    _, B, width, height, queries, M, d = case
    sizes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64)]
    S = sum(h * w for h, w in sizes)
    Q = queries or S
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(B, S, M, d, generator=generator)
    centre = torch.rand(B, Q, 1, 1, 1, 2, generator=generator)
    locations = centre + 0.1 * torch.randn(B, Q, M, 4, 4, 2, generator=generator)
    weights = torch.randn(B, Q, M, 16, generator=generator).softmax(-1).view(B, Q, M, 4, 4)
    return tuple(  # type: ignore[return-value]
        v.to(device).requires_grad_() if isinstance(v, Tensor) else v for v in (value, sizes, locations, weights)
    )


def kept(sample: Sample, given: tuple[Tensor, Sizes, Tensor, Tensor]) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, each storage once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sample(*given)
    own = {v.untyped_storage().data_ptr() for v in given if isinstance(v, Tensor)}
    return sum(size for place, size in seen.items() if place not in own)


def seconds(sample: Sample, given: tuple[Tensor, Sizes, Tensor, Tensor]) -> float:
    """Return the time of one forward and backward pass."""
    synchronise = torch.cuda.synchronize if given[0].is_cuda else (lambda: None)
    synchronise()
    start = time.perf_counter()
    out = sample(*given)
    torch.autograd.grad(out, [given[0], given[2], given[3]], torch.ones_like(out))
    synchronise()
    return time.perf_counter() - start


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    rivals: dict[str, Sample] = {"grid_sample": plain, **others()}
    for case in CASES:
        given = inputs(case, said.device)
        for name, rival in rivals.items():
            torch.testing.assert_close(deformable_sample(*given), rival(*given), rtol=1e-3, atol=1e-3)
            ratios = []
            for turn in range(said.rounds):
                order = (rival, deformable_sample) if turn % 2 else (deformable_sample, rival)
                times = {sample: seconds(sample, given) for sample in order}
                ratios.append(times[rival] / times[deformable_sample])
            memory = kept(rival, given) / kept(deformable_sample, given)
            print(f"{case[0]:34} {name:12} time {statistics.median(ratios):5.2f}  memory {memory:5.2f}")


if __name__ == "__main__":
    main()
