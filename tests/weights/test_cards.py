"""The shipped cards: true to their schema, honest about what is not known, and shown well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zoo import registry
from zoo.cards import read_weights_card
from zoo.cli import catalogue
from zoo.cli.main import main
from zoo.weights import page, store

SHIPPED = sorted([*store.BUNDLE.glob("*.yaml"), *store.CARDS.glob("*.yaml")], key=lambda path: path.stem)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_card(path: Path) -> None:
    card = read_weights_card(path)
    assert card.name == path.stem
    assert card.licence.code
    assert card.licence.weights.name
    assert card.source.kind == "bundled" or card.source.page or card.source.reason
    if card.family and card.source.kind not in ("bundled", "unavailable"):
        assert card.convert is not None, "a published family's file is in another format"
    if card.family in ("cerberus", "detr", "stardist", "translation", "miphei", "diffusion") and card.convert:
        assert card.convert.name in registry.table("converter"), "a family that is here converts its weights"
    if any(
        "NC" in name or "on-commercial" in name for name in (card.licence.weights.name, card.licence.weights.note or "")
    ):
        assert "commercial" not in card.licence.weights.allows
    lines = page.markdown(card).splitlines()
    assert lines[0] == f"## {card.name}"


def test_names_are_unique_and_defaults_too() -> None:
    index = store.card_index()
    assert all(len(files) == 1 for files in index.values())
    for name in index:
        store.resolve(name)
    assert {"quickstart", "nuclei-unet-mobile"} <= {n.split(".")[0] for n in index if store.card(n).default}


def test_the_page_of_the_documentation_is_made_from_the_cards(root: Path) -> None:
    cards = [read_weights_card(path) for path in SHIPPED]
    assert (root / "docs" / "weights.md").read_text() == page.overview(cards), "run: python tools/weights_page.py"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_lists_by_use_family_and_place(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    def names(*words: str) -> set[str]:
        status, out, _ = run(capsys, "list", "weights", "--json", *words)
        assert status == 0
        return {item["name"] for item in json.loads(out)}

    everything = names()
    assert everything == names("--licence", "any") == {path.stem for path in SHIPPED}
    commercial, research = names("--licence", "commercial"), names("--licence", "research")
    assert commercial < research < everything
    assert "uni.mahmoodlab" in research - commercial
    assert "virchow.paige" in commercial
    assert names("--licence", "cc-by-nc-nd") < research
    assert names("--usable-now") == {path.stem for path in store.BUNDLE.glob("*.yaml")}
    assert names("--family", "stardist", "--licence", "any") == {n for n in everything if "stardist-" in n}
    assert run(capsys, "list", "weights", "--family", "stardits")[2].count("Did you mean stardist") == 1
    assert run(capsys, "list", "weights", "--licence", "apache2")[::2] == (
        2,
        'zoo list weights: --licence: no licence "apache2". Did you mean Apache-2.0? See: zoo list weights\n',
    )
    assert "Expected research, commercial, " in run(capsys, "list", "weights", "--licence", "bogus")[2]


def test_a_list_says_both_licences_and_how(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    lines = {line.split()[0]: line for line in run(capsys, "list", "weights")[1].splitlines()}
    assert "pull" in lines["stardist-versatile-he.published"]
    assert "not stated; code BSD-3-Clause" in lines["stardist-versatile-he.published"]
    assert "gated" in lines["uni.mahmoodlab"]
    assert "by hand" in lines["kimianet.published"]
    assert "never" in lines["pluto.pathai"]
    assert max(map(len, lines.values())) <= 80


@pytest.mark.parametrize(
    "name", ["nuclei-unet-mobile.dsb2018", "stardist-versatile-he", "uni", "pluto", "pixcell-256.published"]
)
def test_a_page_in_a_terminal(capsys: pytest.CaptureFixture[str], name: str) -> None:
    status, out, _ = run(capsys, "show", name)
    assert status == 0
    assert f"weights {name}" in out
    assert "Licence" in out
    long = [line for line in out.splitlines() if len(line) > 80 and "https://" not in line and not line.startswith("/")]
    assert not [line for line in long if "SHA-256" not in line]


def test_markdown_and_json(capsys: pytest.CaptureFixture[str], write_card: Any) -> None:
    assert run(capsys, "show", "uni", "--markdown")[1].startswith("## uni.mahmoodlab\n\nUNI")
    assert json.loads(run(capsys, "show", "uni", "--json")[1])["weights"]["state"] == "gated"
    assert run(capsys, "show", "unii", "--markdown")[0] == 2
    for tag in ("one", "two"):
        write_card(f"gland-x.{tag}", {"kind": "folder", "file": "a"})
    status, _, err = run(capsys, "show", "gland-x")
    assert status == 2
    assert "It has tags: gland-x.one, gland-x.two" in err
    assert run(capsys, "show", "pixcell-256", "--markdown")[1].startswith("## pixcell-256.published")  # the default


def test_broken_and_double_cards_hide_no_others(
    capsys: pytest.CaptureFixture[str], write_card: Any, shelf: Path
) -> None:
    write_card("quickstart.v1", {"kind": "folder", "file": "a"})
    (shelf / "broken.yaml").write_text("zoo: 1\nname: broken\n")
    lines = {line.split()[0]: line for line in run(capsys, "list", "weights")[1].splitlines()}
    assert "not readable" in lines["broken"]
    assert "not readable" in lines["quickstart.v1"]
    assert "here" in lines["nuclei-unet-mobile.dsb2018"]
    assert "several cards" in run(capsys, "show", "quickstart.v1")[2]
    assert set(catalogue.STATES) >= {"here", "pull"}


def test_a_foundation_encoder_is_pulled_and_converted(shelf: Path, tmp_path: Path) -> None:
    import torch

    from zoo import registry
    from zoo.encoders import build_encoder
    from zoo.errors import UserError
    from zoo.weights import store
    from zoo.weights.convert import Files
    from zoo.weights.gather import How
    from zoo.weights.pull import pull

    torch.manual_seed(1)
    donor = build_encoder("kimianet", weights="none").eval()
    served = {k.replace("net.features_", "module.model.0."): v for k, v in donor.state_dict().items()}
    served |= {"module.fc_4.weight": torch.ones(30, 1024), "module.fc_4.bias": torch.ones(30)}
    torch.save(served, tmp_path / "KimiaNetPyTorchWeights.pth")
    with pytest.raises(UserError, match="licence"):
        pull("kimianet", How(origin=str(tmp_path)))
    found = pull("kimianet", How(origin=str(tmp_path), accept=True))
    shapes, meta = store.read_shapes(found.path)
    assert (len(shapes), meta["encoder"]) == (725, "kimianet")
    made = build_encoder("kimianet", weights="published").eval()
    assert made.weights == "kimianet.published"
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in donor.state_dict().items())
    torch.save({"patch_embed.proj.weight": torch.ones(4, 3, 16, 16)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"its layout is that of timm\. Expected densenet"):
        registry.get("converter", "kimianet")(Files(tmp_path, tmp_path / "other.pth"))


def test_an_encoders_card_names_its_weights_in_a_recipe(
    write_card: Any, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from zoo.encoders import build_encoder
    from zoo.errors import UserError
    from zoo.weights.gather import How
    from zoo.weights.pull import pull

    torch.manual_seed(1)
    donor = build_encoder("test_resnet")
    torch.save({k.removeprefix("net."): v for k, v in donor.state_dict().items()}, tmp_path / "w.pth")
    write_card(
        "tiny.lab", {"kind": "manual", "page": "https://x.org"}, family=None, encoder="test_resnet", convert=None
    )
    with pytest.raises(UserError, match=r'weights "tiny\.lab" are not on this machine'):
        build_encoder("test_resnet", weights="tiny.lab")
    pull("tiny.lab", How(origin=str(tmp_path / "w.pth")))
    found = build_encoder("test_resnet", weights="tiny.lab").state_dict()
    assert all(torch.equal(v, found[k]) for k, v in donor.state_dict().items())
    with pytest.raises(UserError, match=r"quickstart.*: does not fit encoder test_resnet: .* has this encoder"):
        build_encoder("test_resnet", weights="quickstart.v1")
    with pytest.raises(UserError, match="are those of the first stage of diffusion"):
        build_encoder("test_resnet", weights="vae-sd3-5.stabilityai")
