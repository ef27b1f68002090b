"""Pictures drawn into files: what a picture depends on, what is told, large ones, resuming, and every mistake."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from zoo.data.datasets import open_dataset
from zoo.errors import Interrupted, UserError, ZooError
from zoo.families import build
from zoo.families.diffusion.family import Diffusion
from zoo.families.diffusion.schedule import Schedule
from zoo.inference import generate as module
from zoo.inference.canvas import Canvas, Process
from zoo.inference.files import predict_files
from zoo.inference.generate import Drawing, generate, provenance
from zoo.inference.windows import plan
from zoo.inference.wishes import Asked, from_values

Make = Callable[..., Diffusion]
NETWORK = {"name": "pixel-unet", "arguments": {"features": 8, "multipliers": [1, 2]}}
MASK = {"truth": "nuclei", "classes": ["background", "a", "b"]}
FEW = Drawing(steps=3)


def made(**options: Any) -> Diffusion:
    """Return a model whose weights are noise, so that everything that it is told changes what it draws."""
    torch.manual_seed(0)
    family = build.create("diffusion", {"network": NETWORK, "size": 32, "mask": MASK, **options})
    for parameter in family.parameters():
        torch.nn.init.normal_(parameter, 0, 0.08)
    family.weights_name = "made"
    return cast(Diffusion, family.eval())


def write_mask(path: Path, values: Any = None, shape: tuple[int, int] = (32, 32), dtype: Any = np.uint8) -> Path:
    if values is None:
        values = np.zeros(shape, dtype)
        values[4:12, 4:14], values[20:28, 6:18] = 1, 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)
    return path


def pixels(path: Path) -> NDArray[np.int16]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int16)


def asked(*masks: Path, **more: Any) -> Asked:
    return Asked(masks=[str(m) for m in masks], **more)


# --- what a picture depends on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["dpm++", "ddpm"])
def test_a_picture_depends_on_its_seed_and_not_on_its_neighbours(tmp_path: Path, sampler: str) -> None:
    mask = write_mask(tmp_path / "m.png")
    one, many, late = (tmp_path / name for name in ("one", "many", "late"))
    generate(made(), asked(mask), one, count=5, drawing=Drawing(3, 2.0, sampler, batch=1))
    generate(made(), asked(mask), many, count=5, drawing=Drawing(3, 2.0, sampler, batch=4))
    generate(made(), asked(mask), late, count=1, seed=3, drawing=Drawing(3, 2.0, sampler))
    names = [f"m-{k:04d}.png" for k in range(5)]
    for name in names:
        assert np.abs(pixels(one / name) - pixels(many / name)).max() <= 1
    assert np.abs(pixels(late / names[3]) - pixels(one / names[3])).max() <= 1
    assert np.abs(pixels(one / names[0]) - pixels(one / names[1])).mean() > 5


def test_masks_change_pictures_and_so_does_guidance(tmp_path: Path) -> None:
    family = made()
    wish = [write_mask(tmp_path / "a.png"), write_mask(tmp_path / "b.png", np.full((32, 32), 255))]
    generate(family, asked(*wish), tmp_path / "1", drawing=FEW)
    generate(family, asked(wish[0]), tmp_path / "2", drawing=Drawing(3, 4.0))
    a, b = pixels(tmp_path / "1" / "a-0000.png"), pixels(tmp_path / "1" / "b-0000.png")
    assert np.abs(a - b).mean() > 5
    assert np.abs(a - pixels(tmp_path / "2" / "a-0000.png")).mean() > 1


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    family, mask, out = made(), write_mask(tmp_path / "m.png"), tmp_path / "out"
    first = generate(family, asked(mask), out, count=3, drawing=FEW)
    assert first.done == [f"m-{k:04d}.png" for k in range(3)]
    before = pixels(out / "m-0001.png")
    (out / "m-0001.png").unlink()
    (out / "m-0002.png").write_bytes(b"half a file")
    again = generate(family, asked(mask), out, count=3, drawing=FEW)
    assert (again.done, again.skipped) == (["m-0001.png", "m-0002.png"], ["m-0000.png"])
    assert np.array_equal(pixels(out / "m-0001.png"), before)
    other = generate(family, asked(mask), out, count=1, drawing=Drawing(4))
    assert other.done == ["m-0000.png"]
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_a_mask_that_is_named_twice_is_drawn_once(tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "in" / "m.png")
    both = Asked(masks=[str(mask), str(tmp_path / "in")])
    done = generate(made(), both, tmp_path / "out", count=2, drawing=FEW)
    assert done.done == ["m-0000.png", "m-0001.png"]
    assert generate(made(), both, tmp_path / "out", count=2, drawing=FEW).skipped == done.done


def test_metadata_say_how_a_picture_was_made(tmp_path: Path) -> None:
    family, mask, out = made(), write_mask(tmp_path / "m.png"), tmp_path / "out"
    generate(family, asked(mask), out, seed=7, drawing=Drawing(3, 2.5))
    told = provenance(out / "m-0007.png")
    assert told is not None
    assert (told["synthetic"], told["weights"], told["seed"], told["steps"], told["guidance"]) == (
        True,
        "made",
        7,
        3,
        2.5,
    )
    assert told["told"]["file"] == str(mask)
    assert len(told["weights_sha256"]) == len(told["told"]["sha256"]) == 64
    assert (out / "sheet.png").is_file()
    assert provenance(mask) is None


def test_nothing_told_draws_the_models_own_size(tmp_path: Path) -> None:
    done = generate(made(mask=None), Asked(), tmp_path, count=2, drawing=FEW)
    assert done.done == ["picture-0000.png", "picture-0001.png"]
    assert pixels(tmp_path / "picture-0000.png").shape == (32, 32, 3)
    generate(made(mask=None), Asked(size=(20, 30)), tmp_path / "odd", drawing=FEW)
    assert pixels(tmp_path / "odd" / "picture-0000.png").shape == (20, 30, 3)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_masks_of_every_kind() -> None:
    classes = ("background", "a", "b")
    stored = np.array([[0, 1, 1], [2, 2, 255]])
    mask, edge = from_values(stored, classes, 1, None, "m")
    assert mask.tolist() == stored.tolist()
    assert edge is not None
    assert edge.tolist() == [[0, 1, 1], [1, 1, 0]]
    objects = np.array([[7, 7, 0], [9, 9, 0], [9, 9, 0]], np.uint32)
    mask, edge = from_values(objects, classes, 1, "b", "m")
    assert mask.tolist() == [[2, 2, 0], [2, 2, 0], [2, 2, 0]]
    mask, _ = from_values(objects, ("background", "nucleus"), 0, None, "m")
    assert mask.max() == 1
    assert from_values(objects > 0, ("background", "nucleus"), 0, None, "m")[0].tolist() == mask.tolist()
    assert from_values(stored.astype(float), classes, 0, None, "m")[1] is None


def test_a_class_and_where_nothing_is_told_of_the_only_class() -> None:
    """255 beside 1 says that nothing is told; alone it is the white of a black and white mask."""
    classes = ("background", "nucleus")
    told, edge = from_values(np.array([[0, 1, 1], [1, 255, 255]]), classes, 1, None, "m")
    assert told.tolist() == [[0, 1, 1], [1, 255, 255]]
    assert edge is not None
    assert edge[1, 1:].tolist() == [0, 0]
    assert from_values(np.array([[0, 255], [255, 0]]), classes, 0, None, "m")[0].tolist() == [[0, 1], [1, 0]]
    assert from_values(np.array([[1, 2], [255, 0]]), classes, 0, None, "m")[0].tolist() == [[1, 1], [1, 0]]
    assert from_values(np.array([[1, 255]]), classes, 0, "nucleus", "m")[0].tolist() == [[1, 1]]


def test_masks_from_datasets_and_geojson(tmp_path: Path) -> None:
    options = {"truth": "nuclei", "classes": ["background", "epithelial", "lymphocyte", "fibroblast"]}
    family = made(mask=options)
    done = generate(family, Asked(["phantom-nuclei:test"], size=(32, 32), limit=2), tmp_path / "d", drawing=FEW)
    assert done.done == ["test-0000-0000.png", "test-0001-0000.png"]
    ring = [[2, 2], [12, 2], [12, 12], [2, 12], [2, 2]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "lymphocyte"}},
    }
    path = tmp_path / "m.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert generate(family, asked(path, size=(32, 32)), tmp_path / "g", drawing=FEW).done == ["m-0000.png"]
    with pytest.raises(UserError, match=r"polygons have no size of their own. Say it with --size"):
        generate(family, asked(path), tmp_path / "g2", drawing=FEW)


def test_embeddings_and_pictures(tmp_path: Path) -> None:
    own = {"condition_encoder": "mobilenetv3_small_050", "condition_encoder_weights": "none"}
    family = made(mask=None, embedding={}, **own)
    width = family.options.embedding.width if family.options.embedding else None
    rng = np.random.default_rng(0)
    np.save(tmp_path / "e.npy", rng.normal(size=(2, width or 0)))
    done = generate(family, Asked(embeddings=[str(tmp_path / "e.npy")]), tmp_path / "e", drawing=FEW)
    assert done.done == ["e-0000-0000.png", "e-0001-0000.png"]
    picture = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    like = Asked(like=[str(tmp_path / "p.png")])
    generate(family, like, tmp_path / "l", drawing=FEW)
    told = provenance(tmp_path / "l" / "p-0000.png")
    assert told is not None
    assert told["told"]["kind"] == "like"
    middle = torch.from_numpy(picture[4:36, 8:40].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    again = tmp_path / "same.npy"
    np.save(again, family.embedding_of(middle)[0].numpy())
    generate(family, Asked(embeddings=[str(again)]), tmp_path / "s", drawing=FEW)
    assert np.abs(pixels(tmp_path / "s" / "same-0000.png") - pixels(tmp_path / "l" / "p-0000.png")).mean() > 1  # noise
    wish = module.wishes(family, like, tmp_path / "l", [])[0]
    np.testing.assert_allclose(wish.told["embedding"], np.load(again), atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_large_picture_is_like_another_one_cell_by_cell(tmp_path: Path, tokens: int) -> None:
    """Each window is told of the cells under it; a grid that is given says the same as the picture that it is of."""
    own = {"condition_encoder": "mobilenetv3_small_050", "condition_encoder_weights": "none"}
    family = made(mask=None, embedding={"tokens": tokens}, **own)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (110, 140, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    like = Asked(like=[str(tmp_path / "p.png")], size=(96, 128))
    wish = module.wishes(family, like, tmp_path / "a", [])[0]
    cells = round(tokens**0.5)
    assert wish.told["grid"].shape == (3 * cells, 4 * cells, 288)
    with Image.open(tmp_path / "p.png") as image:
        part = np.asarray(image)[7 + 32 : 7 + 64, 6 + 64 : 6 + 96]
    alone = family.embedding_of(torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1)[0]
    told = module._cells(family, wish.told["grid"], [(32, 64)])[0]
    torch.testing.assert_close(told, alone, atol=1e-5, rtol=1e-4)
    generate(family, like, tmp_path / "a", drawing=FEW)
    np.save(tmp_path / "grid.npy", wish.told["grid"])
    asked_for = Asked(embeddings=[str(tmp_path / "grid.npy")], size=(96, 128))
    given = module.wishes(family, asked_for, tmp_path / "a", [])[0]
    assert np.array_equal(given.told["grid"], wish.told["grid"])
    assert pixels(tmp_path / "a" / "p-0000.png").shape == (96, 128, 3)
    with pytest.raises(UserError, match=r"--size asks for 128 x 128. Expected no more than there is"):
        generate(family, Asked(like=like.like, size=(128, 128)), tmp_path / "b", drawing=FEW)


@pytest.mark.parametrize(
    ("shape", "size", "words"),
    [
        ((3, 5, 8), None, r"a grid of 3 x 5 embeddings. Expected 4 x 8 numbers .*: --size 48 80"),
        ((3, 5, 8), (80, 48), r"--size 48 80"),
        ((2, 3, 8), (32, 32), r"--size 32 48"),
        ((), None, "embeddings of 1 numbers. Expected 8"),
    ],
)
def test_a_grid_of_another_size(tmp_path: Path, shape: tuple[int, ...], size: Any, words: str) -> None:
    family = made(mask=None, embedding={"truth": "e", "width": 8, "tokens": 4})
    np.save(tmp_path / "e.npy", np.ones(shape))
    with pytest.raises(UserError, match=words):
        module.wishes(family, Asked(embeddings=[str(tmp_path / "e.npy")], size=size), tmp_path, [])


@pytest.mark.parametrize(("shape", "count"), [((4, 8), 1), ((2, 2, 8), 1), ((3, 4, 8), 3)])
def test_embeddings_of_several_cells(tmp_path: Path, shape: tuple[int, ...], count: int) -> None:
    family = made(mask=None, embedding={"truth": "e", "width": 8, "tokens": 4})
    np.save(tmp_path / "e.npy", np.ones(shape))
    found = module.wishes(family, Asked(embeddings=[str(tmp_path / "e.npy")]), tmp_path, [])
    assert [wish.told["embedding"].shape for wish in found] == [(4, 8)] * count


# --- pairs to train on ------------------------------------------------------------------------------------------------


def test_pairs_are_a_dataset(tmp_path: Path) -> None:
    family = made(mask={"truth": "nuclei", "classes": ["background", "nucleus"]})
    labels = np.zeros((32, 32), np.uint16)
    labels[2:10, 2:10], labels[2:10, 10:20] = 1, 2  # touching
    mask = write_mask(tmp_path / "m.tif", labels, dtype=np.uint16)
    out = tmp_path / "pairs"
    generate(family, asked(mask), out, count=2, drawing=FEW, pairs=True)
    dataset = open_dataset(out, split="all")
    assert len(dataset) == 2
    sample = dataset[0]
    assert sample.image.shape == (3, 32, 32)
    truth = sample.truth["nuclei"]
    assert truth.kind == "instances"
    assert np.array_equal(truth.map, labels)
    assert generate(family, asked(mask), out, count=2, drawing=FEW, pairs=True).done == []


# --- large pictures ---------------------------------------------------------------------------------------------------


def test_a_large_picture_is_what_its_definition_says(tmp_path: Path) -> None:
    """Against a slow twin: the whole picture in memory, windows averaged with their weights, DDIM in float64."""
    schedule = Schedule("cosine")
    process = Process(schedule, "v", 4, clamp=True)
    tiles = plan((40, 56), 16, 8, 4)

    def predict(x: torch.Tensor, t: torch.Tensor, corners: Any) -> torch.Tensor:
        place = torch.tensor([[i + 2 * j for i, j in corners]]).view(-1, 1, 1, 1) / 100
        return torch.tanh(x.roll(1, 3)) * 0.3 + place + t.view(-1, 1, 1, 1).float() / 2000

    canvas = Canvas(tmp_path / "c", 3, tiles, process, 5, "x")
    x = np.frombuffer(canvas.file(0).read_bytes(), np.float32).reshape(40, 56, 3).astype(np.float64)
    assert abs(x.std() - 1) < 0.05
    found = np.concatenate(list(canvas.denoise(predict, batch=3)))
    bars = schedule.alphas_cumprod.numpy()
    for number, time in enumerate([999, 749, 499, 249]):
        total, weight = np.zeros_like(x), np.zeros((40, 56, 1))
        for r, i in enumerate(tiles.rows.starts):
            for c, j in enumerate(tiles.columns.starts):
                window = torch.from_numpy(x[i : i + 16, j : j + 16].transpose(2, 0, 1).astype(np.float32))[None]
                v = predict(window, torch.tensor([float(time)]), [(i, j)]).double()
                clean = (bars[time] ** 0.5 * window - (1 - bars[time]) ** 0.5 * v).clamp(-1, 1)[0].numpy()
                for axis, index, start in ((tiles.rows, r, i), (tiles.columns, c, j)):
                    del axis, index, start
                w = np.zeros((16, 16, 1))
                (b, e), (left, right) = tiles.rows.support(r), tiles.columns.support(c)
                w[b - i : e - i, left - j : right - j, 0] = np.outer(tiles.rows.weights(r), tiles.columns.weights(c))
                total[i : i + 16, j : j + 16] += clean.transpose(1, 2, 0) * w
                weight[i : i + 16, j : j + 16] += w
        np.testing.assert_allclose(weight, 1, atol=1e-6)
        if number == 3:
            x = total
            break
        noise = (x - bars[time] ** 0.5 * total) / (1 - bars[time]) ** 0.5
        x = bars[time - 250] ** 0.5 * total + (1 - bars[time - 250]) ** 0.5 * noise
    np.testing.assert_allclose(found, x, atol=1e-4)


def test_windows_that_agree_leave_no_seam(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(-0.9, 0.9, (64, 48, 3)).astype(np.float32)
    process = Process(Schedule("linear"), "sample", 3, clamp=True)

    def oracle(x: torch.Tensor, t: torch.Tensor, corners: Any) -> torch.Tensor:
        parts = [truth[i : i + 16, j : j + 16].transpose(2, 0, 1) for i, j in corners]
        return torch.from_numpy(np.stack(parts))

    canvas = Canvas(tmp_path / "c", 3, plan((64, 48), 16, 4, 4), process, 0, "x")
    np.testing.assert_allclose(np.concatenate(list(canvas.denoise(oracle, 4))), truth, atol=1e-5)


PIXCELL = {"name": "pixcell", "arguments": {"size": 16, "layers": 1, "heads": 2, "head_width": 8}}


def test_a_network_of_one_size_draws_everything_larger_in_windows(tmp_path: Path) -> None:
    """One picture of 24 x 16 pixels would stretch its table of positions, which stands for 16."""
    family = made(mask=None, size=None, network=PIXCELL)
    assert family.most == 16
    generate(family, Asked(size=(24, 16)), tmp_path / "out", drawing=FEW)
    told = provenance(tmp_path / "out" / "picture-0000.png")
    assert told is not None
    assert (told["tile"], told["sampler"]) == (16, "ddim")
    with pytest.raises(UserError, match=r"--tile: 8 will not do: the model sees windows of 16 pixels. Leave it out"):
        generate(family, Asked(size=(24, 16)), tmp_path / "b", drawing=Drawing(2, tile=8))
    assert made().most == 64


@pytest.mark.parametrize("size", [(12, 80), (80, 12), (70, 90)])
def test_latents_of_a_long_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    stage = {"name": "kl", "arguments": {"channels": 3, "levels": [8, 8], "groups": 4, "blocks": 1}}
    family = made(mask=None, setting="latent", first_stage=stage)
    generate(family, Asked(size=size), tmp_path, drawing=FEW)
    assert pixels(tmp_path / "picture-0000.png").shape == (*size, 3)


def test_an_interrupted_large_picture_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = made()
    mask = write_mask(tmp_path / "big.png", np.tile(np.arange(96)[:, None] // 8 % 3, (1, 80)))
    drawing = Drawing(4, tile=32)
    generate(family, asked(mask), tmp_path / "whole", drawing=drawing)
    calls = 0
    plain = Canvas.denoise

    def breaking(self: Canvas, predict: Any, batch: int, on_step: Any) -> Any:
        def counted(step: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt

        return plain(self, predict, batch, counted)

    monkeypatch.setattr(Canvas, "denoise", breaking)
    with pytest.raises(Interrupted, match="the same command goes on from here"):
        generate(family, asked(mask), tmp_path / "cut", drawing=drawing)
    assert (tmp_path / "cut" / ".big-0000.png.work" / "x-2.bin").is_file()
    monkeypatch.setattr(Canvas, "denoise", plain)
    steps: list[int] = []
    monkeypatch.setattr(module._Told, "steps", lambda self, done, of: steps.append(done))
    generate(family, asked(mask), tmp_path / "cut", drawing=drawing)
    assert steps[0] == 2
    assert np.array_equal(pixels(tmp_path / "cut" / "big-0000.png"), pixels(tmp_path / "whole" / "big-0000.png"))
    assert not (tmp_path / "cut" / ".big-0000.png.work").exists()
    generate(family, asked(mask), tmp_path / "one", drawing=Drawing(4, tile=32, batch=1))
    apart = np.abs(pixels(tmp_path / "one" / "big-0000.png") - pixels(tmp_path / "whole" / "big-0000.png"))
    assert apart.max() <= 1


def test_very_large_pictures_are_tiled_tiffs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tifffile

    monkeypatch.setattr(module, "PNG_SIDE", 64)
    mask = write_mask(tmp_path / "big.png", np.tile(np.arange(96)[:, None] // 8 % 3, (1, 80)))
    done = generate(made(), asked(mask), tmp_path / "out", drawing=Drawing(2, tile=32))
    assert done.done == ["big-0000.tif"]
    assert tifffile.imread(tmp_path / "out" / "big-0000.tif").shape == (96, 80, 3)
    told = provenance(tmp_path / "out" / "big-0000.tif")
    assert told is not None
    assert (told["tile"], told["sampler"]) == (32, "ddim")
    assert generate(made(), asked(mask), tmp_path / "out", drawing=Drawing(2, tile=32)).done == []


# --- mistakes ---------------------------------------------------------------------------------------------------------


def wrong_mask(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "m.png"
    if kind == "unknown":
        return write_mask(path, np.full((32, 32), 7))
    if kind == "colour":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    elif kind == "small":
        write_mask(path, np.zeros((1, 2)))
    elif kind == "fractions":
        path = tmp_path / "m.npy"
        np.save(path, np.full((32, 32), 0.5))
    elif kind == "negative":
        path = tmp_path / "m.npy"
        np.save(path, np.full((32, 32), -1))
    elif kind == "text":
        path.write_text("no picture")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("unknown", "the mask holds 7, which is no class. Expected 0 background, 1 a, 2 b, or 255"),
        ("colour", "Expected one number a pixel"),
        ("small", "1 x 2 pixels. Expected 4 or more a side"),
        ("fractions", "the mask holds fractions"),
        ("negative", "the mask holds the value -1. Expected 0 or more"),
        ("text", "m.png"),
        ("absent", "there is no such file or folder"),
    ],
)
def test_a_bad_mask(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate(made(), asked(wrong_mask(tmp_path, kind)), tmp_path / "out", drawing=FEW)
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_bad_mask_among_several_is_left_out(tmp_path: Path) -> None:
    write_mask(tmp_path / "in" / "a.png")
    write_mask(tmp_path / "in" / "b.png", np.full((32, 32), 9))
    done = generate(made(), Asked([str(tmp_path / "in")]), tmp_path / "out", drawing=FEW)
    assert (done.done, done.status) == (["a-0000.png"], 1)
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failures[0]["file"].endswith("b.png")
    assert "no class" in failures[0]["error"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(5), "embeddings of 5 numbers. Expected 8"),
        (np.full(8, np.nan), "nan or infinity"),
        (np.zeros((1, 2, 3, 8)), "an array of shape"),
        (np.array(["text"]), "no array of numbers"),
    ],
)
def test_a_bad_embedding(tmp_path: Path, values: Any, words: str) -> None:
    np.save(tmp_path / "e.npy", values)
    family = made(mask=None, embedding={"truth": "e", "width": 8})
    with pytest.raises(UserError, match=words):
        generate(family, Asked(embeddings=[str(tmp_path / "e.npy")]), tmp_path / "out", drawing=FEW)
    (tmp_path / "e.npy").write_text("no array")
    with pytest.raises(UserError, match=r"no array of numbers. Expected a .npy file"):
        generate(family, Asked(embeddings=[str(tmp_path / "e.npy")]), tmp_path / "out", drawing=FEW)
    with pytest.raises(UserError, match=r"--like: made does not take that. It is told by --embedding"):
        generate(family, Asked(like=[str(tmp_path / "e.npy")]), tmp_path / "out", drawing=FEW)


def test_guidance_without_a_null_condition(tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"trained without hiding its conditions .dropout: 0., so there is no null"):
        generate(made(dropout=0.0), asked(mask), tmp_path / "out", drawing=Drawing(3, 2.0))
    assert generate(made(dropout=0.0), asked(mask), tmp_path / "out", drawing=Drawing(3, 1.0)).done
    with pytest.raises(UserError, match="nothing is told that it could lead to"):
        generate(made(), Asked(), tmp_path / "out", drawing=Drawing(3, 2.0))


@pytest.mark.parametrize(
    ("what", "drawing", "more", "words"),
    [
        (Asked(), Drawing(0), {}, "--steps: 0 will not do. Expected 1 or more"),
        (Asked(), Drawing(1001), {}, "--steps: 1001 will not do. Expected at most 1000"),
        (Asked(), Drawing(sampler="dimm"), {}, 'no sampler "dimm". Did you mean ddim'),
        (Asked(), Drawing(guidance=-1.0), {}, "--guidance: -1.0 will not do"),
        (Asked(), FEW, {"count": 0}, "--count: 0 will not do"),
        (Asked(), FEW, {"seed": -1}, "--seed: -1 will not do"),
        (Asked(), Drawing(2, tile=2), {}, "--tile: 2 will not do. Expected 4 or more"),
        (Asked(size=(96, 96)), Drawing(2, tile=32, overlap=32), {}, "--overlap: tiles of 32 pixels cannot share 32"),
        (Asked(["m.png"], ["e.npy"]), FEW, {}, "--mask and --embedding: one of them at a time"),
        (Asked(embeddings=["e.npy"]), FEW, {}, "--embedding: made does not take that. It is told by --mask"),
        (Asked(["m.png"], object_class="c"), FEW, {}, '--class: no class "c". Expected one of a, b'),
        (
            Asked(),
            Drawing(sampler="plms"),
            {"noise": {"prediction": "sample"}},
            "plms cannot draw with what",
        ),
        (Asked(size=(2, 2)), FEW, {}, "--size: 2 x 2 pixels. Expected 4 or more a side"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path: Path, what: Asked, drawing: Drawing, more: Any, words: str) -> None:
    options = {"noise": more.pop("noise")} if "noise" in more else {}
    with pytest.raises(UserError, match=words):
        generate(made(**options), what, tmp_path / "out", drawing=drawing, **more)


def test_other_families_draw_nothing(tmp_path: Path) -> None:
    options = {"encoder": "mobilenetv3_small_050", "classes": ["background", "nucleus"], "channels": ["r", "g", "b"]}
    with pytest.raises(UserError, match=r"a model of the family unet draws nothing from noise.*use zoo predict"):
        generate(build.create("unet", options), Asked(), tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "draws from a mask and looks at no image. Use: zoo generate made --mask M --out DIR"),
        (
            {"mask": None, "embedding": {"width": 4, "truth": "e"}},
            "draws from an embedding .* zoo generate made --embedding E --out DIR",
        ),
        ({"mask": None}, "draws from noise alone .* zoo generate made --size N --out DIR"),
    ],
)
def test_images_are_refused_by_what_looks_at_none(tmp_path: Path, options: Any, words: str) -> None:
    picture = np.full((32, 32, 3), 200, np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    family = made(**options)
    with pytest.raises(UserError, match=words):
        predict_files(family, [tmp_path / "p.png"], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=words):
        family.predict(picture)


def test_what_draws_like_a_picture_predicts_from_one(tmp_path: Path) -> None:
    own = {"condition_encoder": "mobilenetv3_small_050", "condition_encoder_weights": "none"}
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert made(mask=None, embedding={}, **own).predict(picture, steps=2).data.shape == (3, 32, 32)


def test_a_disk_that_fills_up_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, mask, out = made(), write_mask(tmp_path / "m.png"), tmp_path / "out"
    write, count = module._write_png, 0

    def full(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    monkeypatch.setattr(module, "_write_png", full)
    with pytest.raises(ZooError, match=r"the disk is full after 2 of 4 pictures. Free some space; the same command"):
        generate(family, asked(mask), out, count=4, drawing=FEW)
    monkeypatch.setattr(module, "_write_png", write)
    assert generate(family, asked(mask), out, count=4, drawing=FEW).done == ["m-0002.png", "m-0003.png"]


def test_a_disk_that_is_full_for_the_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_sheet", full)
    with pytest.raises(ZooError, match=r"the disk is full after 1 of 1 picture. Free some space"):
        generate(made(), asked(write_mask(tmp_path / "m.png")), tmp_path / "out", drawing=FEW)


def test_what_is_missing_to_draw_is_said_before(tmp_path: Path) -> None:
    """Not after all steps of the first picture, when it is to be decoded."""
    more = {"setting": "latent", "first_stage": "kl", "first_stage_weights": "vae-sd3-5.stabilityai"}
    family = made(mask=None, network={"name": "pixel-unet", "arguments": {"features": 8, "multipliers": [1]}}, **more)
    with pytest.raises(UserError, match=r"zoo weights pull vae-sd3-5\.stabilityai"):
        generate(family, Asked(), tmp_path / "out", drawing=FEW)
    assert not (tmp_path / "out").exists()


def test_too_little_room_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: room._replace(free=1000))
    with pytest.raises(UserError, match=r"4 pictures may need 1.2e-05 GB, and 1e-06 GB are free"):
        generate(made(mask=None), Asked(), tmp_path / "out", count=4, drawing=FEW)
