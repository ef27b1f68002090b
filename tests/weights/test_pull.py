"""Pulling: every kind of source, from a card to a module, and everything that can be wrong on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_server import Behaviour, Server

import zoo
from zoo.errors import UserError
from zoo.families import build
from zoo.fetch import FetchError, http, hub
from zoo.weights import cache, store
from zoo.weights.gather import How
from zoo.weights.pull import mirror, pull, remove, verify

NAME = "gland-unet.lab"
NC = {"code": "GPL-3.0", "weights": {"name": "CC-BY-NC-SA-4.0", "allows": ["research"], "note": "Cite the paper"}}
OPTIONS = {"encoder": "resnet10t", "classes": ["background", "gland"]}
COMMIT = "0123456789abcdef" * 2 + "89abcdef"
Write = Callable[..., Path]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def how(**more: Any) -> How:
    return How(**{"settings": http.Settings(2.0, 2.0, 3, lambda _: None), **more})


def equal(name: str | Path, state: dict[str, torch.Tensor]) -> bool:
    found = zoo.load(name).state_dict()
    return list(found) == list(state) and all(torch.equal(found[k], v) for k, v in state.items())


@pytest.fixture
def web(server: Server, published: bytes, write_card: Write) -> Server:
    """The published file on the server, and a card that pins it."""
    server.files["/model.pth"] = published
    write_card(
        NAME, {"kind": "http", "url": f"{server.url}/model.pth", "sha256": sha(published), "page": "https://x.org"}
    )
    return server


def test_from_an_address_to_a_module(web: Server, state: dict[str, torch.Tensor], published: bytes) -> None:
    with pytest.raises(UserError, match=rf"are not on this machine\. Pull them: zoo weights pull {NAME}"):
        zoo.load(NAME)
    said: list[str] = []
    found = pull(NAME, how(say=said.append))
    assert found.path == cache.folder(NAME) / f"{NAME}.safetensors"
    assert said == [f"{NAME}: converting model.pth"]
    assert equal(NAME, state)
    meta = store.read_shapes(found.path)[1]
    assert json.loads(meta["published"]) == {"model.pth": sha(published)}
    assert pull(NAME, how()).path == found.path
    assert len(web.seen) == 1
    assert not (cache.root() / ".staging" / NAME).exists()
    assert verify(NAME)[2] == "as it was pulled"


def test_equal_files_give_equal_weights(web: Server) -> None:
    first = pull(NAME, how()).path.read_bytes()
    assert remove(NAME) > len(first)
    assert pull(NAME, how()).path.read_bytes() == first
    with pytest.raises(UserError, match="were not pulled"):
        remove("quickstart.v1")


def test_a_drop_a_wait_and_a_slow_server_in_a_row(web: Server, state: dict[str, torch.Tensor]) -> None:
    web.plan = [
        Behaviour(status=429, headers={"Retry-After": "1"}),
        Behaviour(drop_after=10_000_000),
        Behaviour(status=503),
        Behaviour(piece=2_000_000),
    ]
    pull(NAME, how())
    assert equal(NAME, state)


def test_a_pull_that_died_goes_on(web: Server, published: bytes) -> None:
    web.plan = [Behaviour(drop_after=8_000_000)] + [Behaviour(status=500)] * 9
    with pytest.raises(FetchError, match="bytes are kept: the same command goes on"):
        pull(NAME, how())
    web.plan.clear()
    web.seen.clear()
    pull(NAME, how())
    assert web.ranges()[0].startswith("bytes=")


def test_a_wrong_checksum_is_quarantined(web: Server, home: Path) -> None:
    web.files["/model.pth"] = b"something else"
    with pytest.raises(FetchError, match=r"its card says .* was not used; it lies at .*quarantine"):
        pull(NAME, how())
    assert [p.read_bytes() for p in (home / "cache" / "quarantine").iterdir()] == [b"something else"]
    assert cache.read(NAME) is None


def test_an_unstated_sum_is_recorded_and_compared_later(
    server: Server, published: bytes, write_card: Write, state: dict[str, torch.Tensor]
) -> None:
    server.files["/model.pth"] = published
    write_card(NAME, {"kind": "http", "url": f"{server.url}/model.pth"})
    said: list[str] = []
    pull(NAME, how(say=said.append))
    assert f"nobody states a SHA-256 of model.pth; recorded now, compared from now on: {sha(published)}" in said[0]
    (cache.folder(NAME) / f"{NAME}.safetensors").unlink()
    server.files["/model.pth"] = b"swapped"
    with pytest.raises(FetchError, match=f"an earlier pull recorded {sha(published)}"):
        pull(NAME, how())
    server.files["/model.pth"] = published
    pull(NAME, how())
    assert equal(NAME, state)


def test_a_card_that_changes_asks_for_another_pull(web: Server, write_card: Write, published: bytes) -> None:
    pull(NAME, how())
    other = published + b"\0"
    write_card(NAME, {"kind": "http", "url": f"{web.url}/model.pth", "sha256": sha(other)})
    with pytest.raises(UserError, match=r"the card has changed since they were pulled: model\.pth has another SHA-256"):
        zoo.load(NAME)


# --- licences ---------------------------------------------------------------------------------------------------------


def test_a_licence_that_binds_is_accepted_once(web: Server, write_card: Write, published: bytes) -> None:
    source = {"kind": "http", "url": f"{web.url}/model.pth", "sha256": sha(published), "page": "https://x.org/terms"}
    write_card(NAME, source, licence=NC)
    with pytest.raises(
        UserError, match=r"\(CC-BY-NC-SA-4\.0\) is not accepted yet\. Read it, then add: --accept-licence"
    ):
        pull(NAME, how())
    assert web.seen == []
    pull(NAME, how(accept=True))
    remove(NAME)
    pull(NAME, how())


def test_the_terms_are_shown(web: Server, write_card: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write_card(NAME, {"kind": "http", "url": f"{web.url}/x", "page": "https://x.org/terms"}, licence=NC)
    with pytest.raises(UserError):
        pull(NAME, how())
    said = capsys.readouterr().err
    for words in ("CC-BY-NC-SA-4.0", "allows research", "Commercial use is not allowed", "GPL-3.0", "Cite the paper."):
        assert words in said
    assert "Terms: https://x.org/terms" in said


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def huggingface(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, published: bytes) -> Server:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.add_repository("lab/net", COMMIT, {"w/model.bin": published, "settings.json": b'{"a": 1}'})
    return server


def test_from_a_hub_repository(
    huggingface: Server, write_card: Write, published: bytes, state: dict[str, torch.Tensor]
) -> None:
    more = [{"file": "settings.json", "sha256": sha(b'{"a": 1}')}]
    source = {"kind": "hub", "repository": "lab/net", "revision": COMMIT, "file": "w/model.bin", "more": more}
    write_card(NAME, source | {"sha256": sha(published)})
    pull(NAME, how())
    assert equal(NAME, state)
    record = cache.read(NAME)
    assert record is not None
    assert record.revision == COMMIT
    assert set(record.served) == {"w/model.bin", "settings.json"}


def test_an_unknown_revision_is_recorded_and_kept_to(
    huggingface: Server, write_card: Write, published: bytes, state: dict[str, torch.Tensor], home: Path
) -> None:
    write_card(NAME, {"kind": "hub", "repository": "lab/net", "file": "w/model.bin"})
    said: list[str] = []
    pull(NAME, how(say=said.append))
    assert f"the card names no revision; lab/net is at {COMMIT}: recorded" in said[0]
    assert equal(NAME, state)


def test_a_local_hub_cache_serves_an_offline_machine(
    write_card: Write, published: bytes, state: dict[str, torch.Tensor], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    write_card(NAME, {"kind": "hub", "repository": "lab/net", "revision": COMMIT, "file": "w/model.bin"})
    with pytest.raises(UserError, match="ZOO_OFFLINE=1 forbids fetching"):
        pull(NAME, how())
    file = home / "hf" / "hub" / "models--lab--net" / "snapshots" / COMMIT / "w" / "model.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(published)
    pull(NAME, how())
    assert equal(NAME, state)


def test_a_wrong_sum_from_the_hub_leaves_its_cache(
    huggingface: Server, write_card: Write, home: Path, published: bytes
) -> None:
    source = {"kind": "hub", "repository": "lab/net", "revision": COMMIT, "file": "w/model.bin", "sha256": "0" * 64}
    write_card(NAME, source)
    with pytest.raises(FetchError, match=r"lab/net/w/model\.bin: SHA-256 is .*, its card says 0+\."):
        pull(NAME, how())
    assert len(list((home / "cache" / "quarantine").iterdir())) == 1


def test_a_gated_repository(huggingface: Server, write_card: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface.gated, huggingface.token = {"lab/net"}, "hf_secret"
    source = {"kind": "hub", "repository": "lab/net", "revision": COMMIT, "file": "w/model.bin", "page": "https://x/y"}
    write_card(NAME, source, gate="token")
    with pytest.raises(FetchError, match=r"Visit https://x/y, accept the terms there, and set HF_TOKEN"):
        pull(NAME, how(accept=True))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(NAME, how())


def test_a_gate_without_a_token_asks_nobody(
    huggingface: Server, write_card: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(
        NAME, {"kind": "hub", "repository": "lab/net", "file": "w/model.bin", "page": "https://x/y"}, gate="token"
    )
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub, "file", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(FetchError, match=r"lab/net: .*Visit https://x/y, accept the terms there, and set HF_TOKEN"):
        pull(NAME, how(accept=True))


# --- by hand, and machines without a network --------------------------------------------------------------------------


def test_a_file_that_a_person_fetched(
    write_card: Write, tmp_path: Path, published: bytes, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    write_card(NAME, {"kind": "manual", "page": "https://x.org/sign", "file": "weights.tar", "sha256": sha(published)})
    with pytest.raises(UserError, match=r"visit https://x\.org/sign, then run: zoo weights pull .* --from FILE"):
        pull(NAME, how())
    with pytest.raises(UserError, match=rf"Get weights\.tar from https://x\.org/sign, then: zoo weights pull {NAME}"):
        zoo.load(NAME)
    mine = tmp_path / "downloads" / "weights (1).tar"
    mine.parent.mkdir()
    mine.write_bytes(b"half of it")
    with pytest.raises(FetchError, match=r"The file was not used\. Get it again"):
        pull(NAME, how(origin=str(mine)))
    assert mine.read_bytes() == b"half of it"
    mine.write_bytes(published)
    pull(NAME, how(origin=str(mine)))
    assert equal(NAME, state)
    with pytest.raises(UserError, match=r"nowhere: there is no such file or folder\. Expected weights\.tar of"):
        pull(NAME, how(origin=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither .* is there\. Expected weights\.tar"):
        pull(NAME, how(origin=str(tmp_path / "empty")))


@pytest.mark.parametrize("over", ["folder", "web", "environment"])
def test_a_mirror(
    web: Server, tmp_path: Path, published: bytes, state: dict[str, torch.Tensor], monkeypatch: Any, over: str
) -> None:
    out = tmp_path / "mirror"
    assert mirror(NAME, out, how()) == out / NAME
    assert mirror("quickstart", out, how()) is None
    assert {p.name for p in (out / NAME).iterdir()} == {"model.pth", "card.yaml"}
    assert json.loads((out / "mirror.json").read_text())[NAME]["served"]["model.pth"]["sha256"] == sha(published)
    web.files.clear()
    if over == "web":
        web.files[f"/zoo/{NAME}/model.pth"] = published
        pull(NAME, how(origin=f"{web.url}/zoo"))
    else:
        monkeypatch.setenv("ZOO_OFFLINE", "1")
        if over == "environment":
            monkeypatch.setenv("ZOO_MIRROR", str(out))
        pull(NAME, how(origin=str(out) if over == "folder" else None))
    assert equal(NAME, state)


def test_a_mirror_keeps_the_sums_that_nobody_states(
    server: Server, write_card: Write, published: bytes, tmp_path: Path
) -> None:
    server.files["/model.pth"] = published
    write_card(NAME, {"kind": "http", "url": f"{server.url}/model.pth"})
    mirror(NAME, tmp_path / "m", how())
    (tmp_path / "m" / NAME / "model.pth").write_bytes(b"bad disk")
    with pytest.raises(FetchError, match=f"an earlier pull recorded {sha(published)}"):
        pull(NAME, how(origin=str(tmp_path / "m")))


def test_what_cannot_be_had(write_card: Write) -> None:
    write_card(NAME, {"kind": "unavailable", "reason": "The company keeps them", "page": "https://x.org"})
    for ask in (lambda: pull(NAME, how()), lambda: zoo.load(NAME), lambda: mirror(NAME, Path("m"), how())):
        with pytest.raises(UserError, match=r"cannot be had: The company keeps them\. See https://x\.org"):
            ask()


# --- files that are not what they should be ---------------------------------------------------------------------------


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def bad_files(state: dict[str, torch.Tensor]) -> dict[str, tuple[bytes, str]]:
    name = next(iter(state))

    class Trap:
        def __reduce__(self) -> Any:
            return os.system, ("touch executed",)

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../outside", b"x")
    return {
        "a trap": (saved({"desc": {"a": Trap()}}), "asks for posix.system"),
        "traversal": (packed.getvalue(), "leads outside"),
        "NaN": (saved(state | {name: state[name] * float("nan")}), "holds NaN or infinity"),
        "a wrong shape": (
            saved(state | {name: torch.ones(3)}),
            f"1 entries do not fit the model.*First: mismatched {name}",
        ),
        "another architecture": (saved({"x.weight": torch.ones(2)}), "entries do not fit the model"),
        "a missing entry": (saved({k: v for k, v in state.items() if k != name}), f"First: missing {name}"),
        "a web page": (b"<!doctype html><p>sign in", "is a web page"),
    }


@pytest.mark.parametrize("case", list(bad_files({"w": torch.ones(2)})))
@pytest.mark.parametrize("pinned", [True, False])
def test_a_bad_file_is_one_line_and_nothing_stays(
    server: Server, write_card: Write, state: dict[str, torch.Tensor], case: str, pinned: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    content, words = bad_files(state)[case]
    server.files["/model.pth"] = content
    write_card(NAME, {"kind": "http", "url": f"{server.url}/model.pth", **({"sha256": sha(content)} if pinned else {})})
    with pytest.raises(UserError, match=words) as caught:
        pull(NAME, how())
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.parent.glob("outside"))
    assert cache.read(NAME) is None
    assert ("quarantine" in str(caught.value)) is not pinned


def test_a_converter_that_stumbles_is_a_sentence(web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import registry

    def stumbles(files: Any, **arguments: Any) -> Any:
        return {}["conv1.weight"]

    monkeypatch.setattr(registry, "resolve", lambda target: stumbles if "convert" in target else build.fits)
    with pytest.raises(
        UserError, match=r"model\.pth is not laid out as the converter plain expects \(KeyError: 'conv1"
    ):
        pull(NAME, how())


def test_an_archive_is_unpacked_for_its_converter(
    server: Server, write_card: Write, published: bytes, state: dict[str, torch.Tensor]
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("release/weights.tar", published)
        archive.writestr("release/settings.json", "{}")
    server.files["/release.zip"] = packed.getvalue()
    plain = {"family": "unet", "options": OPTIONS, "rename": {"net\\.": ""}, "file": "weights.tar"}
    source = {"kind": "http", "url": f"{server.url}/release.zip", "unpack": True}
    write_card(NAME, source, convert={"name": "plain", "arguments": plain})
    pull(NAME, how())
    assert equal(NAME, state)


def test_a_file_of_the_zoo_is_kept_as_served(
    server: Server, write_card: Write, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    family = zoo.create("unet", **OPTIONS)
    family.load_state_dict(state)
    build.save(family, tmp_path / "w.safetensors", recipe_hash="a" * 64)
    data = (tmp_path / "w.safetensors").read_bytes()
    server.files["/w.safetensors"] = data
    source = {"kind": "http", "url": f"{server.url}/w.safetensors", "sha256": sha(data)}
    write_card(NAME, source, convert=None, recipe_hash="a" * 64)
    assert pull(NAME, how()).path.read_bytes() == data
    assert equal(NAME, state)
    write_card(NAME, source, convert=None, recipe_hash="b" * 64)
    with pytest.raises(UserError, match=r"made by a recipe of hash aaaaaaaaaaaa\.\.\., its card says bbbbbbbbbbbb"):
        zoo.load(NAME)
    remove(NAME)
    with pytest.raises(UserError, match="made by a recipe of hash"):
        pull(NAME, how())


# --- cards ------------------------------------------------------------------------------------------------------------


def test_duplicate_names(write_card: Write, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    one = write_card(NAME, {"kind": "folder", "file": "a.safetensors"})
    two = write_card(NAME, {"kind": "folder", "file": "b.safetensors"}, folder=other)
    monkeypatch.setenv("ZOO_WEIGHTS", f"{shelf}{os.pathsep}{other}")
    with pytest.raises(UserError, match=rf"several cards: {one} and {two}\. Expected one"):
        store.find(NAME)
    write_card("quickstart.v1", {"kind": "folder", "file": "a.safetensors"})
    with pytest.raises(UserError, match=r"several cards: .*bundled"):
        store.find("quickstart.v1")
    assert store.find("nuclei-unet-mobile").path.is_file()


def test_two_defaults_and_a_name_that_is_not_the_files(write_card: Write) -> None:
    for tag in ("a", "b"):
        write_card(f"x-unet.{tag}", {"kind": "folder", "file": "w.safetensors"}, default=True)
    with pytest.raises(UserError, match=r"several tags say they are the default: x-unet\.a, x-unet\.b"):
        store.find("x-unet")
    path = write_card("y-unet.a", {"kind": "folder", "file": "w.safetensors"})
    path.rename(path.with_name("z-unet.a.yaml"))
    with pytest.raises(UserError, match=r'it says "y-unet\.a"\. Expected z-unet\.a'):
        store.find("z-unet.a")


@pytest.mark.parametrize(
    ("source", "more", "words"),
    [
        ({"kind": "folder", "file": "a"}, {"licence": None}, "licence: the key is missing"),
        ({"kind": "http"}, {}, "url is missing"),
        ({"kind": "hub", "repository": "a/b"}, {}, "file is missing"),
        ({"kind": "hub", "repository": "a/b", "file": "c", "revision": "main"}, {}, "revision.*40"),
        ({"kind": "manual", "file": "c"}, {}, "page is missing"),
        ({"kind": "unavailable"}, {}, "reason is missing"),
        ({"kind": "bundled", "file": "c"}, {}, "sha256 is missing"),
        ({"kind": "folder", "file": "../../etc/passwd"}, {}, "leads outside its folder"),
        ({"kind": "folder", "file": "/etc/passwd"}, {}, "leads outside its folder"),
        ({"kind": "http", "url": "https://x/y", "sha256": "abc"}, {}, "sha256"),
        ({"kind": "folder", "file": "a"}, {"family": None}, "expected one of family, encoder and part"),
        ({"kind": "folder", "file": "a"}, {"encoder": "resnet18"}, "expected one of family, encoder and part"),
    ],
)
def test_bad_cards(write_card: Write, source: dict[str, Any], more: dict[str, Any], words: str) -> None:
    path = write_card(NAME, source, **more)
    with pytest.raises(UserError, match=words) as caught:
        store.find(NAME)
    assert str(path) in str(caught.value)


def test_what_this_version_cannot_use_is_said_before_a_download(
    web: Server, write_card: Write, published: bytes
) -> None:
    source = {"kind": "http", "url": f"{web.url}/model.pth", "sha256": sha(published)}
    write_card(NAME, source, convert={"name": "nobodys"})
    with pytest.raises(UserError, match=r'no converter "nobodys" for them\. Update histozoo'):
        pull(NAME, how())
    write_card(NAME, source, family="uent")
    with pytest.raises(UserError, match='no family "uent"'):
        pull(NAME, how())
    assert web.seen == []


# --- several processes, and disks that rot ----------------------------------------------------------------------------


def test_several_at_once_share_one_pull(web: Server, state: dict[str, torch.Tensor]) -> None:
    web.plan = [Behaviour(piece=200_000)]
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(pull(NAME, how()).path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache.folder(NAME) / f"{NAME}.safetensors"] * 3
    assert len([1 for method, path, _ in web.seen if method == "GET"]) == 1
    assert equal(NAME, state)


def test_a_file_that_rots_is_quarantined_on_verify(web: Server, home: Path) -> None:
    path = pull(NAME, how()).path
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(FetchError, match=r"it was pulled as .* lies at .* Pull it again: zoo weights pull"):
        verify(NAME)
    assert len(list((home / "cache" / "quarantine").iterdir())) == 1
    with pytest.raises(UserError, match="are not on this machine"):
        store.find(NAME)
    pull(NAME, how())
    verify(NAME)


def test_a_folder_of_the_users_own(write_card: Write, shelf: Path, tmp_path: Path) -> None:
    build.save(zoo.create("unet", **OPTIONS), shelf / "files" / "w.safetensors")
    right = sha((shelf / "files" / "w.safetensors").read_bytes())
    source = {"kind": "folder", "folder": "files", "file": "w.safetensors", "sha256": right}
    write_card(NAME, source, convert=None, default=True)
    assert zoo.load("gland-unet").weights_name == NAME
    assert verify(NAME)[2] == "as its card says"
    write_card(NAME, source | {"sha256": "1" * 64}, convert=None)
    with pytest.raises(FetchError, match=r"its card says 1+\. Copy or push it again"):
        zoo.load(NAME)
    assert (shelf / "files" / "w.safetensors").is_file()
    assert tmp_path.is_dir()
