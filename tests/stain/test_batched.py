"""Batches in torch say what single pictures say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stained import E, H, mixed, odd_pictures

from zoo.errors import UserError
from zoo.stain import batched, colour, density
from zoo.stain.batched import BatchNormaliser
from zoo.stain.normalise import METHODS, normaliser


def as_batch(pictures: list[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "vahadane-tiatoolbox"])
def test_as_one_by_one(method: str) -> None:
    pictures = [mixed(1, (64, 64)), mixed(2, (64, 64), 0.6, 1.0)]
    pictures += [p for p in odd_pictures().values() if p.shape == (64, 64, 3)]
    change = normaliser(method, target=mixed(9), **({"matrix": [H, E]} if method == "custom" else {}))
    found, looks = BatchNormaliser(change)(as_batch(pictures))
    for picture, tensor, look in zip(pictures, found, looks, strict=True):
        alone = change(picture)
        assert look.note == alone.note
        assert look.usable == alone.look.usable
        off = np.abs(tensor.permute(1, 2, 0).numpy().astype(int) - alone.image)
        assert off.mean() < (6 if method == "reinhard" else 1), alone.note
        if look.matrix is not None and look.usable:
            np.testing.assert_allclose(look.matrix, alone.look.matrix, atol=5e-3)


def test_what_is_measured_by_tables(stained: Any) -> None:
    pixels = as_batch([stained, mixed(4)]).flatten(2).contiguous()
    for b, picture in enumerate((stained, mixed(4))):
        mask = density.tissue_mask(picture).reshape(-1)
        assert (batched.dark(pixels, 0.8)[b].numpy() == mask).mean() > 0.995
    rng = np.random.default_rng(0)
    values, mask = rng.random((3, 5000)), rng.random((3, 5000)) < 0.4
    mask[2] = False
    found = batched.percentiles(torch.from_numpy(values).float(), torch.from_numpy(mask), (1, 50, 99)).numpy()
    for b in range(2):
        np.testing.assert_allclose(found[b], np.percentile(values[b][mask[b]], (1, 50, 99)), atol=5e-3)
    assert np.isnan(found[2]).all()


def test_cielab_there_and_back() -> None:
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 40), dtype=np.uint8))
    assert int((batched.from_lab(batched.to_lab(values)).int() - values.int()).abs().max()) <= 1
    picture = values[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(
        batched.to_lab(values[:1])[0].permute(1, 2, 0).numpy(), colour.reinhard_space(picture), atol=2
    )


def test_batches_of_templates(stained: Any) -> None:
    template = np.array([[150.0, 30], [150, 8], [115, 6]])
    alone = colour.retemplate(stained, "lab", template)
    found = batched.retemplated(as_batch([stained]), torch.from_numpy(template)[None].float())
    assert np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - alone).mean() < 2.5


def test_mistakes() -> None:
    with pytest.raises(UserError, match="single pictures only"):
        BatchNormaliser(normaliser("vahadane-tiatoolbox"))
    with pytest.raises(UserError, match=r"Expected \(B, 3, H, W\) uint8"):
        BatchNormaliser(normaliser("macenko"))(torch.zeros(1, 3, 8, 8))
