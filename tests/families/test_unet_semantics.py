"""What the family unet makes of cards, truths and probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo import cards
from zoo.errors import DataError, Problems, UserError
from zoo.families import build
from zoo.families.base import Family
from zoo.families.unet import UNet, UNetOptions
from zoo.families.unet.decode import decode, fold
from zoo.recipe import load_recipe
from zoo.types import Batch, Geometry, Instances, InstancesPrediction, Sample, Semantic, SemanticPrediction

TINY = UNet.tiny() | {"instances": None}


def card(name: str = "d", channels: tuple[str, ...] = ("red", "green", "blue"), **truths: Any) -> cards.DatasetCard:
    return cards.DatasetCard.model_validate(
        {
            "zoo": 1,
            "name": name,
            "summary": "For tests.",
            "reader": "folder",
            "licence": {"name": "CC0-1.0", "allows": ["research"]},
            "channels": channels,
            "truths": truths,
        }
    )


NUCLEI = {"kind": "instances", "classes": ["nucleus"]}
CELL = {"kind": "semantic", "classes": ["background", "cytoplasm", "nucleus"], "ignore": 255}
GRADE = {"kind": "label", "classes": ["benign", "malignant"]}


def options(**changes: Any) -> UNetOptions:
    return UNetOptions.model_validate({k: v for k, v in (TINY | changes).items() if v != "unset"})


# --- cards fill in what the options leave open ------------------------------------------------------------------------


def test_classes_truth_and_mode_come_from_the_card() -> None:
    found = UNet.resolve(options(classes="unset"), [card(glands=NUCLEI, grade=GRADE)])
    assert (found.classes, found.truth, found.mode) == (("background", "nucleus"), "glands", "binary")
    assert found.channels == ("red", "green", "blue")
    found = UNet.resolve(options(classes="unset"), [card(cell=CELL)])
    assert (found.classes, found.mode) == (("background", "cytoplasm", "nucleus"), "multiclass")
    found = UNet.resolve(options(classes="unset", mode="multilabel"), [card(cell=CELL)])
    assert found.classes == ("cytoplasm", "nucleus")
    found = UNet.resolve(options(classes="unset", merge={"leukocyte": ["cytoplasm", "nucleus"]}), [card(cell=CELL)])
    assert (found.classes, found.mode) == (("background", "leukocyte"), "binary")


def test_several_datasets_with_their_own_truths() -> None:
    two = [card("a", nuclei=NUCLEI), card("b", cell=CELL, grade=GRADE)]
    found = UNet.resolve(options(), two)
    assert found.truth is None  # each has its own key
    assert UNet.targets(found, two[0]).key == "nuclei"  # type: ignore[attr-defined]
    assert UNet.targets(found, two[1]).key == "cell"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "truths", "message"),
    [
        ({}, {"grade": GRADE}, "has no semantic or instances truth"),
        ({}, {"a": NUCLEI, "b": NUCLEI}, r"several truths: a, b\. Choose one with model\.truth"),
        ({"truth": "c"}, {"a": NUCLEI}, r'no semantic or instances truth "c"\. It has a \(instances\)'),
        ({"classes": ["background", "mitosis"]}, {"cell": CELL}, 'nothing for the class "mitosis"'),
        ({"instances": {"boundary": "touching"}}, {"cell": CELL}, "has no instances truth"),
    ],
)
def test_a_card_that_does_not_fit_is_said(changes: Any, truths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet.resolve(options(**changes), [card(**truths)])


def test_channels_that_differ_are_said() -> None:
    with pytest.raises(ValueError, match="differ in their channels"):
        UNet.resolve(options(), [card("a", nuclei=NUCLEI), card("b", ("DAPI",), nuclei=NUCLEI)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet5O"}, r'model\.encoder: no encoder "resnet5O"\. Did you mean resnet50'),
        ({"decoder": "unett"}, r'no decoder "unett"\. Did you mean unet'),
        ({"decoder": {"name": "fpn", "arguments": {"chanels": 3}}}, "decoder fpn: .*chanels"),
        ({"decoder": {"name": "fpn", "arguments": {"channels": 30}}}, "multiple of 32"),
        ({"loss": ["dise"]}, r'no loss "dise"'),
        ({"loss": []}, "empty"),
        ({"classes": ["nucleus"]}, "first class must be background"),
        ({"mode": "binary", "classes": ["background", "a", "b"]}, "two classes, not 3"),
        ({"mode": "multilabel"}, "without the background"),
        ({"mode": "binary", "instances": {"boundary": "touching"}}, "boundary class cannot go with mode binary"),
        ({"class_weights": [1, 2, 3]}, "3 class weights for 2 classes"),
        ({"clases": []}, "Did you mean classes"),
    ],
)
def test_mistakes_in_options_are_named(changes: Any, message: str) -> None:
    with pytest.raises(Problems, match=message):
        build.create("unet", TINY | changes)


def test_without_classes_there_is_no_model() -> None:
    with pytest.raises(UserError, match="classes are not known"):
        build.create("unet", {k: v for k, v in TINY.items() if k != "classes"})


# --- targets ----------------------------------------------------------------------------------------------------------


def test_a_boundary_class_where_objects_touch() -> None:
    made = UNet.targets(options(instances={"boundary": "touching", "width": 1}), card(nuclei=NUCLEI))
    labels = np.zeros((6, 12), np.int32)
    labels[1:5, 1:5], labels[1:5, 5:9], labels[1:5, 11:] = 1, 2, 3
    target = made(Sample("x", "d", np.zeros((3, 6, 12)), truth={"nuclei": Instances(labels)}))["semantic"]
    expected = (labels > 0).astype(np.uint8)
    expected[1:5, 4:6] = 2
    np.testing.assert_array_equal(target, expected)


def test_a_truth_that_is_not_what_the_card_says() -> None:
    made = UNet.targets(options(classes=["background", "nucleus"]), card(cell=CELL))
    with pytest.raises(DataError, match=r"d: x: cell: the map holds the value 4, which is no class"):
        made(Sample("x", "d", np.zeros((3, 1, 2)), truth={"cell": Semantic(np.array([[0, 4]]), ignore=255)}))


# --- decoding ---------------------------------------------------------------------------------------------------------


def discs(shape: tuple[int, int], *centres: tuple[int, int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.any([(rows - i) ** 2 + (columns - j) ** 2 <= r * r for i, j, r in centres], axis=0)


def test_the_boundary_folds_into_the_classes() -> None:
    p = np.array([0.2, 0.1, 0.3, 0.4], np.float32).reshape(4, 1, 1)
    np.testing.assert_allclose(fold(p).ravel(), [0.2, 0.2, 0.6], rtol=1e-6)
    alone = np.array([0.0, 0.0, 0.0, 1.0], np.float32).reshape(4, 1, 1)
    np.testing.assert_allclose(fold(alone).ravel(), [0, 0.5, 0.5])


def test_touching_objects_are_told_apart_at_the_scale_of_the_source() -> None:
    """Two discs that touch and a speck, on a model's grid of half the source's resolution."""
    shape = (40, 60)
    front = discs(shape, (20, 18, 12), (20, 41, 12))
    edge = front & (np.abs(np.arange(60) - 29.5) < 2)[None]
    front[2, 2] = True
    planes = np.stack([~front, front & ~edge, edge]).astype(np.float32)
    chosen = options(instances={"boundary": "touching", "min_size": 20})
    geometry = Geometry((80, 120), (0.5, 0.5))
    found = decode(torch.from_numpy(planes), geometry, chosen, ("background", "nucleus"), "multiclass")
    objects, semantic = found["instances"], found["semantic"]
    assert isinstance(objects, InstancesPrediction)
    assert isinstance(semantic, SemanticPrediction)
    assert objects.map.shape == (80, 120)
    assert objects.map.max() == 2
    assert objects.map[40, 37] != objects.map[40, 83] != 0
    area = np.bincount(objects.map.ravel())[1:]
    np.testing.assert_allclose(area, [np.pi * 24**2] * 2, rtol=0.05)
    assert objects.scores is not None
    assert (objects.scores > 0.9).all()
    assert semantic.map[40, 59] == 1  # the boundary belongs to the objects
    assert semantic.map[4, 4] == 1  # the speck is a class, if no object


def test_classes_of_objects_are_the_majority_s() -> None:
    front = discs((30, 30), (15, 15, 9))
    planes = np.zeros((3, 30, 30), np.float32)
    planes[0] = ~front
    planes[1, front], planes[2, front] = 0.3, 0.7
    planes[1, :12][front[:12]], planes[2, :12][front[:12]] = 0.8, 0.2
    chosen = options(classes=["background", "a", "b"], instances={})
    found = decode(torch.from_numpy(planes), Geometry((30, 30)), chosen, ("background", "a", "b"), "multiclass")
    assert found["instances"].map.max() == 1  # type: ignore[union-attr]
    assert found["instances"].class_index.tolist() == [1]  # type: ignore[union-attr]


def test_the_threshold_is_an_operating_point() -> None:
    family = build.create("unet", TINY | {"threshold": 0.3})
    maps = {"logits": torch.full((1, 1, 4, 4), 0.4)}
    where = [Geometry((4, 4))]
    assert family.decode(maps, where)[0]["semantic"].map.all()  # type: ignore[union-attr]
    assert not family.decode(maps, where, threshold=0.5)[0]["semantic"].map.any()  # type: ignore[union-attr,call-arg]
    assert family.decode(maps, where)[0]["semantic"].probability.shape == (2, 4, 4)  # type: ignore[union-attr]


# --- training ---------------------------------------------------------------------------------------------------------


def squares(B: int, seed: int = 0) -> Batch:
    """Bright squares on a dark ground, and where they are."""
    rng = np.random.default_rng(seed)
    image, target = rng.normal(60, 10, (B, 3, 64, 64)), np.zeros((B, 64, 64), np.uint8)
    for b in range(B):
        for _ in range(4):
            i, j = rng.integers(0, 48, 2)
            image[b, :, i : i + 16, j : j + 16] += 90
            target[b, i : i + 16, j : j + 16] = 1
    return Batch(
        {"image": torch.from_numpy(image.clip(0, 255).astype(np.uint8))}, {"semantic": torch.from_numpy(target)}
    )


def steps(family: Family, batches: list[list[Batch]], count: int) -> Family:
    """Train by hand: the mean loss of the parts of each step."""
    optimizer = torch.optim.Adam([p for p in family.parameters() if p.requires_grad], lr=3e-3)
    family.train()
    for step in range(count):
        optimizer.zero_grad()
        for part in batches[step % len(batches)]:
            terms = family.loss(family(family.prepare(part.inputs)), part, 0.0)
            (torch.stack(list(terms.values())).sum() / len(batches[step % len(batches)])).backward()
        optimizer.step()
    return family.eval()


def test_it_learns() -> None:
    torch.manual_seed(0)
    family = steps(build.create("unet", TINY), [[squares(8, seed)] for seed in range(3)], 40)
    unseen = squares(4, 99)
    with torch.inference_mode():
        maps = family.activate(family.infer(family.prepare(unseen.inputs)))
    predicted = maps["logits"][:, 0] > 0.5
    truth = unseen.targets["semantic"] == 1  # type: ignore[comparison-overlap]
    dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert dice > 0.9


def test_two_halves_train_as_one_batch() -> None:
    """Without statistics of a batch, what two devices do with half a batch each is what one does with the whole."""
    chosen = TINY | {"norm": "group", "loss": ["cross_entropy", "dice", "lovasz"]}
    whole = squares(4)
    halves = [
        Batch({"image": whole.inputs["image"][h]}, {"semantic": whole.targets["semantic"][h]})
        for h in (slice(0, 2), slice(2, 4))
    ]
    torch.manual_seed(0)
    one = steps(build.create("unet", chosen), [[whole]], 3)
    torch.manual_seed(0)
    two = steps(build.create("unet", chosen), [halves], 3)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_norms() -> None:
    kinds = (torch.nn.BatchNorm2d, torch.nn.GroupNorm, torch.nn.InstanceNorm2d)
    for norm, expected in zip(("batch", "group", "instance"), kinds, strict=True):
        family = build.create("unet", TINY | {"norm": norm})
        assert any(isinstance(m, expected) for m in family.modules())
        if norm != "batch":
            assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in family.modules())


def test_a_shallow_decoder_cuts_the_encoder_off() -> None:
    shallow = {"decoder": {"name": "unet", "arguments": {"channels": [32, 16, 8]}}}
    family = build.create("unet", TINY | shallow)
    assert family.pyramid.encoder.strides == (2, 4, 8)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"smp:resnet18 goes to 32 and cannot be cut off\. Add widths"):
        build.create("unet", TINY | shallow | {"encoder": "smp:resnet18"})


def test_dilated_encoders_are_used_as_they_are() -> None:
    for decoder, stride in (("pspnet", 8), ("deeplabv3plus", 16)):
        encoder = {"name": "resnet10t", "arguments": {"output_stride": stride}}
        family = build.create("unet", TINY | {"encoder": encoder, "decoder": decoder})
        assert family.pyramid.strides[-1] == stride  # type: ignore[union-attr]
        assert not any("joint" in name for name in family.state_dict())
        plain = build.create("unet", TINY | {"decoder": decoder})
        assert any("joint" in name for name in plain.state_dict())


def test_taps() -> None:
    family = build.create("unet", TINY)
    image = family.prepare({"image": torch.zeros(1, 3, 40, 64, dtype=torch.uint8)})
    maps = family(image, taps=("decoder", "level4"))
    assert maps["level4"].shape[-2:] == (2, 2)
    assert maps["decoder"].shape[-2:] == (64, 64)
    with pytest.raises(UserError, match='no feature "x"'):
        family(image, taps=("x",))


def test_the_network_is_the_one_of_smp() -> None:
    """With the same weights the whole network computes what segmentation_models_pytorch's U-Net computes."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=1).eval()
    ours = build.create("unet", {"encoder": "smp:resnet18", "classes": ["background", "x"]})
    given = theirs.state_dict()
    renamed = {}
    for name in ours.state_dict():
        if name.startswith("decoder."):
            renamed[name] = given[name]
        elif name.startswith("head."):
            renamed[name] = given[name.replace("head.", "segmentation_head.0.")]
        else:
            renamed[name] = given["encoder." + name.split("encoder.", 1)[1].removeprefix("net.")]
    ours.load_state_dict(renamed)
    x = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours({"image": x})["logits"], theirs(x), rtol=1e-4, atol=1e-5)


def test_the_bundled_nuclei_model_fits_its_budget(root: Path, tmp_path: Path) -> None:
    recipe = load_recipe(root / "recipes" / "nuclei-unet-mobile.yaml")
    build.save(build.create("unet", recipe.model), tmp_path / "nuclei.safetensors", half=True)
    assert (tmp_path / "nuclei.safetensors").stat().st_size <= 8_000_000
