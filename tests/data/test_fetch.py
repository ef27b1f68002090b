"""Fetching data sets: what may be downloaded is, what may not is explained, and nothing that is there is lost."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_server import Behaviour, Server
from PIL import Image

from zoo import cards
from zoo.cli.main import main
from zoo.data.fetch import How, fetch
from zoo.errors import UserError
from zoo.fetch import FetchError, http
from zoo.recipe import dump_yaml

FREE = ["research", "commercial", "redistribution", "derivatives"]


def packed(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels if value < 9 else (pixels[..., 0] > 128).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "set-main/images/a.png": picture(1),
    "set-main/images/b.png": picture(2),
    "set-main/masks/a.png": picture(11),
    "set-main/masks/b.png": picture(12),
    "set-main/README.md": b"read me",
}
ARCHIVE = packed(FILES)
SHA = hashlib.sha256(ARCHIVE).hexdigest()


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def how(**more: Any) -> How:
    return How(**{"settings": http.Settings(2.0, 2.0, 3, lambda _: None), **more})


def write_card(place: Path, url: str, allows: list[str] = FREE, **download: Any) -> Path:
    values = {
        "zoo": 1,
        "name": "mine",
        "summary": "Mine.",
        "reader": {"name": "folder", "arguments": {"images": "images", "masks": {"objects": {"folder": "masks"}}}},
        "folder": "data",
        "licence": {"name": "L-1.0", "allows": allows, "url": "https://x.org/l", "note": "Cite it"},
        "source": {
            "url": "https://x.org/set",
            "downloads": [{"url": url, "unpack": True, "inside": "set-main", **download}],
        },
        "truths": {"objects": {"kind": "semantic", "classes": ["background", "thing"]}},
    }
    file = place / cards.CARD_NAME
    file.write_text(dump_yaml(values))
    return file


def left(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.suffix != ".lock"}


def test_a_download_is_fetched_unpacked_and_left_alone(server: Server, place: Path) -> None:
    server.files["/set.zip"] = ARCHIVE
    server.plan = [Behaviour(drop_after=2000)]
    write_card(place, f"{server.url}/set.zip", sha256=SHA)
    found = fetch(place, how())
    assert found.complete
    assert found.folder == place / "data"
    assert left(place / "data") == {"images", "masks", "README.md", ".fetched.json"}
    assert (place / "data" / "images" / "a.png").read_bytes() == FILES["set-main/images/a.png"]
    count = len(server.seen)
    fetch(place, how())
    assert len(server.seen) == count


def test_the_command_checks_what_it_fetched(server: Server, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/set.zip"] = ARCHIVE
    write_card(place, f"{server.url}/set.zip")
    assert main(["data", "fetch", str(place), "--quiet"]) == 0
    said = capsys.readouterr()
    assert f"nobody states a SHA-256 of set.zip; recorded now, compared from now on: {SHA}" in said.err
    out = " ".join(said.out.split())  # long paths wrap
    assert f"mine: {place / 'data'}" in out
    assert "2 images" in out


def test_a_sum_of_an_earlier_fetch_is_kept_to(server: Server, place: Path) -> None:
    server.files["/set.zip"] = ARCHIVE
    file = write_card(place, f"{server.url}/set.zip", unpack=False, inside=None)
    fetch(place, how())
    (place / "data" / "set.zip").unlink()
    server.files["/set.zip"] = b"swapped"
    with pytest.raises(FetchError, match=f"an earlier fetch recorded {SHA}"):
        fetch(file, how())


def test_a_wrong_sum(server: Server, place: Path, home: Path) -> None:
    server.files["/set.zip"] = ARCHIVE
    write_card(place, f"{server.url}/set.zip", sha256="1" * 64)
    with pytest.raises(FetchError, match=r"its card says 1+"):
        fetch(place, how())
    assert len(list((home / "cache" / "quarantine").iterdir())) == 1
    assert not (place / "data" / "images").exists()


def test_a_copy_of_the_users_own_is_left_alone(server: Server, place: Path) -> None:
    write_card(place, f"{server.url}/set.zip")
    (place / "data" / "images").mkdir(parents=True)
    (place / "data" / "images" / "own.png").write_bytes(b"mine")
    found = fetch(place, how())
    assert "is here already and was not fetched" in found.lines[0]
    assert server.seen == []


def test_nothing_that_is_there_is_replaced(server: Server, place: Path) -> None:
    server.files["/set.zip"] = ARCHIVE
    write_card(place, f"{server.url}/set.zip")
    fetch(place, how())
    (place / "data" / "images" / "own.png").write_bytes(b"mine")
    (place / "data" / ".fetched.json").write_text("{}")
    with pytest.raises(UserError, match=r"README\.md: is there already\. Nothing was replaced"):
        fetch(place, how())
    assert (place / "data" / "images" / "own.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"../../outside": b"x"}, "leads outside the folder"),
        ({"other/images/a.png": b"x"}, r"it holds no folder set-main \(other\)"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be(
    server: Server, place: Path, names: dict[str, bytes], words: str
) -> None:
    server.files["/set.zip"] = packed(names)
    write_card(place, f"{server.url}/set.zip")
    with pytest.raises((UserError, FetchError), match=words):
        fetch(place, how())
    assert left(place / "data") <= {".downloads"}
    assert not list(place.parent.glob("outside"))


def test_a_licence_that_binds_is_accepted_once(server: Server, place: Path) -> None:
    server.files["/set.zip"] = ARCHIVE
    write_card(place, f"{server.url}/set.zip", allows=["research"])
    with pytest.raises(UserError, match=r"data:mine: its licence \(L-1\.0\) is not accepted yet"):
        fetch(place, how())
    assert server.seen == []
    fetch(place, how(accept=True))


def test_the_others_are_explained(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "d"))
    assert main(["data", "fetch", "glas"]) == 0
    out = capsys.readouterr().out
    for words in ("a person fetches these data", "Licence: ", "Page: https://warwick", "1. ", "zoo data check glas"):
        assert words in out
    assert "DIR" not in out
    assert main(["data", "fetch", "phantom-nuclei"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out
    assert main(["data", "fetch", "galas"]) == 2
    assert "Did you mean glas" in capsys.readouterr().err


def test_without_a_place_or_a_network_it_says_so(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"where do the data lie\? Set ZOO_DATA=DIR"):
        fetch("bccd", how())
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(UserError, match="ZOO_OFFLINE=1 forbids fetching"):
        fetch("bccd", how())


@pytest.mark.parametrize("name", sorted(cards.dataset_files()))
def test_only_what_the_licence_allows_is_downloaded(name: str) -> None:
    card = cards.dataset_card(name)
    for download in card.source.downloads:
        assert download.url.startswith("https://")
        assert "redistribution" in card.licence.allows
    assert card.source.steps or card.folder is None
