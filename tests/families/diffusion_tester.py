"""One shared test class for every network of the family diffusion, at a tiny configuration.

class TestMine(NetworkTester):
    name = "mine"
    arguments = {...}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.families.diffusion import networks, sampling
from zoo.families.diffusion.networks import Network


class NetworkTester:
    """What every network promises."""

    name: ClassVar[str]
    arguments: ClassVar[Mapping[str, Any]] = {}
    side: ClassVar[int] = 16
    still: ClassVar[tuple[str, ...]] = ()
    """Beginnings of names of parameters that no gradient reaches."""

    def make(self, seed: int = 0) -> Network:
        """Return the network with random weights in place of its silent start."""
        torch.manual_seed(seed)
        network = networks.build(self.name, **self.arguments).eval()
        for value in network.parameters():
            fan = value[0].numel() if value.ndim > 1 else 100
            nn.init.normal_(value, 0.0, fan**-0.5)
        return network

    def picture(self, network: Network, B: int = 2, seed: int = 0, side: int | None = None) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        side = side or self.side
        x = torch.randn(B, network.channels, side, side, generator=generator)
        return x, torch.randint(0, 1000, (B,), generator=generator)

    def condition(self, network: Network, B: int = 2, seed: int = 1, side: int | None = None) -> dict[str, Any]:
        """Return a condition of each name that the network takes."""
        generator = torch.Generator().manual_seed(seed)
        side = side or self.side
        found: dict[str, Any] = {}
        if "embedding" in network.takes:
            found["embedding"] = torch.randn(B, network.tokens, network.width, generator=generator)
        if "mask" in network.takes:
            found["mask"] = torch.randn(B, network.classes, side, side, generator=generator)
        return found

    def test_shape_and_dtype(self) -> None:
        network = self.make()
        x, t = self.picture(network)
        out = network(x, t, self.condition(network))
        assert out.shape == (2, network.outputs, self.side, self.side)
        assert out.dtype == torch.float32
        assert bool(out.isfinite().all())

    def test_other_sizes(self) -> None:
        network = self.make()
        side = self.side + network.divisor * 2
        x, t = self.picture(network, side=side)
        assert network(x, t, self.condition(network, side=side)).shape[-2:] == (side, side)

    def test_a_picture_does_not_depend_on_its_neighbours(self) -> None:
        network = self.make()
        x, t = self.picture(network, 3)
        condition = self.condition(network, 3)
        whole = network(x, t, condition)
        for i in range(3):
            alone = network(x[i : i + 1], t[i : i + 1], {k: v[i : i + 1] for k, v in condition.items()})
            torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-5)

    def test_what_is_remembered_is_the_same(self) -> None:
        network = self.make()
        x, t = self.picture(network)
        condition = self.condition(network)
        torch.testing.assert_close(
            network(x, t, network.remember(condition)), network(x, t, condition), rtol=1e-4, atol=1e-5
        )
        twice = network.remember(network.remember(condition))
        torch.testing.assert_close(network(x, t, twice), network(x, t, condition), rtol=1e-4, atol=1e-5)

    def test_time_and_condition_matter(self) -> None:
        network = self.make()
        x, t = self.picture(network)
        condition = self.condition(network)
        said = network(x, t, condition)
        assert not torch.allclose(network(x, (t + 300) % 1000, condition), said, atol=1e-4)
        for name in network.takes:
            if name not in condition:
                continue
            other = {**condition, name: condition[name].flip(0) + 1}
            assert not torch.allclose(network(x, t, other), said, atol=1e-5), name

    def test_every_parameter_learns(self) -> None:
        network = self.make().train()
        x, t = self.picture(network)
        network(x, t, self.condition(network)).square().mean().backward()
        for name, value in network.named_parameters():
            if value.requires_grad and not name.startswith(self.still):
                assert value.grad is not None, name
                assert float(value.grad.abs().sum()) > 0, name

    def test_half_precision(self) -> None:
        network = self.make().bfloat16()
        x, t = self.picture(network)
        condition = {name: value.bfloat16() for name, value in self.condition(network).items()}
        half = network(x.bfloat16(), t, condition)
        assert half.dtype == torch.bfloat16
        whole = self.make()(x, t, self.condition(network))
        assert float(((half.float() - whole).norm() / whole.norm()).detach()) < 0.05

    def test_state_dict_round_trip(self) -> None:
        one, other = self.make(0), self.make(1)
        other.load_state_dict(one.state_dict())
        x, t = self.picture(one)
        condition = self.condition(one)
        assert torch.equal(one(x, t, condition), other(x, t, condition))

    def test_guidance_in_one_call_and_in_two(self) -> None:
        network = self.make()
        condition = self.condition(network)
        if network.null(condition) is None:
            with pytest.raises(UserError, match="null condition"):
                sampling.guided(network, condition, 2.0)
            return
        x, t = self.picture(network)
        null = network.null(condition)
        assert null is not None
        channels = network.channels
        out, said = (network(x, t, c)[:, :channels] for c in (null, condition))
        expected = out + 2.5 * (said - out)
        for together in (True, False):
            got = sampling.guided(network, condition, 2.5, together=together)(x, t)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(sampling.guided(network, condition, 1.0)(x, t), said, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(out, said, atol=1e-5)

    def test_dropped_samples_are_unconditional(self) -> None:
        network = self.make()
        condition = self.condition(network)
        if network.null(condition) is None:
            return
        x, t = self.picture(network)
        dropped = network.drop(condition, torch.tensor([True, False]))
        null = network.null(condition)
        assert null is not None
        empty = {**condition, "embedding": null["embedding"]} if "embedding" in condition else null
        torch.testing.assert_close(network(x, t, dropped)[0], network(x, t, empty)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x, t, dropped)[1], network(x, t, condition)[1], rtol=1e-4, atol=1e-5)

    def test_unknown_arguments_are_told(self) -> None:
        with pytest.raises(UserError, match="has no argument"):
            networks.build(self.name, **{**self.arguments, "sise": 3})
