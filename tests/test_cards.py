"""Cards, paths and the registry: what ships is right, and what a user gets wrong is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo import cards, paths, registry
from zoo.errors import Problems, UserError

CARD = """zoo: 1
name: mine
summary: Mine.
reader: folder
licence: {name: CC0-1.0, allows: [research]}
truths:
  nuclei: {kind: instances, classes: [nucleus]}
"""


@pytest.mark.parametrize("name", sorted(cards.dataset_files()))
def test_shipped_cards(name: str) -> None:
    card = cards.dataset_card(name)
    assert card.name == name
    assert card.reader.name in registry.table("reader")
    assert card.licence_line.startswith(card.licence.name)
    assert card.source.url or card.source.steps or card.folder is None, "it does not say where to get it"
    assert all(defect.handling for defect in card.defects)
    if card.spacing.um is None:
        assert card.spacing.provenance == "unknown"
    else:
        assert card.spacing.provenance != "unknown"
    if isinstance(card.splits, str):
        assert (cards.dataset_files()[name].parent / card.splits).is_file()


def test_a_card_is_found_by_name_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="zoo data init"):
        cards.dataset_card(tmp_path)
    file = tmp_path / cards.CARD_NAME
    file.write_text(CARD)
    assert cards.dataset_card(tmp_path) == cards.dataset_card(file)
    assert cards.dataset_card(str(tmp_path)).reader.name == "folder"
    with pytest.raises(UserError, match="Did you mean glas"):
        cards.dataset_card("galas")


def test_a_folder_that_is_not_there_says_from_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"mine/tiles: there is no such folder, seen from {tmp_path}"):
        cards.dataset_card("mine/tiles")
    with pytest.raises(UserError, match=r"/mine/tiles: there is no such folder\.$"):
        cards.dataset_card(tmp_path / "mine" / "tiles")


def test_a_card_that_changes_is_read_again(tmp_path: Path) -> None:
    import os

    file = tmp_path / cards.CARD_NAME
    file.write_text(CARD)
    assert cards.dataset_card(file).summary == "Mine."
    file.write_text(CARD.replace("Mine.", "Yours."))
    os.utime(file, (1, 1))
    assert cards.dataset_card(file).summary == "Yours."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("summary: Mine.", "sumary: Mine."), ':3: sumary: unknown key "sumary". Did you mean summary?'),
        (("kind: instances", "kind: instance"), ':7: truths.nuclei.kind: "instance" is not one of'),
        (("allows: [research]", "allows: [everything]"), ":5: licence.allows.0: "),
        (("name: mine", "name: My data"), ":2: name: "),
        (("zoo: 1", "zoo: 2"), ":1: zoo: "),
        (("truths:", "spacing: {um: -1}\ntruths:"), ":6: spacing.um: -1"),
    ],
)
def test_wrong_cards(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    file = tmp_path / "zoo-dataset.yaml"
    file.write_text(CARD.replace(*change))
    with pytest.raises(Problems) as caught:
        cards.dataset_card(file)
    assert message in str(caught.value)


# --- where things lie -------------------------------------------------------------------------------------------------


def test_the_environment_goes_before_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    monkeypatch.setenv("ZOO_CONFIG", str(config))
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.delenv("ZOO_CACHE", raising=False)
    assert paths.data_root() is None
    assert "histozoo" in str(paths.cache_root())
    config.write_text(f"data: {tmp_path / 'd'}\ncache: {tmp_path / 'c'}\n")
    assert (paths.data_root(), paths.cache_root()) == (tmp_path / "d", tmp_path / "c")
    monkeypatch.setenv("ZOO_DATA", "~/elsewhere")
    assert paths.data_root() == Path.home() / "elsewhere"
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    assert paths.cache_root() == tmp_path
    config.write_text("dta: x\n")
    monkeypatch.delenv("ZOO_DATA")
    with pytest.raises(UserError, match="dta"):
        paths.data_root()


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)])
def test_offline(monkeypatch: pytest.MonkeyPatch, text: str, expected: bool) -> None:
    monkeypatch.setenv("ZOO_OFFLINE", text)
    assert paths.offline() is expected


def test_what_ships_is_found() -> None:
    assert (paths.shipped("recipes") / "quickstart.yaml").is_file()
    assert (paths.shipped("datasets") / "glas.yaml").is_file()


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(registry.TABLES))
def test_every_name_of_the_registry_leads_somewhere(kind: str) -> None:
    for name in registry.names(kind):
        assert registry.get(kind, name) is not None


def test_unknown_names_suggest() -> None:
    with pytest.raises(UserError, match=r'no family "unett"\. Did you mean unet\? See: zoo list families'):
        registry.get("family", "unett")


def test_importing_the_package_is_cheap_and_public_names_are_few() -> None:
    assert sorted(zoo.__all__) == ["__version__", "create", "load"]
    program = "import sys, zoo; zoo.load; zoo.create; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
