"""Embedding pictures: every tile's vector is what the encoder says of that tile, whatever the file, batch or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from zoo.cli.main import main
from zoo.encoders import build_encoder
from zoo.errors import Interrupted, UserError
from zoo.inference import embed, embed_files
from zoo.inference.embed import Batches, How
from zoo.io import features

SIZES = {"a": (60, 100), "b": (32, 32), "sub/c": (20, 27)}
TINY: dict[str, Any] = {"depth": 1, "embed_dim": 24, "num_heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return tmp_path / "in"


def encoder(**more: Any) -> Any:
    torch.manual_seed(0)
    return build_encoder("kaiko-vits16", weights="none", **{**TINY, **more})


def slowly(made: Any, folder: Path, name: str, place: NDArray[Any]) -> NDArray[Any]:
    """Embed one tile by hand."""
    y, x, h, w = map(int, place)
    pixels = np.asarray(Image.open(folder / f"{name}.png"))[y : y + h, x : x + w]
    z = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    z = (z - torch.tensor(made.mean).view(1, 3, 1, 1)) / torch.tensor(made.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        return np.asarray(made.eval()(z).prefix[-1][0, 0].numpy())


HOW = How(tile=32, mpp="native")


@pytest.mark.parametrize("ending", features.ENDINGS)
def test_rows_are_tiles_and_their_features(folder: Path, tmp_path: Path, ending: str) -> None:
    made, out = encoder(), tmp_path / f"f{ending}"
    found = embed_files.embed_files(made, [folder], out, HOW, progress=False)
    rows = features.read_all(out)
    assert (found.tiles, found.status, len(rows)) == (8 + 1 + 1, 0, 10)
    places = [tuple(p) for p in rows.places[rows.images == "a"]]
    assert places == [(y, x, 32, 32) for y in (0, 28) for x in (0, 32, 64, 68)]
    assert [tuple(p) for p in rows.places[rows.images == "sub/c"]] == [(0, 0, 20, 27)]
    for name, place, vector in zip(rows.images, rows.places, rows.features, strict=True):
        np.testing.assert_allclose(vector, slowly(made, folder, name, place), rtol=1e-4, atol=1e-5)
    about = features.about(out)
    assert (about["encoder"], about["pool"], about["tile"], about["mpp"]) == ("kaiko-vits16", "class", 32, 0.5)
    assert not (tmp_path / f"f{ending}.parts").exists()


def test_other_columns_and_steps(folder: Path, tmp_path: Path) -> None:
    made = encoder()
    how = How(tile=32, step=16, mpp="native", pool="class+mean", dtype="float16", batch=3)
    embed_files.embed_files(made, [folder / "a.png"], tmp_path / "f.parquet", how, progress=False)
    rows = features.read_all(tmp_path / "f.parquet")
    assert (rows.features.shape[1], rows.features.dtype) == (48, np.float16)
    assert len(rows) == len({*range(0, 28, 16), 28}) * len({*range(0, 68, 16), 68})
    apart = How(tile=20, step=40, mpp="native")
    embed_files.embed_files(made, [folder / "a.png"], tmp_path / "g.parquet", apart, progress=False)
    assert [tuple(p[:2]) for p in features.read_all(tmp_path / "g.parquet").places] == [
        (y, x) for y in (0, 40) for x in (0, 40, 80)
    ]


def test_resolution_is_asked_for_and_followed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png: mpp: the um per pixel of the image is not known"):
        embed_files.embed_files(encoder(), [folder], tmp_path / "f.h5", How(tile=32), progress=False)
    embed_files.embed_files(encoder(), [folder / "a.png"], tmp_path / "f.h5", How(tile=32, mpp=0.25), progress=False)
    rows = features.read_all(tmp_path / "f.h5")  # half the size on the encoder's grid of 0.5
    assert [tuple(p) for p in rows.places] == [(0, x, 60, 64) for x in (0, 36)]


def test_a_run_that_was_broken_off_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "f.zarr", tmp_path / "whole.zarr"
    embed_files.embed_files(encoder(), [folder], whole, HOW, progress=False)
    real, calls = embed_files._write_part, []

    def die(path: Path, rows: features.Rows) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path)
        real(path, rows)

    monkeypatch.setattr(embed_files, "_write_part", die)
    with pytest.raises(Interrupted, match="goes on from here"):
        embed_files.embed_files(encoder(), [folder], out, HOW, progress=False)
    assert not out.exists()
    monkeypatch.setattr(embed_files, "_write_part", real)
    found = embed_files.embed_files(encoder(), [folder], out, HOW, progress=False)
    assert (len(found.done), len(found.skipped)) == (1, 2)
    one, other = features.read_all(out), features.read_all(whole)
    assert list(one.images) == list(other.images)
    np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", features.ENDINGS)
def test_new_and_changed_pictures_are_added_to_a_table(folder: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"f{ending}"
    embed_files.embed_files(encoder(), [folder / "a.png", folder / "b.png"], out, HOW, progress=False)
    before = features.read_all(out)
    Image.new("RGB", (40, 32), "white").save(folder / "b.png")
    found = embed_files.embed_files(encoder(), [folder], out, HOW, progress=False)
    assert (sorted(found.done), found.skipped, found.replaced) == (["b", "sub/c"], ["a"], ["b"])
    assert "rows of 1 other files of the same name were replaced (b)" in str(found)
    after = features.read_all(out)
    assert {n: int((after.images == n).sum()) for n in ("a", "b", "sub/c")} == {"a": 8, "b": 2, "sub/c": 1}
    np.testing.assert_array_equal(after.features[after.images == "a"], before.features[before.images == "a"])
    again = embed_files.embed_files(encoder(), [folder], out, HOW, progress=False)
    assert (again.tiles, len(again.skipped)) == (0, 3)
    with pytest.raises(UserError, match="other weights or settings"):
        embed_files.embed_files(encoder(depth=2), [folder], out, HOW, progress=False)


def test_one_name_is_one_picture(folder: Path, tmp_path: Path) -> None:
    two = [folder / "a.png", folder / "sub" / "a.png"]
    Image.open(two[0]).save(two[1])
    with pytest.raises(UserError, match=r"Rename one, or take each folder by itself, with another --out"):
        embed_files.embed_files(encoder(), two, tmp_path / "f.h5", HOW, progress=False)


def test_broken_and_tiny_pictures_are_named_and_skipped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 5)).save(folder / "tiny.png")
    words = [str(folder), "--weights", "none", "--mpp", "native", "--tile", "32", "--quiet"]
    tiny = ["--set", "depth=1", "--set", "embed_dim=24", "--set", "num_heads=2"]
    assert main(["embed", "kaiko-vits16", *words, *tiny, "--out", str(tmp_path / "f.parquet")]) == 1
    said = capsys.readouterr()
    assert "broken.png: the image cannot be decoded" in said.err
    assert "tiny.png: 5 x 9 pixels on the encoder's grid, less than one patch of 16" in said.err
    assert "10 tiles of 3 images" in said.out
    assert "2 failed" in said.out
    assert len(features.read_all(tmp_path / "f.parquet")) == 10


def test_mistakes_are_sentences(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "f.parquet")
    for words, said in (
        (["uni", str(folder), "--out", out], "Accept the terms at"),
        (["uni", str(folder), "--out", str(tmp_path / "f.csv")], "Expected a name in .parquet, .h5, .zarr"),
        (["unx", str(folder), "--out", out], 'no encoder "unx"'),
        (["musk", str(folder), "--out", out], "not available: a network of its own"),
        (["conch-v1-5", str(folder), "--out", out, "--weights", "none", "--set", "depth=1"], "Say --pool"),
        (["uni", str(folder), "--out", out, "--batch", "many"], "Expected auto, or 1 or more"),
        (["uni", str(folder), "--out", out, "--tile", "0"], "--tile 0: expected 1"),
    ):
        assert main(["embed", *words]) == 2
        assert said in capsys.readouterr().err


def test_the_batch_grows_while_that_pays_and_halves_where_memory_ends() -> None:
    cost = {1: 1.0, 2: 0.7, 4: 0.5, 8: 0.49, 16: 0.3}
    batches = Batches(0, "cpu")
    for _ in range(20):
        batches.took(batches.size, cost[batches.size] * batches.size)
    assert (batches.size, batches.settled) == (4, False) or batches.size in (4, 8)
    assert batches.settled
    fixed = Batches(6, "cpu")
    fixed.took(6, 1.0)
    assert (fixed.size, fixed.settled) == (6, True)
    assert fixed.too_many(6)
    assert fixed.size == 3
    assert not fixed.too_many(1)


def test_memory_that_runs_out_costs_no_tile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = embed.Embedder.features

    def small(self: embed.Embedder, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        if len(pixels) > 2:
            raise torch.OutOfMemoryError
        found: NDArray[Any] = real(self, pixels)
        return found

    monkeypatch.setattr(embed.Embedder, "features", small)
    how = How(tile=32, mpp="native", batch=8)
    found = embed_files.embed_files(encoder(), [folder], tmp_path / "f.h5", how, progress=False)
    assert (found.tiles, found.status) == (10, 0)
    assert found.batch <= 4
