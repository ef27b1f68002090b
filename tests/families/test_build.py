"""Options + state dict = module: saved and loaded, half as large, from another version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import zoo
from zoo.errors import Problems, UserError
from zoo.families import build
from zoo.families.base import Family
from zoo.weights import store

OPTIONS = {
    "encoder": "resnet10t",
    "decoder": {"name": "unet", "arguments": {"channels": [16, 16, 8, 8, 8]}},
    "classes": ["background", "gland"],
}


@pytest.fixture(scope="module")
def model() -> Family:
    torch.manual_seed(0)
    return zoo.create("unet", **OPTIONS)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def logits(family: Family, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return family.forward({"image": image})["logits"]


def test_saved_and_loaded_is_the_same_model(model: Family, image: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    build.save(model, path, recipe="a", seed=3)
    again = zoo.load(path)
    assert torch.equal(logits(again, image), logits(model, image))
    assert again.options == model.options
    assert (again.weights_name, again.weights_metadata["recipe"], again.weights_metadata["seed"]) == ("w", "a", "3")
    assert not again.training


def test_equal_models_give_equal_files(model: Family, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build.save(model, tmp_path / name, seed=1, trained_on=[{"dataset": "x", "split": "train"}])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_half_precision_is_half_as_large_and_loads_as_float32(
    model: Family, image: torch.Tensor, tmp_path: Path
) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    build.save(model, full)
    build.save(model, half, half=True)
    assert half.stat().st_size < 0.55 * full.stat().st_size
    again = zoo.load(half)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    counters = [v for k, v in again.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counters
    assert {c.dtype for c in counters} == {torch.int64}
    expected = logits(model, image)
    assert (logits(again, image) - expected).abs().max() < 0.02 * expected.abs().max()


def test_another_state_can_be_saved(model: Family, tmp_path: Path) -> None:
    state = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    build.save(model, tmp_path / "w.safetensors", state=state)
    assert all(float(p.detach().abs().sum()) == 0 for p in zoo.load(tmp_path / "w.safetensors").parameters())


def test_a_run_folder_loads_its_best(model: Family, tmp_path: Path) -> None:
    build.save(model, tmp_path / "best.safetensors")
    assert zoo.load(tmp_path).weights_name == tmp_path.name


def _rewritten(path: Path, **changes: str | None) -> Path:
    tensors, meta = store.read_tensors(path)
    meta |= {k: v for k, v in changes.items() if v is not None}
    store.write_tensors(path, tensors, {k: v for k, v in meta.items() if k not in changes or changes[k] is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "99"}, "newer histozoo"),
        ({"family": None}, "says no family"),
        ({"family": "unett"}, 'no family "unett". Did you mean unet'),
        ({"options": "{"}, "options"),
        ({"format": "one"}, "format"),
    ],
)
def test_a_strange_file_is_said(model: Family, tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    path = tmp_path / "w.safetensors"
    build.save(model, path)
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        zoo.load(_rewritten(path, **changes))


def test_a_file_of_another_architecture_is_said(model: Family, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    build.save(model, path)
    options = json.loads(store.read_tensors(path)[1]["options"])
    options["classes"] = ["background", "a", "b"]
    options["mode"] = "multiclass"
    with pytest.raises(UserError, match="do not fit the model"):
        zoo.load(_rewritten(path, options=json.dumps(options)))


def test_wrong_options_are_all_said_at_once() -> None:
    with pytest.raises(Problems) as caught:
        zoo.create("unet", encodr="resnet18", dropout=3, norm="layer")
    text = str(caught.value)
    assert 'encodr: unknown key "encodr". Did you mean encoder' in text
    assert "dropout: 3 will not do" in text
    assert 'norm: "layer" is not one of' in text


def test_what_cannot_be_built_is_a_user_error() -> None:
    with pytest.raises(UserError, match="classes are not known"):
        zoo.create("unet", encoder="resnet10t")


def test_loading_asks_for_no_download() -> None:
    assert build.without_downloads(
        {"encoder": {"name": "x", "arguments": {"weights": "imagenet"}}, "encoder_weights": "imagenet", "a": [1]}
    ) == {"encoder": {"name": "x", "arguments": {"weights": "none"}}, "encoder_weights": "none", "a": [1]}
