"""A pushed folder: whole, honest, and the same model bit for bit wherever it is loaded from."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_server import Server
from PIL import Image

import zoo
from zoo.cards import read_weights_card
from zoo.cli.main import main
from zoo.errors import UserError
from zoo.families import build
from zoo.publish import card as cards
from zoo.publish.folder import Wish, push
from zoo.recipe import load_recipe
from zoo.weights import store
from zoo.weights.gather import How
from zoo.weights.pull import pull

RECIPE = """zoo: 1
name: tiny-unet
summary: Synthetic nuclei.
family: unet
model:
  encoder: resnet10t
  decoder: {name: unet, arguments: {channels: [16, 16, 8, 8, 8]}}
  merge: {nucleus: [epithelial, lymphocyte, fibroblast]}
  classes: [background, nucleus]
  instances: {min_size: 4}
  tile: 64
  margin: 16
data:
  train:
    datasets: {name: phantom-nuclei, arguments: {size: 96}, limit: 4}
    size: [64, 64]
    batch: 2
train: {epochs: 1}
evaluate: {datasets: [{name: stardist-2d, split: test}]}
"""
SEEN = [{"dataset": "phantom-nuclei", "split": "train", "groups": ["train-slide-000"], "images": ["train-0000"]}]


def make_run(folder: Path, seen: Any = SEEN) -> Path:
    """Write what a training leaves, without the training."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.yaml")
    torch.manual_seed(0)
    family = zoo.create("unet", **recipe.values()["model"], channels=["red", "green", "blue"])
    with torch.no_grad():
        family(family.prepare({"image": torch.rand(2, 3, 64, 64)}))
    more = {"recipe": recipe.name, "recipe_hash": recipe.content_hash(), "seed": "0", "trained_on": seen}
    build.save(family, folder / "best.safetensors", **more)
    (folder / "environment.json").write_text('{"commit": "abc"}')
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def pushed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "folder"
    return push(run, out, Wish(name="tiny-unet.lab", licence="CC-BY-4.0", judge=False), lambda _: None)


def same(one: Any, other: Any) -> bool:
    """Whether two models are equal in every bit, and say the same of an image."""
    a, b = one.state_dict(), other.state_dict()
    image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), np.uint8)
    first, second = (m.predict(image)["semantic"].probability for m in (one, other))
    return list(a) == list(b) and all(torch.equal(v, b[k]) for k, v in a.items()) and np.array_equal(first, second)


def test_the_folder_is_whole(pushed: Path, run: Path) -> None:
    names = {"LICENSE", "README.md", "SHA256SUMS", "card.yaml", "example.png", "model.safetensors", "recipe.yaml"}
    assert {p.name for p in pushed.iterdir()} == names
    for line in (pushed / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((pushed / name).read_bytes()).hexdigest() == digest
    card = read_weights_card(pushed / "card.yaml")
    assert card.name == "tiny-unet.lab"
    assert card.commit == "abc"
    assert card.recipe_hash == load_recipe(pushed / "recipe.yaml").content_hash()
    assert card.licence.weights.allows == ("research", "commercial", "redistribution", "derivatives")
    assert "creativecommons.org/licenses/by/4.0/" in (pushed / "LICENSE").read_text()
    readme = (pushed / "README.md").read_text()
    assert readme.startswith("---\nlicense: cc-by-4.0\n")
    assert "![image and prediction](example.png)" in readme
    with Image.open(pushed / "example.png") as picture:
        assert picture.size[0] > 3 * 96
    assert (pushed / "best.safetensors").exists() is False


def test_it_loads_bit_for_bit(pushed: Path, run: Path) -> None:
    loaded = zoo.load(pushed)
    assert loaded.weights_name == "tiny-unet.lab"
    assert same(loaded, zoo.load(run))


def test_the_folder_is_shown_by_its_card(pushed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(pushed)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("weights tiny-unet.lab\n")
    assert "Licence" in out


def test_a_shelf_of_pushed_folders(pushed: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(pushed, tmp_path / "shelf" / "anything")
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "shelf"))
    assert same(zoo.load("tiny-unet"), zoo.load(run))
    assert store.find("tiny-unet.lab").card is not None


def test_a_repository_loads_bit_for_bit(
    pushed: Path, run: Path, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    commit = "ab" * 20
    server.add_repository("lab/tiny", commit, {p.name: p.read_bytes() for p in pushed.iterdir()})
    with pytest.raises(UserError, match="no commit stands after @"):
        zoo.load("hf://lab/tiny")
    with pytest.raises(UserError, match=f"Pull it: zoo weights pull hf://lab/tiny@{commit}"):
        zoo.load(f"hf://lab/tiny@{commit}")
    found = pull("hf://lab/tiny", How())
    assert found.name == f"hf://lab/tiny@{commit}"
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert same(zoo.load(found.name), zoo.load(run))


def test_a_changed_file_or_recipe_is_noticed(pushed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pushed, tmp_path / "copy")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(zoo.errors.ZooError, match="its card says"):
        zoo.load(copy)
    other = shutil.copytree(pushed, tmp_path / "other")
    text = (other / "card.yaml").read_text()
    wrong = "a" * 64
    (other / "card.yaml").write_text(text.replace(read_weights_card(other / "card.yaml").recipe_hash or "", wrong))
    with pytest.raises(UserError, match="made by a recipe of hash"):
        zoo.load(other)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(), r"--licence is missing: a card without a licence lets nobody use the weights"),
        (Wish(licence="CC-BY-5.0"), r'what the licence "CC-BY-5\.0" allows is not known\. Did you mean CC-BY'),
        (Wish(licence="MIT", name="untagged"), r'--name: "untagged" has no tag'),
        (Wish(licence="MIT", text=Path("absent.txt")), r"absent\.txt: cannot be read"),
    ],
)
def test_wishes_that_cannot_be_met(run: Path, tmp_path: Path, wish: Wish, words: str) -> None:
    with pytest.raises(UserError, match=words):
        push(run, tmp_path / "out", wish, lambda _: None)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_did_not_make_the_weights(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "recipe.yaml").write_text(RECIPE.replace("margin: 16", "margin: 8"))
    with pytest.raises(UserError, match=r"recipe\.yaml: its hash is .* the weights were made by"):
        push(copy, tmp_path / "out", Wish(licence="MIT"), lambda _: None)


def test_data_that_do_not_allow_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"dataset": "glas", "split": "train", "groups": ["1"], "images": ["train_1"]}])
    with pytest.raises(UserError, match=r"glas: its licence .* does not let one give away .*--with-permission"):
        push(run, tmp_path / "out", Wish(licence="MIT", judge=False), lambda _: None)
    out = push(run, tmp_path / "out", Wish(licence="MIT", judge=False, permission=True), lambda _: None)
    assert "given away with its owner's permission" in read_weights_card(out / "card.yaml").notes


def test_a_folder_that_is_not_empty(run: Path, tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    with pytest.raises(UserError, match="is not an empty folder"):
        push(run, tmp_path, Wish(licence="MIT"), lambda _: None)


def test_numbers_with_intervals_are_measured(run: Path, tmp_path: Path) -> None:
    out = push(run, tmp_path / "out", Wish(licence="MIT", half=True), lambda _: None)
    card = read_weights_card(out / "card.yaml")
    assert {n.dataset for n in card.numbers} == {"stardist-2d"}
    assert {"semantic/dice", "instances/pq"} <= {n.metric for n in card.numbers}
    assert card.numbers[0].n == 1
    assert "half precision" in card.notes
    assert (out / "model.safetensors").stat().st_size < 0.6 * (run / "best.safetensors").stat().st_size


def test_numbers_of_a_benchmark_are_those_of_the_weights() -> None:
    def row(weights: str, **more: Any) -> dict[str, Any]:
        dice = {"value": 0.5, "low": 0.4, "high": 0.6, "images": 3, "groups": 2}
        base = {"weights": weights, "dataset": "d", "split": "test", "output": "semantic", "metrics": {"dice": dice}}
        return {**base, "baseline": False, "leaks": 0, **more}

    results = {"rows": [row("a"), row("b"), row("a", leaks=2, dataset="seen"), row("otsu", baseline=True)]}
    (found,) = cards.numbers(results, ["a"])
    assert (found["metric"], found["value"], found["interval"], found["n"], found["groups"]) == (
        *("semantic/dice", 0.5, [0.4, 0.6]),
        *(3, 2),
    )
    with pytest.raises(UserError, match=r"no rows of c\. It has a, b"):
        cards.numbers(results, ["c"])


def test_a_bundle_of_monai(run: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    out = push(run, tmp_path / "bundle", Wish(licence="Apache-2.0", judge=False, form="monai"), lambda _: None)
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    wanted = {"version", "monai_version", "pytorch_version", "numpy_version", "task", "network_data_format"}
    assert wanted <= set(metadata)
    parser = ConfigParser()
    parser.read_config(str(out / "configs" / "inference.json"))
    parser.read_meta(str(out / "configs" / "metadata.json"))
    parser["bundle_root"] = str(out)
    network = parser.get_parsed_content("network")
    image = torch.rand(1, 3, 64, 64)
    family = zoo.load(run)
    with torch.inference_mode():
        wanted_map = family(family.prepare({"image": image}))["logits"]
        assert torch.equal(network(image), wanted_map)
        assert parser.get_parsed_content("inferer")(image, network).shape == wanted_map.shape
    assert same(zoo.load(out), family)


def test_a_plain_folder_needs_neither_torchvision_nor_the_zoo(run: Path, tmp_path: Path) -> None:
    out = push(run, tmp_path / "plain", Wish(licence="Apache-2.0", judge=False, form="plain"), lambda _: None)
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    code = """
import sys
for name in ("torchvision", "zoo", "timm", "segmentation_models_pytorch", "monai"):
    sys.modules[name] = None
import runpy
sys.argv = ["run.py", *sys.argv[1:]]
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
    command = [sys.executable, "-c", code, str(out / "run.py"), str(tmp_path / "picture.png"), str(tmp_path / "o.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    family = zoo.load(run)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.inference_mode():
        wanted = family.activate(family(family.prepare({"image": image})))["logits"][0].numpy()
    with np.load(tmp_path / "o.npz") as found:
        np.testing.assert_allclose(found["logits"], wanted, atol=1e-6)


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    words = ["weights", "push", str(run), "--out", str(tmp_path / "o"), "--licence", "MIT", "--no-numbers"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "o")
    assert read_weights_card(tmp_path / "o" / "card.yaml").name == "tiny-unet.v1"
    assert main([*words[:-3], "--out", str(tmp_path / "p")]) == 2
    assert "--licence is missing" in capsys.readouterr().err
    assert (
        main(["weights", "push", str(run), "--out", str(tmp_path / "q"), "--licence", "L", "--allows", "comercial"])
        == 2
    )
    assert "Did you mean commercial" in capsys.readouterr().err
    assert main(["weights", "push", "quickstart", "--out", str(tmp_path / "r"), "--licence", "MIT"]) == 2
    assert "quickstart: these weights come with histozoo. Expected a run folder" in capsys.readouterr().err


def test_an_upload(
    run: Path, tmp_path: Path, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import huggingface_hub

    words = ["weights", "push", str(run), "--licence", "MIT", "--no-numbers", "--to", "lab/tiny", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 2
    assert "there is no token. The folder is ready" in capsys.readouterr().err
    calls: dict[str, Any] = {}

    class Api:
        def __init__(self, endpoint: str, library_name: str) -> None:
            calls["endpoint"] = endpoint

        def create_repo(self, repository: str, exist_ok: bool) -> None:
            calls["created"] = repository

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> Any:
            calls["files"] = {p.name for p in folder_path.iterdir()}
            return type("Commit", (), {"commit_url": f"{calls['endpoint']}/{repo_id}/commit/abc"})()

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    assert main([*words, str(tmp_path / "b")]) == 0
    said = capsys.readouterr()
    assert f"{server.url}/lab/tiny/commit/abc" in said.out
    assert "hf_secret" not in said.out + said.err
    assert {"model.safetensors", "card.yaml", "README.md"} <= calls["files"]
