"""What is given away holds nothing of an encoder whose licence forbids it, and is the same model all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.encoders import build_encoder
from zoo.errors import UserError
from zoo.families import build, without
from zoo.publish import card as cards
from zoo.publish.folder import Wish, push
from zoo.recipe import load_recipe
from zoo.training.setup import start_from
from zoo.weights import store
from zoo.weights.gather import How
from zoo.weights.pull import pull

RECIPE = """zoo: 1
name: tiny-bound
summary: Synthetic nuclei.
family: unet
model:
  encoder: {name: kimianet, arguments: {tune: frozen}}
  encoder_weights: published
  decoder: {name: unet, arguments: {channels: [8, 8, 8, 8, 8]}}
  merge: {nucleus: [epithelial, lymphocyte, fibroblast]}
  classes: [background, nucleus]
  tile: 64
  margin: 16
data:
  train:
    datasets: {name: phantom-nuclei, arguments: {size: 96}, limit: 4}
    size: [64, 64]
train: {epochs: 1}
"""
SEEN = [{"dataset": "phantom-nuclei", "split": "train", "groups": ["train-slide-000"], "images": ["train-0000"]}]
WISH = Wish(name="tiny-bound.lab", licence="CC-BY-NC-4.0", judge=False)


def have_kimianet(served: Path, cache: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pull some KimiaNet from a folder into an empty cache."""
    served.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    donor = build_encoder("kimianet", weights="none")
    state = {k.replace("net.features_", "module.model.0."): v for k, v in donor.state_dict().items()}
    torch.save(state, served / "KimiaNetPyTorchWeights.pth")
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    pull("kimianet", How(origin=str(served), accept=True))


def make_run(folder: Path, change: Any = None, weights: str = "published", start: str | None = None) -> Path:
    """Write what a training leaves, without the training; `start`: the file whose weights it began with."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.replace("encoder_weights: published", f"encoder_weights: {weights}"))
    recipe = load_recipe(folder / "recipe.yaml")
    torch.manual_seed(0)
    family = zoo.create("unet", **recipe.values()["model"], channels=["red", "green", "blue"])
    if change is not None:
        change(family)
    said: dict[str, Any] = {"recipe_hash": recipe.content_hash(), "trained_on": SEEN}
    if start is not None:
        start_from(family, start)
        said["started_from"] = [start]
    build.save(family, folder / "best.safetensors", **said)
    return folder


def quiet(_: str) -> None:
    """Say nothing."""


def test_the_encoder_is_left_out_and_filled_in_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have_kimianet(tmp_path / "served", tmp_path / "cache", 1, monkeypatch)
    run = make_run(tmp_path / "run")
    pushed = push(run, tmp_path / "out", WISH, quiet)
    whole, _ = store.read_tensors(run / "best.safetensors")
    given, meta = store.read_tensors(pushed / "model.safetensors")
    encoder = {name for name in whole if name.startswith("pyramid.encoder.") or ".encoder.net." in name}
    assert len(encoder) == 725
    assert set(given) == set(whole) - encoder
    left = without.read(meta)
    assert left is not None
    assert set(left.entries) == encoder
    assert "zoo weights pull kimianet.published" in (pushed / "README.md").read_text()
    one, other = zoo.load(run), zoo.load(pushed)
    whole = one.state_dict()
    assert all(torch.equal(v, whole[k]) for k, v in other.state_dict().items())
    bare = zoo.create("unet", **load_recipe(run / "recipe.yaml").model | {"encoder_weights": "none"})
    start_from(bare, str(pushed))  # the recipe that goes on may say none: the start says which
    assert all(torch.equal(v, whole[k]) for k, v in bare.state_dict().items())
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    first, second = (m.predict(image).probability for m in (one, other))
    assert np.array_equal(first, second)

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"Holds no tensors of the encoder kimianet .*zoo weights pull kimianet\.publ"):
        zoo.load(pushed)
    have_kimianet(tmp_path / "served", tmp_path / "cache2", 2, monkeypatch)
    with pytest.raises(UserError, match="it was trained on other weights of kimianet than those on this machine"):
        zoo.load(pushed)
    assert zoo.load(run) is not None  # a run is whole


def test_what_cannot_be_left_out_is_not_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have_kimianet(tmp_path / "served", tmp_path / "cache", 1, monkeypatch)

    def move(family: Any) -> None:
        with torch.no_grad():
            next(p for n, p in family.named_parameters() if n.endswith("features_conv0.weight")).add_(0.1)

    run = make_run(tmp_path / "moved", move)
    with pytest.raises(UserError, match="1 tensors of the encoder kimianet were trained further"):
        push(run, tmp_path / "out", WISH, quiet)
    assert not (tmp_path / "out").exists()
    allowed = Wish(name="tiny-bound.lab", licence="CC-BY-NC-4.0", judge=False, permission=True)
    whole, _ = store.read_tensors(run / "best.safetensors")
    pushed = push(run, tmp_path / "out", allowed, quiet)
    assert store.read_tensors(pushed / "model.safetensors")[0].keys() == whole.keys()
    plain = Wish(name="tiny-bound.lab", licence="CC-BY-NC-4.0", judge=False, form="plain")
    with pytest.raises(UserError, match="--format plain is whole, and the licence of the encoder kimianet"):
        push(make_run(tmp_path / "run"), tmp_path / "other", plain, quiet)


def test_what_a_run_started_from_binds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have_kimianet(tmp_path / "served", tmp_path / "cache", 1, monkeypatch)
    first = make_run(tmp_path / "run")
    later = make_run(tmp_path / "later", weights="none", start=str(first))  # its own options ask for no weights
    pushed = push(later, tmp_path / "out", WISH, quiet)
    left = without.read(store.read_shapes(pushed / "model.safetensors")[1])
    assert left is not None
    assert len(left.entries) == 725
    one, other = zoo.load(later).state_dict(), zoo.load(pushed).state_dict()
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    assert cards.bound_by_start([str(later)]) == []
    assert cards.bound_by_start(["quickstart.v1"]) == []
    (line,) = cards.bound_by_start(["stain-asp-bci-her2.published", "stain-asp-bci-her2.published"])
    assert line.endswith("its licence (not stated) does not let one give away what started from it")
    (line,) = cards.bound_by_start([str(tmp_path / "gone")])
    assert line.endswith("whether that may be given away is not known")


def test_random_and_free_encoders_are_given_away() -> None:
    found = list(without.places({"encoder": {"name": "uni", "arguments": {}}, "encoder_weights": "none"}))
    assert found == []
    said = {"encoder": {"name": "uni", "arguments": {"weights": "/a/b.bin"}}, "heads": [{"image_encoder": "phikon"}]}
    assert [(key, name) for _, key, name in without.places(said)] == [("weights", "uni")]
    assert without.published(said, {"uni"})["encoder"]["arguments"]["weights"] == "published"
    assert build.without_downloads(said)["encoder"]["arguments"]["weights"] == "none"
    assert build.without_downloads(said, ["uni"])["encoder"]["arguments"]["weights"] == "/a/b.bin"
    assert without.forbidden("uni", "redistribution")
    assert not without.forbidden("h-optimus-0", "redistribution")
