"""A training step of ASP: the zoo's procedure against a minimal hand-written script of the same step, interleaved.

    OMP_NUM_THREADS=1 python benchmarks/translation_step.py [--side 128] [--width 16] [--steps 4] [--rounds 5]

Both do the same arithmetic: one picture, a discriminator's update, features of input, target and fake once, PatchNCE,
adaptive supervised PatchNCE and the Gaussian pyramid, three Adam steps. CPU seconds; a ratio above 1 means that the zoo
is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.families import build
from zoo.recipe import Train
from zoo.training.context import StepContext, movers_of
from zoo.types import Batch


def options(width: int) -> dict[str, Any]:
    """Return ASP's published model at a width."""
    return {
        "generator": {"width": width, "blocks": 6, "spectral": True},
        "discriminator": {"width": width // 2, "layers": 3, "spectral": True},
        "features": {"width": 64, "patches": 128, "normalise": "asp"},
        "objective": [
            "gan",
            {"name": "patch_nce", "weight": 10},
            {"name": "supervised_nce", "weight": 10, "arguments": {"schedule": "lambda"}},
            {"name": "gaussian_pyramid", "weight": 10},
        ],
        "truth": "ihc",
    }


class Script:
    """What a user would write down without the zoo, on networks of the same make."""

    def __init__(self, width: int) -> None:
        family: Any = build.create("translation", options(width))
        self.g, self.d, self.f = family.generator, family.judge, family.projector
        nets = (self.g, self.d, self.f)
        self.adams = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in nets]
        self.layers = [0, 4, 8, 12, 16]
        taps = torch.tensor([1.0, 4, 6, 4, 1])
        self.kernel = (torch.outer(taps, taps) / 256).repeat(3, 1, 1, 1)

    def nce(self, query: list[Tensor], key: list[Tensor], adaptive: bool) -> Tensor:
        """Return the mean over layers of PatchNCE."""
        at = [torch.randperm(k.shape[2] * k.shape[3])[:128] for k in key]
        total = torch.zeros(())
        for q, k in zip(self.f(query, at), self.f(key, at), strict=True):
            k = k.detach()
            positive = (q * k).sum(1, keepdim=True)
            other = (q @ k.T).fill_diagonal_(-10.0)
            each = F.cross_entropy(
                torch.cat([positive, other], 1) / 0.07, torch.zeros(len(q), dtype=torch.long), reduction="none"
            )
            if adaptive:
                weight = 0.6 + 0.4 * positive[:, 0].detach().clamp_min(0)
                each = each * weight * len(weight) / weight.sum()
            total = total + each.mean() / len(query)
        return total

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the six levels."""
        found = []
        for _ in range(5):
            x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.kernel, groups=3)
            found.append(x)
            x = x[:, :, ::2, ::2]
        return [*found, x]

    def step(self, a: Tensor, b: Tensor) -> None:
        """Do one step."""
        adam_g, adam_d, adam_f = self.adams
        fake = torch.tanh(self.g(a))
        self.d.requires_grad_(True)
        no, yes = self.d(fake.detach())[0], self.d(b)[0]
        adam_d.zero_grad()
        (0.5 * (no.square().mean() + (yes - 1).square().mean())).backward()
        adam_d.step()
        self.d.requires_grad_(False)
        feats = [self.g.features(x, self.layers) for x in (a, b, fake)]
        loss = (self.d(fake)[0] - 1).square().mean()
        loss = loss + 10 * self.nce(feats[2], feats[0], False) + 10 * self.nce(feats[2], feats[1], True)
        weights = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
        levels = zip(weights, self.pyramid(fake), self.pyramid(b), strict=True)
        loss = loss + 10 * sum(w * F.l1_loss(x, y) for w, x, y in levels) / 6
        adam_g.zero_grad()
        adam_f.zero_grad()
        loss.backward()
        adam_g.step()
        adam_f.step()


class Ours:
    """The zoo's procedure in the context of a training."""

    def __init__(self, width: int) -> None:
        self.family: Any = build.create("translation", options(width))
        adam = {"name": "adam", "arguments": {"lr": 2e-4, "betas": [0.5, 0.999]}}
        self.procedure = self.family.procedure()
        train = Train.model_validate({"optimizer": adam})
        self.context = StepContext(movers_of(self.family, self.procedure, train, False), accumulate=1)
        self.family.train()
        self.count = 0

    def step(self, batch: Batch) -> None:
        """Do one step."""
        self.context.begin(self.count, 0.9, self.count)
        self.procedure.step(self.family, batch, self.context)
        self.context.flush()
        self.count += 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (2, 1, 3, given.side, given.side), dtype=torch.uint8)
    a, b = pictures.float() / 127.5 - 1
    script, ours = Script(given.width), Ours(given.width)
    script.g.train(), script.d.train()
    batch = Batch({"image": pictures[0]}, {"picture": pictures[1]}, {"picture": torch.tensor([True])})
    script.step(a, b), ours.step(batch)
    ratios, seconds = [], []
    for _ in range(given.rounds):
        start = time.process_time()
        for _ in range(given.steps):
            script.step(a, b)
        middle = time.process_time()
        for _ in range(given.steps):
            ours.step(batch)
        end = time.process_time()
        ratios.append((middle - start) / (end - middle))
        seconds.append((end - middle) / given.steps)
    print(
        f"{1e3 * statistics.median(seconds):.0f} ms a step; {statistics.median(ratios):.2f} times the script's speed "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
