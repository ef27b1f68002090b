"""The benchmark end to end on tiny data: files, failures, leakage, baselines."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from zoo.bench import leakage, terminal
from zoo.bench.results import cell
from zoo.bench.run import bench, open_named
from zoo.data.datasets import open_dataset
from zoo.errors import Problems, UserError

TRAINED = [{"dataset": "squares", "split": "train", "groups": [], "images": ["field-4", "field-5"]}]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Bench into tmp_path/out."""

    def call(weights: list[str], datasets: list[str], **options: Any) -> Any:
        return bench(weights, datasets, tmp_path / "out", **options)

    return call


def test_every_file_says_the_same(run: Any, make_weights: Any, make_dataset: Any) -> None:
    results = run([make_weights("good"), make_weights("blind", level=0.05)], [make_dataset()])
    assert results.status == 0
    assert [row.weights for row in results.rows] == ["good", "blind", "otsu", "all-foreground"]
    assert results.value("good", "squares", "dice") > 0.95
    assert results.value("blind", "squares", "dice") < 0.1
    assert results.value("otsu", "squares", "object_f1") > 0.9
    assert results.value("all-foreground", "squares", "dice") == pytest.approx(2 * 300 / (300 + 48 * 48))
    out = results.out
    written = json.loads((out / "results.json").read_text())
    assert [row["images"] for row in written["rows"]] == [8] * 4
    assert written["rows"][0]["metrics"]["dice"]["value"] == results.value("good", "squares", "dice")
    table = parquet.read_table(out / "per_image.parquet")
    lines = list(csv.DictReader((out / "per_image.csv").read_text().splitlines()))
    assert len(lines) == table.num_rows == 32
    ours = [float(line["dice"]) for line in lines if line["weights"] == "good"]
    assert np.mean(ours) == pytest.approx(results.value("good", "squares", "dice"))
    assert lines[0]["group"] == "slide-2"
    text = (out / "table.md").read_text()
    mean = results.rows[0].means["dice"]
    assert f"| good | semantic | {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]† |" in text
    assert "Fewer than 5 groups" in text
    assert "the darker side is taken" in text


def test_a_terminal_shows_all_of_it_in_80_columns(run: Any, make_weights: Any, make_dataset: Any) -> None:
    long = "a-name-that-is-much-longer-than-a-line-can-bear"
    results = run([make_weights("good"), make_weights(long)], [make_dataset()])
    shown = terminal.tables(results)
    assert max(map(len, shown.splitlines())) <= 80
    assert "squares:test" in shown.splitlines()[0]
    for row in results.rows:
        for metric, mean in row.means.items():
            assert cell(mean, metric) in shown
    assert "Fewer than 5 groups" in shown


def test_the_report_stands_alone(run: Any, make_weights: Any, make_dataset: Any) -> None:
    results = run([make_weights("good")], [make_dataset(picture=True), make_dataset("inverted")])
    page = (results.out / "report.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert page.count("<figcaption>prediction</figcaption>") == 6  # best, median and worst of two tables
    for word in ("Overview", "squares:test", "inverted:test", "all-foreground", "<svg", "How this was measured"):
        assert word in page
    assert "the brighter side is taken" in page


def test_a_page_with_strange_names_is_still_a_page(run: Any, make_weights: Any, make_dataset: Any) -> None:
    results = run([make_weights("a<b>&c")], [make_dataset()], save_pictures=False)
    page = (results.out / "report.html").read_text()
    assert "a&lt;b&gt;&amp;c" in page
    assert "a<b>" not in page
    assert not (results.out / "pictures").exists()


def test_one_broken_image_does_not_lose_the_others(run: Any, make_weights: Any, make_dataset: Any) -> None:
    results = run([make_weights("good"), make_weights("picky", breaks_on=0.85)], [make_dataset("broken")])
    assert results.status == 1
    assert {(f.weights, f.image) for f in results.failures} >= {("good", "broken"), ("picky", "broken")}
    assert len(results.rows[0].cases) == 8
    assert "the file ends in the middle" in (results.out / "report.html").read_text()
    assert "the file ends in the middle" in (results.out / "table.md").read_text()


def test_a_prediction_that_fails_is_one_failure(run: Any, make_weights: Any, make_dataset: Any) -> None:
    results = run([make_weights("picky", breaks_on=0.5)], [make_dataset()])
    assert len(results.failures) == 8
    assert results.failures[0].error == "RuntimeError: too bright for this model"


def test_one_broken_weight_does_not_lose_the_others(
    run: Any, make_weights: Any, make_dataset: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(Path(make_weights("whole")).read_bytes()[:60])
    said: list[str] = []
    results = run([str(broken), make_weights("good")], [make_dataset()], say=said.append)
    assert results.status == 1
    assert [row.weights for row in results.rows][:1] == ["good"]
    (failure,) = results.failures
    assert (failure.weights, failure.image) == ("broken", "")
    assert any(line.startswith("failed: broken") for line in said)


def test_everything_wrong_is_said_at_once_and_nothing_is_started(run: Any, make_dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(Problems) as caught:
        run(["no-such-weights"], [make_dataset(), "no-such-data", f"{tmp_path / 'squares'}:tset"])
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert all(word in text for word in ("no-such-weights", "no-such-data", "tset"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no metric"):
        run(["x"], ["y"], metrics=["dicee"])
    with pytest.raises(UserError, match="no weights"):
        run([], ["y"])


@pytest.mark.parametrize(
    ("record", "leaks"),
    [
        (TRAINED, 2),
        ([{"dataset": "squares", "split": "train", "groups": ["slide-3"], "images": []}], 2),
        ([{"dataset": "squares", "split": "test", "groups": [], "images": []}], 8),
        ([{"dataset": "squares", "split": "train", "groups": ["slide-0"], "images": ["field-0"]}], 0),
        ([{"dataset": "others", "split": "test", "groups": ["slide-3"], "images": ["field-4"]}], 0),
    ],
)
def test_leakage_is_refused_or_marked(
    run: Any, make_weights: Any, make_dataset: Any, tmp_path: Path, record: Any, leaks: int
) -> None:
    weights, dataset = make_weights("seen", trained_on=record), make_dataset()
    if not leaks:
        assert run([weights], [dataset]).rows[0].leaks == 0
        return
    with pytest.raises(Problems, match=rf"{leaks} of 8 images.*--allow-leakage"):
        run([weights], [dataset])
    assert not (tmp_path / "out").exists()
    results = run([weights], [dataset], allow_leakage=True)
    assert results.rows[0].leaks == leaks
    for file in ("table.md", "report.html"):
        assert "seen ‡" in (tmp_path / "out" / file).read_text()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]["leaks"] == leaks


def test_weights_without_a_record_are_marked(run: Any, make_weights: Any, make_dataset: Any) -> None:
    results = run([make_weights("mute", trained_on=None)], [make_dataset()], save_pictures=False)
    assert "leakage cannot be checked" in (results.out / "table.md").read_text()


def test_metrics_that_do_not_fit_are_said_to_be_what_is_wrong(run: Any, make_weights: Any, make_dataset: Any) -> None:
    results = run([make_weights()], [make_dataset()], metrics=["coco_ap"])
    assert "none of the metrics chosen (coco_ap) fits" in results.failures[0].error


def test_outputs_of_three_kinds(run: Any, make_weights: Any, make_dataset: Any) -> None:
    weights = make_weights("all", says=["semantic", "instances", "clean"])
    results = run([weights], [make_dataset(picture=True)], limit=3)
    kinds = {row.output: row.kind for row in results.rows if not row.baseline}
    assert kinds == {"semantic": "semantic", "instances": "instances", "clean": "picture"}
    assert results.value("all", "squares", "pq") > 0.9
    ours, input_ = (results.value(name, "squares", "psnr") for name in ("all", "unchanged input"))
    assert ours > input_ + 5
    assert {len(row.cases) for row in results.rows} == {3}
    otsu = next(row for row in results.rows if row.weights == "otsu")
    assert {"dice", "pq"} <= set(otsu.means)


def test_distances_of_features_by_a_named_encoder(run: Any, make_weights: Any, make_dataset: Any) -> None:
    weights = make_weights("all", says=["clean"])
    names = ["psnr", "picture_fid@resnet10t:none", "picture_kid@resnet10t:none"]
    results = run([weights], [make_dataset(picture=True)], metrics=names, save_pictures=False)
    ours, unchanged = (row.means["picture_fid@resnet10t:none"] for row in results.rows)
    assert ours.value < unchanged.value
    assert ours.low is None  # equal pictures, as a resample holds them, would bias it
    assert ours.images == 8
    assert "picture_kid@resnet10t:none" in (results.out / "table.md").read_text()
    failed = run([weights], [str(Path(results.out).parent / "squares")], metrics=["picture_fid@no-such-encoder"])
    assert 'no encoder "no-such-encoder"' in failed.failures[0].error


def test_a_second_benchmark_in_the_same_folder_replaces_the_first(
    run: Any, make_weights: Any, make_dataset: Any
) -> None:
    dataset = make_dataset()
    first = run([make_weights("old")], [dataset])
    second = run([make_weights("new")], [dataset], metrics=["iou"])
    assert first.out == second.out
    assert not list(second.out.rglob("*old*"))
    assert "dice" not in (second.out / "per_image.csv").read_text()


def test_the_same_benchmark_gives_the_same_numbers(run: Any, make_weights: Any, make_dataset: Any) -> None:
    weights, dataset = make_weights("good"), make_dataset()
    first, second = (run([weights], [dataset], save_pictures=False).rows[0].means for _ in range(2))
    assert first == second


def test_a_word_behind_a_dataset_tells_its_reader_something() -> None:
    sites = open_named("phantom-nuclei:test+sites=a,b+test=32")
    assert len(sites) == 32
    assert {entry.center for entry in sites.index} == {"site-a", "site-b"}
    assert sites.split == "test+sites=a,b+test=32"
    assert open_named("phantom-nuclei+test=8").split == "test+test=8"
    assert {entry.center for entry in open_named("phantom-nuclei:test+sites=c+test=8").index} == {"site-c"}
    with pytest.raises(UserError, match="is not one of a, b, c"):
        open_named("phantom-nuclei:test+sites=q")
    record = [{"dataset": "phantom-nuclei", "split": "test"}]
    assert len(leakage.overlap(record, "phantom-nuclei", sites.split, sites.index)) == 32
    with pytest.raises(UserError, match="sites"):
        open_named("phantom-nuclei:test+sitez=a,b")


def test_a_fold_holds_the_images_that_training_left_out(tmp_path: Path) -> None:
    whole = open_dataset("phantom-glands", split="val", limit=None)
    parts = [open_named(f"phantom-glands:val@{k}/3") for k in range(3)]
    assert sorted(e.id for part in parts for e in part.index) == sorted(e.id for e in whole.index)
    trained = open_dataset("phantom-glands", split="val", fold=1, folds=3, part="train")
    assert not {e.id for e in trained.index} & {e.id for e in parts[1].index}
    assert parts[1].split == "val@1/3"
    record = [{"dataset": "phantom-glands", "split": "val"}]
    assert len(leakage.overlap(record, "phantom-glands", "val@1/3", parts[1].index)) == len(parts[1])
    with pytest.raises(UserError, match=r"NAME:SPLIT@FOLD/FOLDS"):
        open_named("phantom-glands:val@1")
    with pytest.raises(UserError, match="Expected 0 to 2"):
        open_named("phantom-glands:val@3/3")
