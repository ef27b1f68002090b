"""Pretrained weights: the cache first, no waiting where there is no network, nothing filled in by halves."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.encoders import build_encoder, listing, pretrained
from zoo.errors import UserError

NAME, TAG = "test_resnet", "r160_in1k"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_ENDPOINT", "ZOO_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def published(name: str = NAME) -> dict[str, Tensor]:
    """Return a state dict as the hub would have it, classifier included."""
    torch.manual_seed(3)
    return dict(timm.create_model(name).state_dict())


def first_weight(encoder: torch.nn.Module) -> Tensor:
    return next(encoder.parameters()).detach()


def test_the_zoo_cache_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    file = tmp_path / "zoo" / "encoders" / f"{NAME}.{TAG}.safetensors"
    file.parent.mkdir(parents=True)
    save_file(published(), file)
    for weights in ("imagenet", TAG):
        encoder = build_encoder(NAME, weights=weights)
        assert encoder.weights == TAG
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, published()[key.removeprefix("net.").replace("layer1_", "layer1.")]), key


def test_the_hub_cache_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    folder = tmp_path / "hf" / "hub" / f"models--timm--{NAME}.{TAG}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(published(), folder / "snapshots" / "abc" / "model.safetensors")
    assert torch.equal(first_weight(build_encoder(NAME, weights=TAG)), next(iter(published().values())))


def test_offline_it_says_what_to_put_where_in_under_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        build_encoder("smp:resnet34", weights="imagenet")
    assert time.perf_counter() - began < 1.0
    said = str(caught.value)
    assert "ZOO_OFFLINE=1" in said
    revision = listing.info("smp:resnet34").weights["imagenet"].revision
    assert f"https://huggingface.co/smp-hub/resnet34.imagenet/resolve/{revision}/model.safetensors" in said
    assert str(tmp_path / "zoo" / "encoders" / "smp-resnet34.imagenet.safetensors") in said


def test_a_silent_network_is_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached"):
        build_encoder(NAME, weights=TAG)
    assert time.perf_counter() - began < 1.0


class _Hub(BaseHTTPRequestHandler):
    """A hub: the page redirects to the file and states its SHA-256."""

    content = b""
    sha256 = ""

    def do_GET(self) -> None:
        if self.path.startswith("/file"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.content)
            return
        self.send_response(302 if NAME in self.path else 403)
        self.send_header("Location", "/file")
        self.send_header("X-Linked-Etag", f'"{self.sha256}"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    save_file(published(), tmp_path / "upload")
    _Hub.content = (tmp_path / "upload").read_bytes()
    _Hub.sha256 = hashlib.sha256(_Hub.content).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield _Hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetching_is_announced_checked_and_done_once(
    hub: type[_Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.equal(first_weight(build_encoder(NAME, weights=TAG)), next(iter(published().values())))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("fetching http://127.0.0.1") == 1
    assert "licence apache-2.0" in said.err
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    build_encoder(NAME, weights=TAG)
    assert capsys.readouterr().err == ""
    assert [f.name for f in (tmp_path / "zoo" / "encoders").iterdir()] == [f"{NAME}.{TAG}.safetensors"]


def test_a_wrong_checksum_is_put_aside(hub: type[_Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "sha256", "0" * 64)
    with pytest.raises(UserError, match="SHA-256"):
        build_encoder(NAME, weights=TAG)
    assert not [f for f in (tmp_path / "zoo" / "encoders").iterdir() if f.suffix != ".lock"]
    assert len(list((tmp_path / "zoo" / "quarantine").iterdir())) == 1


def test_a_gate_is_a_sentence(hub: type[_Hub]) -> None:
    with pytest.raises(UserError, match="403"):
        build_encoder("resnet18", weights="imagenet")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_path(tmp_path: Path, suffix: str) -> None:
    file, state = tmp_path / f"mine{suffix}", published()
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, file)
    else:
        save_file(state, file)
    encoder = build_encoder(NAME, weights=file)
    assert encoder.weights == file.name
    assert torch.equal(first_weight(encoder), next(iter(state.values())))


def test_an_smp_path_and_other_channels(tmp_path: Path) -> None:
    torch.manual_seed(5)
    donor = build_encoder("mit_b0")
    file = tmp_path / "mit.safetensors"
    save_file({k.removeprefix("net."): v for k, v in donor.state_dict().items()}, file)
    same = build_encoder("mit_b0", weights=str(file))
    assert all(torch.equal(v, donor.state_dict()[k]) for k, v in same.state_dict().items())
    one = first_weight(build_encoder("mit_b0", weights=str(file), in_channels=1))
    torch.testing.assert_close(one, first_weight(donor).sum(1, keepdim=True))


def test_pretrained_first_layers_take_other_channels(tmp_path: Path) -> None:
    file, state = tmp_path / "mine.safetensors", published()
    save_file(state, file)
    stem = next(v for v in state.values() if v.ndim == 4)
    one = first_weight(build_encoder(NAME, weights=file, in_channels=1))
    torch.testing.assert_close(one, stem.sum(1, keepdim=True))
    seven = first_weight(build_encoder(NAME, weights=file, in_channels=7))
    torch.testing.assert_close(seven, stem[:, [0, 1, 2, 0, 1, 2, 0]] * 3 / 7)


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a.weight": torch.zeros(3, 3)}, foreign)
    with pytest.raises(UserError, match="does not fit encoder test_resnet"):
        build_encoder(NAME, weights=foreign)
    half = tmp_path / "half.safetensors"
    save_file({k: v for k, v in published().items() if not k.startswith("layer3")}, half)
    with pytest.raises(UserError, match=r"leaves \d+ of its tensors as they were, among them layer3"):
        build_encoder(NAME, weights=half)
    with pytest.raises(UserError, match="does not fit encoder resnet18"):
        build_encoder("resnet18", weights=half)


def test_the_encoder_of_a_model_of_the_zoo(tmp_path: Path) -> None:
    import zoo
    from zoo.families import build

    torch.manual_seed(4)
    model = zoo.create("unet", encoder=NAME, classes=["background", "gland"])
    donor = model.pyramid.encoder.state_dict()  # type: ignore[union-attr, operator]
    run = tmp_path / "run"
    run.mkdir()
    build.save(model, run / "best.safetensors")
    (run / "recipe.yaml").write_text("zoo: 1\n", encoding="utf-8")
    for place in (run / "best.safetensors", run):
        found = build_encoder(NAME, weights=place).state_dict()
        assert all(torch.equal(value, found[name]) for name, value in donor.items())
    with pytest.raises(UserError, match=r"best.safetensors: does not fit encoder resnet18: .* has this encoder"):
        build_encoder("resnet18", weights=run)
    twice = {f"{part}.encoder.{name}": v.clone() for part in ("one", "two") for name, v in donor.items()}
    save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(UserError, match=r"2 encoders of it fit test_resnet: one\.encoder, two\.encoder"):
        build_encoder(NAME, weights=tmp_path / "twice.safetensors")


def test_the_encoder_of_bundled_weights() -> None:
    from zoo.families import build

    donor = build.load("nuclei-unet-mobile").pyramid.encoder.state_dict()  # type: ignore[union-attr, operator]
    pretrained.check("mobilenetv4_conv_small", "nuclei-unet-mobile")
    found = build_encoder("mobilenetv4_conv_small", weights="nuclei-unet-mobile").state_dict()
    assert all(torch.equal(value.float(), found[name].float()) for name, value in donor.items())


def test_a_transformer_of_another_patch_size_is_refused(tmp_path: Path) -> None:
    small = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    fine = build_encoder("vit_small_patch8_224", weights="none", **small)
    file = tmp_path / "fine.safetensors"
    save_file({k: v.contiguous() for k, v in fine.net.state_dict().items()}, file)
    with pytest.raises(
        UserError, match=r"its patches are 8 x 8 pixels, those of encoder vit_small_patch16_224 16 x 16"
    ):
        build_encoder("vit_small_patch16_224", weights=file, **small)
    assert build_encoder("vit_small_patch16_224", weights=file, patch_size=8, **small).patch == 8
    assert build_encoder("vit_small_patch8_224", weights=file, patch=16, **small).patch == 16
    with pytest.raises(UserError, match=r"no file .*none\.pth\. Expected none, published"):
        build_encoder("kaiko-vits16", weights=tmp_path / "none.pth")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "sprung"),)  # type: ignore[return-value]

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="nothing in it was executed"):
        build_encoder(NAME, weights=tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "noise.pth").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match=r"noise\.pth"):
        build_encoder(NAME, weights=tmp_path / "noise.pth")


def test_a_check_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "reachable", lambda address: pytest.fail("the network was asked"))
    pretrained.check("resnet34", "imagenet")
    pretrained.check("resnet34")
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(UserError, match="ZOO_OFFLINE"):
        pretrained.check("resnet34", "imagenet")
    with pytest.raises(UserError, match="Did you mean resnet34"):
        pretrained.check("resnet_34", "none")


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no weights "a1_in1"\. Did you mean a1_in1k'):
        build_encoder("resnet34", weights="a1_in1")
    with pytest.raises(UserError, match="no file"):
        build_encoder("resnet34", weights=tmp_path / "none.pth")
    without = next(n for n in listing.names() if not listing.info(n).weights)
    with pytest.raises(UserError, match=r"no ImageNet weights\. No pretrained weights are known"):
        pretrained.find(listing.info(without), "imagenet")
