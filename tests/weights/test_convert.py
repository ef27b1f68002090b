"""From a published file to a state dict: the generic converters, and what a family's converter gets in its hands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo import registry
from zoo.errors import UserError
from zoo.weights import store
from zoo.weights.convert import Files, keras_to_torch, metadata, plain_state_dict, zoo_file


def test_converters_are_found_through_the_registry() -> None:
    assert registry.get("converter", "plain") is plain_state_dict
    with pytest.raises(UserError, match=r'no converter "plian"\. Did you mean plain'):
        registry.get("converter", "plian")


def test_a_published_state_dict_with_other_names(tmp_path: Path) -> None:
    path = tmp_path / "weights.tar"
    state = {
        "module.net.0.weight": torch.ones(2, 3),
        "module.net.0.bias": torch.zeros(2),
        "module.fc.weight": torch.ones(1),
    }
    torch.save({"desc": state, "optimizer": {"step": 4}}, path)
    found = plain_state_dict(
        Files(tmp_path, path), family="unet", options={"a": 1}, key="desc", drop=["fc"], rename={"net\\.": "body."}
    )
    assert list(found.tensors) == ["body.0.weight", "body.0.bias"]
    assert (found.family, found.options) == ("unet", {"a": 1})
    with pytest.raises(UserError, match='two entries would be named "x"'):
        plain_state_dict(Files(tmp_path, path), family="unet", rename={".*": "x"})


def test_a_file_of_the_zoo_keeps_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    store.write_tensors(path, {"a": torch.ones(2)}, metadata("unet", {"classes": ["x"]}, {"seed": 3, "recipe": "r"}))
    found = zoo_file(Files(tmp_path, path))
    assert (found.family, found.options, found.more) == ("unet", {"classes": ["x"]}, {"seed": "3", "recipe": "r"})
    store.write_tensors(tmp_path / "other.safetensors", {"a": torch.ones(2)}, {})
    with pytest.raises(UserError, match="says no family"):
        zoo_file(Files(tmp_path, tmp_path / "other.safetensors"))


def test_files_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "2D_demo").mkdir()
    (tmp_path / "2D_demo" / "config.json").write_text(json.dumps({"n_rays": 32}))
    (tmp_path / "2D_demo" / "weights_best.h5").touch()
    files = Files(tmp_path, tmp_path)
    assert files.json("config.json") == {"n_rays": 32}
    assert [p.name for p in files.find("*.h5")] == ["weights_best.h5"]
    with pytest.raises(UserError, match=r"no thresholds\.json"):
        files.json("thresholds.json")
    (tmp_path / "2D_demo" / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        files.json("config.json")


def test_keras_kernels_compute_the_same_in_torch() -> None:
    """A convolution summed by hand in Keras's order equals torch's with the converted kernel."""
    kernel, image = torch.randn(3, 2, 4, 5, generator=torch.manual_seed(0)), torch.randn(1, 4, 6, 6)
    name, weight = keras_to_torch("conv2d.kernel", kernel)
    assert (name, weight.shape) == ("conv2d.weight", (5, 4, 3, 2))
    wanted = torch.zeros(5, 4, 5)
    for i in range(4):
        for j in range(5):
            wanted[:, i, j] = torch.einsum("cyx,yxcd->d", image[0, :, i : i + 3, j : j + 2], kernel)
    assert torch.allclose(nn.functional.conv2d(image, weight)[0], wanted, atol=1e-5)
    assert keras_to_torch("batch_normalization.moving_variance", torch.ones(2))[0] == "batch_normalization.running_var"
    assert keras_to_torch("dense.kernel", torch.ones(3, 7))[1].shape == (7, 3)
    assert keras_to_torch("conv3d.kernel", torch.ones(1, 2, 3, 4, 5))[1].shape == (5, 4, 1, 2, 3)
