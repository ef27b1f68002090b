"""The presets batched on a device: labels move with the images, a seed decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from zoo.data.augment import Augment
from zoo.data.augment_device import DeviceAugment
from zoo.errors import UserError
from zoo.schema import Component
from zoo.types import Batch, Sample


def batch(channels: int = 3, size: tuple[int, int] = (48, 48), dtype: Any = torch.uint8) -> Batch:
    """Images that show their label map: 4 x 4 blocks of classes 0..3."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 4, (5, 4, 4)))
    rows, columns = (torch.arange(n) * 4 // n for n in size)
    classes = coarse[:, rows][:, :, columns]
    image = (classes[:, None] * 80).expand(-1, channels, -1, -1)
    image = image.to(torch.uint8) if dtype == torch.uint8 else image.float()
    valid = torch.ones(5, *size, dtype=torch.bool)
    valid[0, :6] = False
    targets = {"classes": classes, "planes": torch.stack([classes == k for k in range(4)], 1), "shifted": classes - 100}
    return Batch({"image": image}, dict(targets), {"classes": torch.ones(5, dtype=torch.bool)}, valid)


def one(name: str, **arguments: Any) -> DeviceAugment:
    return DeviceAugment([Component(name=name, arguments=arguments)])


@pytest.mark.parametrize("name", ["flips", "rotate90", "affine", "elastic"])
def test_labels_move_with_the_images(name: str) -> None:
    before = batch()
    changed = 0
    for seed in range(3):
        moved = one(name)(before, seed)
        classes, planes, shifted = (moved.targets[k] for k in ("classes", "planes", "shifted"))
        assert isinstance(classes, torch.Tensor)
        assert isinstance(planes, torch.Tensor)
        assert isinstance(shifted, torch.Tensor)
        valid = moved.valid
        assert valid is not None
        assert classes.dtype == torch.int64
        assert planes.dtype == torch.bool
        image = moved.inputs["image"]
        assert image.dtype == torch.float32
        agree = (image[:, 0] * 255 - 80 * classes).abs() <= 40
        assert agree[valid].float().mean() > 0.93
        if name in ("flips", "rotate90"):
            assert agree.all()
            assert int(valid.sum()) == int(before.valid.sum())  # type: ignore[union-attr]
        inside = valid.clone()
        assert all((planes[:, k][inside] == (classes[inside] == k)).all() for k in range(4))
        assert (shifted[inside] == classes[inside] - 100).all()
        changed += int(not torch.equal(classes, before.targets["classes"]))  # type: ignore[arg-type]
    assert changed >= 2


@pytest.mark.parametrize("preset", ["none", "light", "he-strong", "fluorescence"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_presets_are_functions_of_the_seed(preset: str, channels: int) -> None:
    augment = DeviceAugment(preset)
    state = torch.get_rng_state()
    first, second, other = (augment(batch(channels), seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.inputs["image"], second.inputs["image"])
    assert torch.equal(first.valid, second.valid)  # type: ignore[arg-type]
    assert torch.equal(first.inputs["image"], other.inputs["image"]) == (preset == "none")
    if preset != "none":
        assert first.inputs["image"].amin() >= 0
        assert first.inputs["image"].amax() <= 1


def test_half_turns_only_where_sides_differ() -> None:
    moved = one("rotate90")(batch(size=(32, 48)), 3)
    assert moved.inputs["image"].shape == (5, 3, 32, 48)


def test_same_strength_as_in_the_workers() -> None:
    grid = np.mgrid[0:128, 0:128].astype(np.float32)
    images = torch.from_numpy(np.stack([grid] * 6)) / 128
    device = one("elastic", pixels=2.0)(Batch({"image": images}), 1).inputs["image"].numpy() * 128
    augment = Augment([Component(name="elastic", arguments={"pixels": 2.0})])
    workers = np.stack([augment(Sample("a", "b", grid, channels=("y", "x")), seed).image for seed in range(6)])
    for found in (device, workers):
        assert np.std((found - grid)[..., 24:-24, 24:-24]) == pytest.approx(2.0, rel=0.2)


def test_stain_jitter_equals_the_formula_of_the_workers() -> None:
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)
    from zoo.stain.matrices import stain_jitter

    step = one("stain-jitter", scale=0.2, shift=0.03)
    found = step(Batch({"image": torch.from_numpy(rgb)}), 5).inputs["image"].numpy()[0] * 255
    # find the drawn numbers again from three pixels' absorbance, then apply them with numpy
    from zoo.stain.matrices import HED, absorbance

    inside = (found > 5).all(0) & (found < 250).all(0)
    before = absorbance(rgb[0])[:, inside].T @ np.linalg.inv(HED)
    after = -np.log((found[:, inside].T + 1) / 256) @ np.linalg.inv(HED)
    fits = [np.polyfit(before[:, s], after[:, s], 1) for s in range(3)]
    scale, shift = np.array([f[0] for f in fits]), np.array([f[1] for f in fits])
    assert (abs(scale - 1) <= 0.2).all()
    assert (abs(shift) <= 0.03).all()
    assert np.allclose(stain_jitter(rgb[0], scale, shift)[:, inside], found[:, inside], atol=1.01)


def test_what_cannot_be_moved_is_said() -> None:
    floats = batch()
    floats.targets["distance"] = torch.zeros(5, 1, 48, 48)
    with pytest.raises(UserError, match="distance"):
        DeviceAugment("light")(floats, 0)
    one("blur")(floats, 0)  # what does not move may keep them
    boxes = batch()
    boxes.targets["boxes"] = [torch.zeros(0, 4)] * 5
    with pytest.raises(UserError, match="augment_on: workers"):
        DeviceAugment("light")(boxes, 0)
    with pytest.raises(UserError, match="in workers only"):
        one("hue")
    with pytest.raises(UserError, match="works on 3 channels"):
        one("stain-jitter")(batch(1), 0)


def test_a_range_stays_in_the_numbers_of_the_picture() -> None:
    before = batch()
    before.inputs["range"] = torch.tensor([16.0, 224.0]).expand(5, 3, 2)
    after = one("flips")(before, 0)
    assert after.inputs["image"].max() <= 1
    assert torch.allclose(after.inputs["range"], before.inputs["range"] / 255)
    assert float(before.inputs["range"].max()) == 224
