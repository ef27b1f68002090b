"""`zoo check`: every mistake at once, with file, line and key; the corpus of wrong recipes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from zoo.cards import dataset_files
from zoo.errors import Problems
from zoo.recipe import load_document, recipe_files
from zoo.training.check import check, check_file, load_recipe_for_training, prepare

CORPUS = sorted((Path(__file__).parent / "bad_recipes").glob("*.yaml"))
GOOD = """zoo: 1
name: good
summary: Nothing is wrong.
family: unet
model: {encoder: resnet10t, merge: {nucleus: [epithelial, lymphocyte, fibroblast]}}
data:
  train: {datasets: phantom-nuclei, size: [64, 64], batch: 2}
  validate: {datasets: "phantom-nuclei:val", batch: 1}
train: {epochs: 1}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def expected_of(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of each `# expect LINE text` at a recipe's end; line 0 where any will do."""
    lines = re.findall(r"(?m)^# expect (?:(\d+) )?(.+)$", path.read_text())
    return [(int(line or 0), text) for line, text in lines]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_wrong_recipes(path: Path) -> None:
    expected = expected_of(path)
    assert expected
    found = check(path)
    shown = "\n".join(map(str, found))
    for line, text in expected:
        hits = [p for p in found if text in f"{p.where}: {p.what}" and (not line or p.line == line)]
        assert hits, f"not said: {line} {text}\nsaid:\n{shown}"
    assert len(found) == len(expected), shown
    for problem in found:
        assert problem.file == str(path)
        assert problem.line > 0
        assert len(problem.what) <= 300
        assert "\n" not in problem.what


def test_a_right_recipe(good: Path) -> None:
    assert check(good) == []
    plan = prepare(*load_document(good))
    assert plan.recipe.model["classes"] == ["background", "nucleus"]
    assert plan.recipe.model["channels"] == ["red", "green", "blue"]
    assert [card.name for card in plan.cards] == ["phantom-nuclei"]
    assert plan.family.name == "unet"


def test_prepare_refuses_a_wrong_one(good: Path) -> None:
    recipe, document = load_document(good, ["train.optimizer=adamx"])
    with pytest.raises(Problems, match="no optimizer"):
        prepare(recipe, document)


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_shipped_recipes_are_right(name: str) -> None:
    assert check(name) == []


@pytest.mark.parametrize("name", sorted(dataset_files()))
def test_shipped_cards_are_right(name: str) -> None:
    assert check_file(name) == []


def test_a_foundation_encoder_says_its_weights(good: Path) -> None:
    (problem,) = check(good, ["model.encoder=uni"])
    assert problem.where == "model.encoder"
    assert "no weights are said. Expected published" in problem.what
    assert check(good, ["model.encoder=uni", "model.encoder_weights=none"]) == []
    (problem,) = check(good, ["model.encoder=uni", "model.encoder_weights=imagenet"])
    assert "Write published (uni.mahmoodlab)" in problem.what


def test_overrides_are_checked_too(good: Path) -> None:
    (problem,) = check(good, ["train.optimizer.arguments.lr=fast"])
    assert str(problem).startswith("command line (train.optimizer.arguments.lr): train.optimizer.arguments.lr: 'fast'")


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ("model.loss={name: dice, arguments: {smooth: abc}}", "model.loss", "loss dice: smooth: 'abc' will not do"),
        ("model.loss={name: dice, arguments: {smooth: -1}}", "model.loss", "greater than or equal to 0"),
        ("model.loss={name: dice, arguments: {absent: foo}}", "model.loss", "absent: 'foo' will not do"),
        ("model.loss={name: dice, arguments: {reduction: none}}", "model.loss", "no number to learn from"),
        ("model.loss={name: cross_entropy, arguments: {weights: heavy}}", "model.loss", "Expected: a list"),
        ("model.loss={name: cross_entropy, arguments: {weights: [-1, 2]}}", "model.loss", "weights: [-1, 2] will not"),
        ("model.loss={name: cross_entropy, arguments: {weights: [1, 2, 3]}}", "model", "3 class weights for 2 classes"),
        ("model.loss={name: cross_entropy, arguments: {weights: [0, 0]}}", "model.loss", "all are 0"),
        ("model.loss={name: cross_entropy, arguments: {smoothing: 2}}", "model.loss", "less than 1"),
        ("model.loss={name: focal, arguments: {gamma: .inf}}", "model.loss", "finite number"),
        ("model.loss={name: tversky, arguments: {gamma: 0}}", "model.loss", "greater than 0"),
        ("model.loss={name: dice, weight: -1}", "model.loss", "weight: -1 will not do"),
        ("model.loss={name: dice, weight: .nan}", "model.loss.weight", "finite number"),
        ("model.class_weights=[0, 0]", "model", "class_weights: all are 0"),
        ("model.ignore=1", "model", "ignore: 1 is the index of a class"),
        ("model.merge={ignore: [epithelial]}", "model", "merge has no class beside the background"),
        ("model.encoder=5", "model.encoder", "5 will not do. Expected: a name, or {name, arguments}"),
        ("model.decoder={name: unet, arguments: {channels: abc}}", "model.decoder", "channels: 'abc' will not do"),
        ("model.decoder={name: unet, arguments: {channels: [16, 8, -4]}}", "model.decoder", "greater than 0"),
        ("model.decoder={name: unet, arguments: {channels: [16, 8, 4.5]}}", "model.decoder", "will not do"),
        ("model.decoder={name: unet, arguments: {interpolation: cubic}}", "model.decoder", "bicubic"),
        ("model.decoder={name: manet, arguments: {reduction: 0}}", "model.decoder", "greater than 0"),
        ("model.decoder={name: linknet, arguments: {depth: 0}}", "model.decoder", "greater than or equal to 1"),
        ("model.decoder={name: fpn, arguments: {channels: x}}", "model.decoder", "valid integer"),
        ("model.decoder={name: fpn, arguments: {dropout: 2}}", "model.decoder", "less than 1"),
        ("model.decoder={name: segformer, arguments: {channels: -1}}", "model.decoder", "greater than 0"),
        (
            "model.decoder={name: dpt, arguments: {reassembled: [8, 8]}}",
            "model.decoder",
            "reassembled: [8, 8] will not",
        ),
        ("model.decoder={name: deeplabv3plus, arguments: {rates: [0, 1, 2]}}", "model.decoder", "greater than 0"),
        ("model.decoder={name: dpt, arguments: {channels: [8]}}", "model.decoder", "valid integer"),
        ("model.decoder={name: unet, arguments: {channels: 5}}", "model.decoder", "Expected: a list"),
        (f"model.encoder_weights={__file__}", "model.encoder_weights", "the file is of no known kind"),
        (
            "train.optimizer={name: adamw, arguments: {betas: [0.9]}}",
            "train.optimizer.arguments.betas",
            "[0.9] will not",
        ),
        ("train.optimizer={name: adamw, arguments: {betas: [2, 3]}}", "train.optimizer.arguments.betas", "less than 1"),
        ("train.optimizer={name: sgd, arguments: {momentum: -1}}", "train.optimizer.arguments.momentum", "equal to 0"),
        ("train.optimizer={name: adam, arguments: {lr: .inf}}", "train.optimizer.arguments.lr", "finite number"),
        ("train.optimizer={name: adam, arguments: {lr: 1e30}}", "train.optimizer.arguments.lr", "below 1000"),
        (
            "train.optimizer={name: sgd, arguments: {nesterov: true, momentum: 0}}",
            "train.optimizer.arguments",
            "momentum",
        ),
        ("train.schedule={name: poly, arguments: {power: -1}}", "train.schedule.arguments.power", "greater than 0"),
        (
            "train.schedule={name: plateau, arguments: {patience: 0}}",
            "train.schedule.arguments.patience",
            "greater than",
        ),
        ("data.validate.datasets=stardist-he:all", "data.validate.datasets", "dataset stardist-he has no"),
        ("data.validate.datasets=phantom-glands", "data.validate.datasets", "phantom-glands"),
        ("stains=foo", "stains", 'no method "foo". See: zoo stain --help'),
        ("train.procedure=denoising", "train.procedure", "works on the family diffusion, not on unet"),
        ("train.procedure=embedding-flow", "train.procedure", "trains model.translator, which is not there"),
        ("train.procedure=mean-teacher", "train.procedure", "works on the family detr, not on unet"),
        ("train.monitor=loss/foo", "train.monitor", 'validation gives no "loss/foo"'),
        ("data.train.samples=1", "data.train.batch", "2 samples a step, but an epoch has 1"),
        ("data.train.datasets={name: phantom-nuclei, limit: 1}", "data.train.batch", "but an epoch has 1"),
        ("data.train.datasets={name: phantom-nuclei, weight: 0}", "data.train.datasets.weight", "greater than 0"),
        ("data.train.datasets=nothere", "data.train.datasets", 'no dataset "nothere"'),
    ],
)
def test_what_would_fail_in_training_is_said_before(good: Path, changes: str, where: str, what: str) -> None:
    (problem,) = check(good, [changes])
    assert problem.where == where
    assert what in problem.what


def test_what_nothing_moves_or_waits_for_is_said_before(good: Path) -> None:
    (problem,) = check(good, ["train.schedule=plateau", "data.validate=null"])
    assert "schedule plateau waits for validations, and there are none" in problem.what
    (problem,) = check(good, ["train=null", "stages=[{name: a, train: {epochs: 1}, freeze: [pyramid, decoder, head]}]"])
    assert "no parameter that may move" in problem.what
    assert check(good, ["train.monitor=loss/dice", "data.train.augment={name: flips}"]) == []


def test_batch_norm_wants_more_than_one_value(good: Path) -> None:
    small = ["data.train.batch=1", "data.train.size=[32, 32]"]
    (problem,) = check(good, small)
    assert problem.where == "data.train.size"
    assert "leaves batch norm one value a channel" in problem.what
    assert check(good, [*small, "model.norm=none"]) == []
    (problem,) = check(good, ["data.train.size=[32, 32]", "model.norm=instance"])
    assert "leaves instance norm one value a channel" in problem.what
    assert check(good, ["data.train.batch=1"]) == []


def test_weights_of_datasets_want_a_balance(good: Path) -> None:
    changes = ["data.train.datasets=[phantom-nuclei, {name: phantom-nuclei, weight: 2}]"]
    (problem,) = check(good, changes)
    assert problem.where == "data.train.balance"
    assert check(good, [*changes, "data.train.balance=datasets"]) == []


def test_a_batch_is_shared_out_evenly(good: Path) -> None:
    (problem,) = check(good, ["data.train.batch=10"], devices=4)
    assert problem.where == "data.train.batch"
    assert "10 samples cannot be shared out evenly over 4 devices. Write for example 8" in problem.what
    assert check(good, ["data.train.batch=12"], devices=4) == []


def test_data_are_asked_for_before_training_only(good: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "nowhere"))
    changes = ["data.train.datasets=glas", "data.validate.datasets=glas:testB", "model.merge={}"]
    assert check(good, changes) == []
    with pytest.raises(Problems, match=r"glas: the folder .*nowhere/glas is not there"):
        load_recipe_for_training(good, changes)


def test_weights_that_offline_cannot_be_had(good: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ZOO_CACHE", "HF_HOME", "TORCH_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    changes = ["model.encoder=resnet18", "model.encoder_weights=imagenet"]
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    assert check(good, changes) == []
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    (problem,) = check(good, changes)
    assert problem.where == "model.encoder_weights"


# --- the command ------------------------------------------------------------------------------------------------------


def test_any_number_of_files_of_any_kind(zoo: Any, good: Path, tmp_path: Path) -> None:
    card = tmp_path / "zoo-dataset.yaml"
    card.write_text(
        "zoo: 1\nname: mine\nsummary: Mine.\nreader: {name: foldr}\nlicence: {name: CC0-1.0, allows: [research]}\n"
        "truths:\n  nuclei: {kind: instance}\n"
    )
    weights = tmp_path / "w.yaml"
    weights.write_text("zoo: 1\nname: w.tag\nsummary: W.\nfamily: unet\nsource: {kind: bundeld}\n")
    done = zoo("check", good, card, weights, CORPUS[0], tmp_path / "absent.yaml", "glas")
    assert done.status == 2
    assert f"{good}: ok" in done.out
    assert "glas: ok" in done.out
    assert f'{card}:4: reader: no reader "foldr". Did you mean folder?' in done.err
    assert f'{card}:7: truths.nuclei.kind: "instance" is not one of' in done.err
    assert f'{weights}:5: source.kind: "bundeld" is not one of' in done.err
    assert f"{weights}:1: licence: the key is missing" in done.err
    assert str(CORPUS[0]) in done.err
    assert "absent.yaml: no such file, recipe or card" in done.err
    assert "Traceback" not in done.err


def test_all_is_well(zoo: Any, good: Path) -> None:
    done = zoo("check", good)
    assert (done.status, done.out, done.err) == (0, f"{good}: ok\n", "")


def test_for_machines(zoo: Any, good: Path) -> None:
    done = zoo("check", "--json", good, CORPUS[0])
    values = json.loads(done.out)
    assert values[str(good)] == []
    assert {"file", "line", "where", "what"} == set(values[str(CORPUS[0])][0])
    assert done.status == 2


def test_reader_arguments_of_a_card(tmp_path: Path) -> None:
    card = tmp_path / "zoo-dataset.yaml"
    card.write_text(
        "zoo: 1\nname: mine\nsummary: Mine.\nreader:\n  name: phantom\n  arguments:\n    dificulty: hard\n"
        "licence: {name: CC0-1.0, allows: [research]}\ntruths: {}\n"
    )
    (problem,) = check_file(card)
    assert str(problem).startswith(f'{card}:7: reader.arguments.dificulty: unknown key "dificulty"')
