"""Targets, options, published folders, thresholds and shape completion of the family stardist."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zoo.cards import DatasetCard
from zoo.errors import DataError, UserError, ZooError
from zoo.families import build
from zoo.families.base import Maps
from zoo.families.stardist import StarDist, StarDistOptions, convert, losses, targets, thresholds
from zoo.families.stardist.model import pad_end
from zoo.types import Batch, Geometry, Instances, InstancesPrediction, Sample
from zoo.weights.convert import Files


def disks(shape: tuple[int, int] = (60, 70)) -> NDArray[np.int32]:
    y, x = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for label, (cy, cx, r) in enumerate([(15, 15, 9), (40, 20, 11), (25, 50, 12), (52, 60, 6)], start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= r * r] = label
    return labels


def card(axes: str = "CYX", classes: tuple[str, ...] = ("nucleus",)) -> DatasetCard:
    return DatasetCard.model_validate(
        {
            "zoo": 1,
            "name": "imaginary",
            "summary": "For tests.",
            "reader": "folder",
            "licence": {"name": "CC0-1.0", "allows": ["research"]},
            "axes": axes,
            "channels": ["nuclei"],
            "truths": {"nuclei": {"kind": "instances", "classes": classes}},
        }
    )


def options(**given: Any) -> StarDistOptions:
    return StarDistOptions.model_validate(given)


# --- targets ----------------------------------------------------------------------------------------------------------


def slow_distance(labels: NDArray[Any], y: int, x: int, ray: int, rays: int) -> float:
    """Walk along one ray until another label or the border, then back by half a step of the longer axis."""
    angle = np.float32(2 * np.pi / rays * ray)
    dy, dx = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    fy = fx = np.float32(0)
    while True:
        fy, fx = np.float32(fy + dy), np.float32(fx + dx)
        i, j = round(float(y + fy)), round(float(x + fx))
        if not (0 <= i < labels.shape[0] and 0 <= j < labels.shape[1]) or labels[i, j] != labels[y, x]:
            back = 1 - 0.5 / max(abs(dy), abs(dx))
            return float(np.hypot(fy - back * dy, fx - back * dx))


def test_distances_are_those_of_walking() -> None:
    labels = disks()
    made = targets.make(labels, 8, (2, 2))
    for y, x in [(14, 14), (40, 24), (20, 46), (52, 58)]:
        walked = [slow_distance(labels, y, x, k, 8) for k in range(8)]
        np.testing.assert_allclose(made["dist"][:, y // 2, x // 2], walked, atol=1e-4)
    assert made["dist"][:, 0, 0].tolist() == [0.0] * 8
    assert made["prob"].max() == pytest.approx(1, abs=1e-6)
    assert (made["prob"][0] > 0).tolist() == (labels[::2, ::2] > 0).tolist()


def test_ids_of_any_size_are_objects() -> None:
    labels = disks()
    large = np.array([0, 65536, 70001, 5, 2**30], np.int64)[labels]
    for name, value in targets.make(large, 8, (1, 1)).items():
        np.testing.assert_array_equal(value, targets.make(labels, 8, (1, 1))[name])
    with pytest.raises(ValueError, match=r"holds 65536 objects. Expected at most 65535"):
        targets.compact(np.arange(65537).reshape(1, -1))


def test_nothing_annotated_and_nothing_there() -> None:
    empty = targets.make(np.zeros((20, 20), np.int32), 8, (2, 2))
    assert not empty["prob"].any()
    assert not empty["dist"].any()
    hidden = targets.make(np.where(disks() == 2, -1, disks()), 8, (1, 1))
    assert (hidden["prob"][0][disks() == 2] == -1).all()
    assert (hidden["mask"][0][disks() == 2] == 0).all()


def test_a_truth_of_other_axes_is_named() -> None:
    maker = targets.maker(options(rays=8, grid=[1, 1], channels=["nuclei"]), card())
    volume = Sample(
        "s1", "imaginary", np.zeros((1, 4, 8, 8), np.uint8), truth={"nuclei": Instances(np.zeros((4, 8, 8), int))}
    )
    with pytest.raises(DataError, match=r"imaginary: s1: nuclei is no map of objects of 2 axes"):
        maker(volume)


def test_shape_completion_leaves_the_rim_out() -> None:
    crop = options(rays=8, grid=[2, 2], channels=["nuclei"], completion={"crop": 8}, unet={"filters": 4, "features": 4})
    model = StarDist(crop)
    sample = Sample("s", "imaginary", np.zeros((1, 64, 64), np.uint8), truth={"nuclei": Instances(disks((64, 64)))})
    made = targets.maker(crop, card())(sample)
    assert made["dist"].shape == (8, 24, 24)
    batch = Batch(
        {"image": torch.zeros(2, 1, 64, 64)},
        {name: torch.from_numpy(np.stack([value] * 2)) for name, value in made.items()},
    )
    totals = []
    for mode in (True, False):  # in training the image is cropped, in validation the maps are
        model.train(mode)
        maps = model.forward(model.prepare(batch.inputs))
        assert maps["prob"].shape[2:] == ((24, 24) if mode else (32, 32))
        totals.append(model.loss(maps, batch, 0.0))
    assert set(totals[0]) == {"prob", "dist"}


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"grid": [3, 2]}, "power of two"),
        ({"grid": [2]}, "grid has 1 numbers and dims is 2"),
        ({"backbone": "resnet"}, "for volumes"),
        ({"backbone": "encoder"}, "goes with backbone: encoder"),
        ({"backbone": "encoder", "encoder": "resnet5O"}, "resnet50"),
        ({"rays": 2}, "span nothing"),
        ({"dims": 3, "rays": {"name": "golden"}}, "golden-spiral"),
        ({"dims": 3, "completion": {}}, "completion is for pictures"),
        ({"normalise": {"low": 99, "high": 1}}, "not below"),
        ({"thresholds": {"prob": 1.5}}, "less than 1"),
        ({"unet": {"kernel": [3, 3, 3]}}, "kernel has 3 numbers"),
        ({"class_weights": [1, 1], "classes": ["a", "b"]}, "2 class weights"),
    ],
)
def test_mistakes_in_options(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ZooError, match=said):
        build.create("stardist", given)


def test_losses_of_distances_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (8 * torch.rand(2, 32, 5, 6, generator=generator) for _ in range(2))
    weight = torch.rand(2, 1, 5, 6, generator=generator)
    found = losses.distance_sum(predicted, target, weight, {"iou": 1.0, "mae": 0.05}, background=0.1)
    outside = (0.1 * (1 - weight) * predicted.abs().mean(1, keepdim=True)).mean()
    mae = (weight * (predicted - target).abs().mean(1, keepdim=True)).mean() / weight.mean()
    squares = [pick(predicted, target).square().mean(1, keepdim=True) for pick in (torch.minimum, torch.maximum)]
    iou = (weight * (1 - squares[0] / squares[1])).mean() / weight.mean()
    torch.testing.assert_close(found, iou + 0.05 * mae + outside)
    for kind in ("mae", "mse", "iou"):
        alone = losses.distance(predicted, target, weight, kind, 0.1)
        torch.testing.assert_close(losses.distance_sum(predicted, target, weight, {kind: 1.0}, 0.1), alone)


def test_a_grid_that_the_blocks_cannot_reach() -> None:
    with pytest.raises(UserError, match="cannot reach the grid"):
        build.create("stardist", {"dims": 3, "backbone": "resnet", "grid": [1, 8, 8], "resnet": {"blocks": 2}})


def test_pictures_and_volumes_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"axes CZYX and dims is 2.*Set model.dims to 3"):
        targets.resolve(options(), [card("CZYX")])
    with pytest.raises(ValueError, match=r"axes CYX and dims is 3"):
        targets.resolve(options(dims=3), [card()])


def test_grid_and_anisotropy_come_from_the_objects() -> None:
    labels = np.zeros((20, 60, 60), np.int32)
    labels[4:10, 10:28, 10:28], labels[12:18, 30:48, 30:49] = 1, 2
    sample = Sample(
        "s", "imaginary", labels[None], axes="CZYX", spacing=(1.5, 0.5, 0.5), truth={"n": Instances(labels)}
    )
    found = targets.derive(options(dims=3), [sample])
    assert found.anisotropy is not None
    np.testing.assert_allclose(found.anisotropy, (3.08, 1.03, 1), atol=0.05)
    assert found.grid == (1, 2, 2)
    assert found.spacing == (1.5, 0.5, 0.5)
    flat = Sample("s", "imaginary", disks()[None], truth={"n": Instances(disks())})
    assert targets.derive(options(), [flat]).grid == (2, 2)
    assert targets.derive(options(grid=[4, 1]), [flat]).grid == (4, 1)


# --- published folders ------------------------------------------------------------------------------------------------


def keras_folder(folder: Path, config: dict[str, Any], start: int, suffix: str) -> StarDist:
    """Write a model as Keras would, in a process that has built `start` layers of each kind before."""
    model = StarDist(options(**convert.options_of(config), normalise=None)).eval()
    torch.manual_seed(3)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.1)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "thresholds.json").write_text(json.dumps({"prob": 0.6, "nms": 0.35}))
    known = {v: k for k, v in convert.WEIGHTS.items() if k in ("moving_mean", "moving_variance")}
    with h5py.File(folder / "weights_best.h5", "w") as file:
        names = []
        for path, layer in convert._ours(model).values():
            name = path.rpartition(".")[2]
            if convert.AUTO.match(name):
                kind, _, number = (
                    name.partition("_")
                    if name.startswith("conv")
                    else ("batch_normalization", "", name.removeprefix("batch_normalization").strip("_"))
                )
                name = f"{kind}_{int(number or 0) + start}"
            group = file.create_group(name)
            stored = []
            for key, value in layer.state_dict().items():
                short = key.removeprefix("conv.")
                if short == "num_batches_tracked":
                    continue
                norm = not hasattr(layer, "kernel")
                word = known.get(short) or (
                    {"weight": "gamma", "bias": "beta"}[short] if norm else {"weight": "kernel", "bias": "bias"}[short]
                )
                array = value.numpy()
                if word == "kernel":
                    array = array.transpose(*range(2, array.ndim), 1, 0)
                stored.append(f"{name}/{word}{suffix}")
                group.create_dataset(f"{name}/{word}{suffix}", data=array)
            group.attrs["weight_names"] = [s.encode() for s in stored]
            names.append(name)
        file.attrs["layer_names"] = [n.encode() for n in [*names, "input_1"]]
        file.create_group("input_1").attrs["weight_names"] = np.zeros(0, "S1")
    return model


CONFIGS = {
    "2d": {
        "n_dim": 2,
        "n_channel_in": 3,
        "grid": [2, 2],
        "n_rays": 8,
        "unet_n_filter_base": 4,
        "unet_n_depth": 1,
        "unet_batch_norm": True,
        "net_conv_after_unet": 8,
        "train_epochs": 400,
    },
    "3d": {
        "n_dim": 3,
        "n_channel_in": 1,
        "grid": [1, 2, 2],
        "backbone": "resnet",
        "resnet_n_filter_base": 4,
        "resnet_n_blocks": 2,
        "resnet_n_conv_per_block": 2,
        "resnet_batch_norm": True,
        "net_conv_after_resnet": 8,
        "n_classes": 2,
        "anisotropy": [2, 1, 1],
        "rays_json": {"name": "Rays_GoldenSpiral", "kwargs": {"n": 12, "anisotropy": [2, 1, 1]}},
    },
}


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(("start", "suffix"), [(0, ":0"), (17, "")])
def test_a_published_folder_converts(tmp_path: Path, name: str, start: int, suffix: str) -> None:
    model = keras_folder(tmp_path / "m", CONFIGS[name], start, suffix)
    found = convert.folder(Files(tmp_path / "m", tmp_path / "m"))
    assert found.options["thresholds"] == {"prob": 0.6, "nms": 0.35, "found": True}
    ours = build.create(found.family, found.options)
    ours.load_state_dict(dict(found.tensors))
    image = {"image": torch.rand(1, CONFIGS[name]["n_channel_in"], *((6, 16, 12)[-CONFIGS[name]["n_dim"] :]))}
    with torch.inference_mode():
        for key, value in model.forward(image).items():
            torch.testing.assert_close(ours.forward(image)[key], value)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    keras_folder(tmp_path / "m", CONFIGS["2d"], 0, ":0")
    files = Files(tmp_path / "m", tmp_path / "m")
    config = CONFIGS["2d"] | {"unet_n_depth": 2}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"the file has nothing for it|Expected weights and configuration|layers of kind"
    ):
        convert.folder(files)
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIGS["2d"] | {"unet_n_dept": 2}))
    with pytest.raises(UserError, match=r'unknown key "unet_n_dept".*unet_n_depth'):
        convert.folder(files)
    evil = {"rays_json": {"name": "__import__('os').system", "kwargs": {}}, "n_dim": 3}
    with pytest.raises(UserError, match="no rays"):
        convert.options_of(evil)
    (tmp_path / "m" / "weights_best.h5").unlink()
    with pytest.raises(UserError, match="no weights"):
        convert.folder(files)


# --- the operating point ----------------------------------------------------------------------------------------------


def test_thresholds_are_those_of_the_best_score() -> None:
    prob, nms, best, each = thresholds.optimise(lambda p, n: 1 - (p - 0.6) ** 2 - abs(n - 0.4), 0.9)
    assert nms == 0.4
    assert prob == pytest.approx(0.6, abs=0.02)
    assert best == pytest.approx(1, abs=1e-3)
    assert len(each) == 3
    assert thresholds.optimise(lambda _p, _n: 0.5, 0.9)[1] == 0.3  # of equals the first


def test_calibration_finds_the_objects_of_perfect_maps() -> None:
    labels = disks()
    model = build.create(
        "stardist", {"rays": 32, "grid": [1, 1], "channels": ["n"], "unet": {"filters": 2, "features": 2}}
    )
    made = targets.make(labels, 32, (1, 1))
    maps: Maps = {"prob": torch.from_numpy(0.3 * made["prob"])[None], "dist": torch.from_numpy(made["dist"])[None]}
    sample = Sample("s", "imaginary", labels[None].astype(np.uint8), truth={"nuclei": Instances(labels)})
    geometry = Geometry(labels.shape)
    assert not model.decode(maps, [geometry])[0]["instances"].map.any()  # type: ignore[union-attr]
    found = model.calibrate([sample], lambda _: (maps, geometry))
    assert found.thresholds.found
    assert found.thresholds.prob < 0.3
    again = StarDist(found).decode(maps, [geometry])[0]["instances"]
    assert isinstance(again, InstancesPrediction)
    assert int(again.map.max()) == 4
    assert model.calibrate([sample.with_(truth={})], lambda _: (maps, geometry)) is None


def test_thresholds_that_cannot_be() -> None:
    model = build.create("stardist", StarDist.tiny())
    with pytest.raises(UserError, match=r"nms is 1.5. Expected a number between 0 and 1"):
        model.predict(np.zeros((32, 32, 3), np.uint8), nms=1.5)


# --- prediction -------------------------------------------------------------------------------------------------------


def test_padding_is_that_of_numpy() -> None:
    image = np.random.default_rng(0).random((1, 1, 5, 3, 9)).astype(np.float32)
    padded = pad_end(torch.from_numpy(image), (1, 8, 4)).numpy()
    for depth, height, width in [(5, 8, 12)]:
        widths = [(0, 0), (0, 0), (0, depth - 5), (0, height - 3), (0, width - 9)]
        np.testing.assert_array_equal(padded, np.pad(image, widths, "reflect"))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.5), (2.0, 1.0)])
def test_objects_lie_where_they_are_at_any_scale(scale: tuple[float, float]) -> None:
    """Perfect maps at the model's resolution give the objects of the source, whatever its own resolution."""
    labels = disks()
    model = build.create(
        "stardist", {"rays": 64, "grid": [1, 1], "channels": ["n"], "unet": {"filters": 2, "features": 2}}
    )
    made = targets.make(labels, 64, (1, 1))
    maps: Maps = {"prob": torch.from_numpy(made["prob"])[None], "dist": torch.from_numpy(made["dist"])[None]}
    shape = tuple(round(n / s) for n, s in zip(labels.shape, scale, strict=True))
    found = model.decode(maps, [Geometry(shape, scale)])[0]["instances"]
    assert isinstance(found, InstancesPrediction)
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * s, m - 1).astype(int)
        for n, s, m in zip(shape, scale, labels.shape, strict=True)
    )
    wanted = labels[np.ix_(rows, columns)]
    for label in range(1, 5):
        mine = found.map == np.bincount(found.map[wanted == label]).argmax()
        both = (mine & (wanted == label)).sum() / (mine | (wanted == label)).sum()
        assert both > 0.85
    assert math.isclose(float(found.scores.max()), 1, abs_tol=1e-5)  # type: ignore[union-attr]


def test_many_polyhedra_are_drawn_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled loop and the package's routine draw the same."""
    from zoo.families.stardist import model as module
    from zoo.families.stardist.decode import Stars

    rng = np.random.default_rng(0)
    points = rng.integers(3, 25, (40, 3))
    stars = Stars(
        points, np.sort(rng.random(40).astype(np.float32))[::-1], rng.uniform(2, 5, (40, 24)).astype(np.float32)
    )
    given = {"dims": 3, "rays": 24, "grid": [1, 1, 1], "anisotropy": [2, 1, 1], "channels": ["n"]}
    family = build.create("stardist", given | {"unet": {"filters": 2, "features": 2, "depth": 1}})
    assert isinstance(family, StarDist)
    for where in (
        Geometry((28, 28, 28), (1.0,) * 3, (0.0,) * 3),
        Geometry((14, 28, 40), (2.0, 1.0, 0.7), (1.0, 0.0, 0.0)),
    ):
        few, _ = family.draw(stars, where)
        monkeypatch.setattr(module, "MANY", 10)
        many, _ = family.draw(stars, where)
        monkeypatch.undo()
        assert few.any()
        np.testing.assert_array_equal(few, many)
