"""Stains in recipes: augmentation in the workers and on the device, preprocessing that travels with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stained import mixed

from zoo.data.augment import Augment
from zoo.data.augment_device import DeviceAugment
from zoo.data.stains import Prepared, from_component, to_component
from zoo.errors import UserError
from zoo.families import build
from zoo.recipe import load_recipe
from zoo.schema import Component
from zoo.stain.normalise import normaliser
from zoo.training.check import check
from zoo.types import Batch, Sample


def sample(seed: int = 0) -> Sample:
    return Sample("a", "set", np.ascontiguousarray(np.moveaxis(mixed(seed, (48, 48)), -1, 0)))


STEPS: list[Component] = [
    Component(name="randstainna"),
    Component(name="randstainna", arguments={"statistics": "monuseg", "space": "hsv", "hyper": -0.3}),
    Component(name="randstainna", arguments={"space": "hed", "distribution": "uniform"}),
    Component(name="stain-augment", arguments={"p": 1}),
    Component(name="stain-augment", arguments={"p": 1, "method": "ruifrok", "background": True}),
    Component(name="stain-normalise", arguments={"p": 1, "method": "reinhard"}),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: f"{s.name} {s.arguments}")
def test_augmentations_are_functions_of_the_seed(step: Component) -> None:
    augment = Augment([step])
    one, again, other = augment(sample(), 1), augment(sample(), 1), augment(sample(), 2)
    assert one.image.dtype == np.uint8
    assert one.image.shape == sample().image.shape
    assert np.array_equal(one.image, again.image)
    assert not np.array_equal(one.image, sample().image)
    if step.name != "stain-normalise":
        assert not np.array_equal(one.image, other.image)


def test_stain_augmentation_leaves_glass_alone() -> None:
    picture = sample()
    glass = picture.image.min(0) > 245
    changed = Augment([Component(name="stain-augment", arguments={"p": 1})])(picture, 3).image
    assert np.abs(changed.astype(int) - picture.image)[:, glass].max() <= 2


@pytest.mark.parametrize("step", [STEPS[0], STEPS[3], STEPS[4]], ids=lambda s: f"{s.name} {s.arguments}")
def test_on_the_device(step: Component) -> None:
    batch = Batch({"image": torch.from_numpy(np.stack([sample(s).image for s in range(3)]))})
    augment = DeviceAugment([step])
    one, again = augment(batch, 1).inputs["image"], augment(batch, 1).inputs["image"]
    assert torch.equal(one, again)
    assert 0 <= float(one.min()) <= float(one.max()) <= 1
    assert float((one - batch.inputs["image"].float() / 255).abs().mean()) > 0.005


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Component(name="randstainna", arguments={"space": "luv"}), 'space "luv"'),
        (Component(name="randstainna", arguments={"statistics": "no.yaml"}), 'no statistics "no.yaml"'),
        (Component(name="randstainna", arguments={"distribution": "beta"}), 'distribution "beta"'),
        (Component(name="stain-augment", arguments={"method": "reinhard"}), 'method "reinhard"'),
        (Component(name="stain-normalise", arguments={"metod": 1}), 'unknown argument "metod"'),
    ],
)
def test_mistakes_in_steps(step: Component, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Augment([step])


def test_a_target_becomes_numbers(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(mixed(3)).save(tmp_path / "target.png")
    said = Component(name="macenko", arguments={"target": str(tmp_path / "target.png")})
    kept = to_component(from_component(said))
    assert "target" not in kept.arguments
    picture = mixed(4)
    assert np.array_equal(from_component(said)(picture).image, from_component(kept)(picture).image)
    with pytest.raises(UserError, match="there is no such file"):
        from_component(Component(name="macenko", arguments={"target": str(tmp_path / "none.png")}))


def test_preprocessing_travels_with_the_weights(tmp_path: Path) -> None:
    """A prediction of saved weights normalises by itself: it equals predicting normalised pixels."""
    torch.manual_seed(0)
    options = {"encoder": "resnet18", "classes": ["background", "nucleus"], "encoder_weights": "none"}
    family: Any = build.create("unet", {k: v for k, v in options.items() if k in _fields("unet")})
    plain = build.create("unet", family.options.model_dump(mode="json"))
    plain.load_state_dict(family.state_dict())
    family.stain = normaliser("macenko")
    build.save(family, tmp_path / "w.safetensors")
    loaded = build.load(tmp_path / "w.safetensors")
    assert loaded.stain is not None
    picture = mixed(6, (64, 64))
    there, by_hand = loaded.predict(picture), plain.predict(normaliser("macenko")(picture).image)
    assert np.array_equal(there.map, by_hand.map)
    if there.probability is not None:
        np.testing.assert_allclose(there.probability, by_hand.probability, atol=0.02)
        assert not np.allclose(there.probability, plain.predict(picture).probability, atol=1e-3)


def _fields(family: str) -> set[str]:
    from zoo import registry

    return set(registry.get("family", family).Options.model_fields)


def test_in_a_recipe() -> None:
    recipe = load_recipe("quickstart")
    assert load_recipe("quickstart", ["stains=macenko"]).content_hash() != recipe.content_hash()
    assert check("quickstart", ["stains=macenko"]) == []
    problems = check("quickstart", ["stains=maceko"])
    assert len(problems) == 1
    assert "Did you mean macenko" in str(problems[0])


def test_preparing_a_sample() -> None:
    prepared = Prepared(normaliser("reinhard"))(sample())
    assert prepared.image.shape == (3, 48, 48)
    with pytest.raises(UserError, match="Expected RGB of uint8"):
        Prepared(normaliser("reinhard"))(sample().with_(image=np.zeros((1, 8, 8), np.uint16), channels=("dapi",)))
