"""Encoders compared by what their features know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from zoo.bench import encoders, terminal
from zoo.bench.encoders import Features
from zoo.cli.main import main
from zoo.errors import UserError


def features(count: int, seed: int, spread: float = 0.3, centres: tuple[str, ...] = ("a", "b")) -> Features:
    """Return features of three classes, shifted a little by the centre; two images a group."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    where = (np.arange(count) // 6) % len(centres)
    x = np.eye(8)[classes] + 0.2 * np.eye(8)[5 + where] + spread * rng.normal(size=(count, 8))
    labels = np.array([f"class {c}" for c in classes], object)
    groups = np.array([f"g{i // 2}" for i in range(count)], object)
    places = np.array([centres[w] for w in where], object)
    return Features(x.astype(np.float32), [f"i{i}" for i in range(count)], labels, groups, places)


def test_the_nearest_by_a_slow_twin() -> None:
    train, test = features(31, 0, 0.8), features(17, 1, 0.8)
    found = encoders.nearest(train, test, k=5)
    for row, guess in zip(test.x, found, strict=True):
        angle = [-(row @ r) / np.linalg.norm(row) / np.linalg.norm(r) for r in train.x]
        votes = [train.labels[i] for i in sorted(range(31), key=lambda i: angle[i])[:5]]
        assert guess == min(set(votes), key=lambda c: (-votes.count(c), c))


def test_robustness_by_a_slow_twin() -> None:
    test = features(40, 2, 0.6)
    value, so, os_ = encoders.robustness(test, k=7)
    unit = test.x / np.linalg.norm(test.x, axis=1, keepdims=True)
    lists = []
    for i in range(40):
        order = sorted(range(40), key=lambda j: float(np.sum((unit[i] - unit[j]) ** 2)))
        lists.append([j for j in order if test.groups[j] != test.groups[i]][:7])
    same, other = [], []
    for i, row in enumerate(lists):
        pairs = [(test.labels[j] == test.labels[i], test.centres[j] == test.centres[i]) for j in row]
        same.append(pairs.count((True, False)))
        other.append(pairs.count((False, True)))
    assert (list(so), list(os_)) == (same, other)
    assert value == pytest.approx(sum(same) / (sum(same) + sum(other)))


class Card:
    name = "d"


class Data:
    card, split = Card, "test"


def test_rows_have_intervals_over_groups_and_tell_good_features_from_noise(tmp_path: Path) -> None:
    rows = []
    for name, spread in (("good", 0.2), ("noise", 50.0)):
        rows += encoders.rows_of(name, Data, features(60, 3, spread), features(48, 4, spread))  # type: ignore[arg-type]
    at = {(row.weights, row.output, metric): mean for row in rows for metric, mean in row.means.items()}
    for output, metric in (
        ("linear probe", "balanced_accuracy"),
        ("k-NN (k = 11)", "balanced_accuracy"),
        ("neighbours (k = 11)", "robustness_index"),
    ):
        good, noise = at["good", output, metric], at["noise", output, metric]
        assert good.value > 0.9 > noise.value
        assert good.low is not None
        assert good.high is not None
        assert good.low <= good.value <= good.high
        assert (good.images, good.groups) == (48, 24)
    assert at["noise", "k-NN (k = 11)", "balanced_accuracy"].value < 0.6
    assert rows[0].cases[4].words == {"class": "class 1", "found": "class 1"}
    found = encoders._published(rows, [], {"device": "cpu", "seed": 0}, tmp_path)
    ((pair,),) = found.analysis.comparisons.values()
    assert (pair.first, pair.second, pair.metric) == ("good", "noise", "label_accuracy")
    assert pair.difference.value > 0.4
    assert pair.p < 0.001
    assert max(map(len, terminal.tables(found).splitlines())) <= 80


def test_what_needs_more_than_there_is_is_left_out() -> None:
    few = features(12, 3, centres=("a",))
    assert encoders.rows_of("one", Data, None, few) == []  # type: ignore[arg-type]
    (row,) = encoders.rows_of("one", Data, None, features(24, 3))  # type: ignore[arg-type]
    assert row.metrics == ("robustness_index",)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    words = ["bench", "--encoders", "test_vit:none", "test_resnet:none", "--mpp", "native", "--limit", "6"]
    words += ["--datasets", "phantom-patches:test+size=64+sites=a,b", "--out", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert f"report {tmp_path / 'report.html'}" in said.out
    assert "random weights, not pretrained" in " ".join(said.out.split())
    values = json.loads((tmp_path / "results.json").read_text())
    assert {row["weights"] for row in values["rows"]} == {"test_vit:none", "test_resnet:none"}
    page = (tmp_path / "table.md").read_text()
    assert "| test_vit:none | linear probe |" in page
    assert "; mean over images (balanced_accuracy: counted over all together), 95 % interval" in page
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Encoders</h1>" in page
    assert "2 encoders" in page
    assert page.count("test_resnet:none") > 4
    table = parquet.read_table(tmp_path / "per_image.parquet").to_pylist()
    assert len(table) == 2 * 2 * 6  # two encoders, two probes, six images of one centre
    right = [line for line in table if line["output"] == "linear probe"]
    assert all(line["label_accuracy"] == float(line["class"] == line["found"]) for line in right)
    assert (tmp_path / "per_image.csv").read_text().count("\n") == 1 + len(table)
    monkeypatch.setattr(encoders, "collect", None)  # features are found again
    assert main(words) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["rows"] == values["rows"]


def test_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, few = ["--out", str(tmp_path)], ["--limit", "2"]
    for words, said in (
        (["--encoders", "resnet5O", "--datasets", "phantom-patches"], "Did you mean resnet50"),
        (["--encoders", "uni", "--datasets", "phantom-patches", "--mpp", "native"], "Accept the terms at"),
        (
            ["--encoders", "test_vit:none", "uni", "--datasets", "phantom-patches", "--mpp", "native"],
            "Accept the terms",
        ),
        (["--encoders", "test_vit:none", "uni", "--recipe", "quickstart"], "Accept the terms at"),
        (["--encoders", "resnet18:none"], "Add --datasets"),
        (["--encoders", "resnet18:none", "--weights", "a", "--datasets", "b"], "Leave out"),
        (["--encoders", "resnet18:none", "resnet18:none", "--datasets", "phantom-patches"], "named twice"),
        (
            ["--encoders", "test_vit:none", "--datasets", "phantom-smear", "--mpp", "native", *few],
            "images of one class only",
        ),
    ):
        assert main(["bench", *words, *out]) == 2
        told = capsys.readouterr()
        assert said in told.err
        assert "test_vit:none: phantom-patches" not in told.err + told.out  # nothing is computed before all is checked
    with pytest.raises(UserError, match="not available"):
        encoders.named("musk")
    assert encoders.named("uni").label == "uni:published"
    assert encoders.named("smp:resnet34").label == "smp:resnet34:imagenet"
