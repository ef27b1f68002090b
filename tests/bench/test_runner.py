"""The runner: kept predictions, processes that die alone, ensembles, perturbations, centres, operating points."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.bench import processes, work
from zoo.bench.cache import Cache, Kept, key_of, settled
from zoo.bench.open import members_of
from zoo.bench.run import bench
from zoo.bench.work import Outcome, Settings, Unit, Weights
from zoo.data.datasets import open_dataset
from zoo.errors import Problems, UserError
from zoo.families import build
from zoo.inference.averaged import average
from zoo.types import (
    BoxesPrediction,
    InstancesPrediction,
    LabelPrediction,
    PicturePrediction,
    Sample,
    SemanticPrediction,
)

UNET = {
    "encoder": "resnet10t",
    "decoder": {"name": "unet", "arguments": {"channels": [8, 8, 8, 8, 8]}},
    "classes": ["background", "square"],
    "channels": ["red", "green", "blue"],
    "encoding": "rgb8",
    "tile": 64,
    "margin": 0,
}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def call(weights: list[str], datasets: list[str], **options: Any) -> Any:
        return bench(weights, datasets, tmp_path / "out", save_pictures=False, **options)

    return call


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count predictions."""
    calls: list[int] = []
    real = work.registry.get

    def get(kind: str, name: str) -> Any:
        found = real(kind, name)
        if kind != "engine":
            return found

        def predict(*args: Any, **options: Any) -> Any:
            calls.append(1)
            return found(*args, **options)

        return predict

    monkeypatch.setattr(work.registry, "get", get)
    return calls


def test_the_same_is_predicted_once(
    run: Any, make_weights: Any, make_dataset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights, dataset = make_weights("good"), make_dataset()
    calls = counted(monkeypatch)
    first = run([weights], [dataset])
    assert len(calls) == 8
    again = run([weights], [dataset], metrics=["iou", "object_f1@0.7"])
    assert len(calls) == 8
    assert again.rows[0].means["iou"] == first.rows[0].means["iou"]
    assert "object_f1@0.7" in (tmp_path / "out" / "per_image.csv").read_text()
    renamed = tmp_path / "other-name.safetensors"
    renamed.write_bytes(Path(weights).read_bytes())
    run([str(renamed)], [dataset])
    assert len(calls) == 8  # by content, not by name
    run([make_weights("other", level=0.4)], [dataset])
    run([weights], [dataset], batch=2)
    assert len(calls) == 24
    run([weights], [dataset], cache=False)
    assert len(calls) == 32


def test_a_benchmark_that_was_broken_off_goes_on(
    run: Any, make_weights: Any, make_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, dataset = make_weights("good"), make_dataset()
    calls = counted(monkeypatch)
    real, seen = work.score.judge, []

    def broken(*args: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(work.score, "judge", broken)
    with pytest.raises(KeyboardInterrupt):
        run([weights], [dataset])
    assert len(calls) == 4
    found = run([weights], [dataset])
    assert len(calls) == 8
    assert len(found.rows[0].cases) == 8
    assert found.rows[0].seconds is not None


def predictions() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    p = rng.random((2, 6, 7)).astype(np.float32)
    ints = np.arange(42, dtype=np.int32).reshape(6, 7) % 3
    box = rng.random((2, 4)).astype(np.float32)
    return {
        "map": SemanticPrediction(p.argmax(0).astype(np.uint8), ("background", "a"), p),
        "planes": SemanticPrediction(p > 0.5, ("a", "b"), None, True),
        "objects": InstancesPrediction(ints, ("a",), np.zeros(2, np.int64), np.array([0.5, 1], np.float32)),
        "boxes": BoxesPrediction(box, ("a", "b"), np.array([0, 1]), np.array([0.3, 0.2], np.float32)),
        "picture": PicturePrediction(p, ("DAPI", "CD3"), "linear"),
        "label": LabelPrediction(1, ("a", "b"), np.array([0.2, 0.8], np.float32)),
    }


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    cache, kept = Cache(tmp_path), settled(Kept(predictions(), 0.25, 12.5))
    cache.put("ab" * 32, kept)
    found = cache.get("ab" * 32)
    assert found is not None
    assert (found.seconds, found.memory) == (0.25, 12.5)
    for name, prediction in kept.predictions.items():
        for field, value in vars(prediction).items():
            np.testing.assert_array_equal(getattr(found.predictions[name], field), value, strict=True)
    exact = predictions()["map"].probability
    np.testing.assert_allclose(found.predictions["map"].probability, exact, atol=1e-5)  # type: ignore[union-attr]
    file = next(tmp_path.rglob("*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    assert cache.get("ab" * 32) is None
    assert Cache(None).get("x") is None


def test_weaker_boxes_and_names_of_attributes_come_back(tmp_path: Path) -> None:
    weaker = predictions()["boxes"]
    values = {"size": ("small", "large")}
    strong = replace(weaker, attributes=np.array([[0], [1]]), attribute_values=values, weaker=weaker)
    Cache(tmp_path).put("cd" * 32, Kept({"boxes": strong}, 0.1, None))
    kept = Cache(tmp_path).get("cd" * 32)
    assert kept is not None
    found = kept.predictions["boxes"]
    assert isinstance(found, BoxesPrediction)
    assert found.attribute_values == values
    assert found.weaker is not None
    np.testing.assert_array_equal(found.weaker.xyxy, weaker.xyxy, strict=True)
    assert found.weaker.classes == weaker.classes


def test_a_key_changes_with_whatever_decides_a_prediction() -> None:
    image = np.zeros((3, 4, 4), np.uint8)
    sample = Sample("a", "b", image, spacing=(0.5, 0.5))
    key = key_of("w", sample, {"tile": 64})
    assert key == key_of("w", sample.with_(id="other", dataset="other"), {"tile": 64})
    others = [
        key_of("v", sample, {"tile": 64}),
        key_of("w", sample, {"tile": 32}),
        key_of("w", sample.with_(spacing=None), {"tile": 64}),
        key_of("w", sample.with_(image=image + 1), {"tile": 64}),
        key_of("w", sample.with_(image=image.astype(np.uint16)), {"tile": 64}),
    ]
    assert len({key, *others}) == 6


# --- processes --------------------------------------------------------------------------------------------------------

MORTAL = """
import os, time
from zoo.bench.results import Case
from zoo.bench.work import Judged, Level, Outcome
from zoo.families.score import Task

def judge(unit, say, begin):
    task = Task("out", "semantic", "t", ("a",), ("a",), ("dice",))
    judged = Judged(0, task, Level())
    say(f"threads {os.environ.get('OMP_NUM_THREADS')}")
    for number in range(4):
        begin(0, f"image-{number}")
        if (0, f"image-{number}") in unit.skip:
            continue
        if number in unit.settings.options.get("dies_on", ()):
            os.kill(os.getpid(), 9)
        judged.cases.append(Case(f"image-{number}", "g", {"dice": 1.0}))
    return Outcome([judged])
"""


def unit(label: str, tmp_path: Path, **options: Any) -> Unit:
    weights = Weights(label, (), work.leakage.Record(None, ()))
    return Unit(weights, (), Settings(options=options), tmp_path)


def test_a_process_dies_alone_and_its_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mortal_work.py").write_text(textwrap.dedent(MORTAL))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(processes, "DEATHS", 2)
    import mortal_work  # type: ignore[import-not-found]

    said: list[str] = []
    units = [
        unit("whole", tmp_path),
        unit("mortal", tmp_path, dies_on=[1]),
        unit("hopeless", tmp_path, dies_on=[0, 1, 2, 3]),
    ]
    found = processes.run(units, mortal_work.judge, 2, said.append, threads=1)
    assert [len(o.judged[0].cases) if o.judged else 0 for o in found] == [4, 3, 0]
    assert "its process was ended (SIGKILL)" in found[2].failures[0].error
    assert any("mortal: the process was ended (SIGKILL) at image-1; going on" in line for line in said)
    assert "threads 1" in said


def test_judging_in_a_process_says_the_same_as_here(tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit": 1, "save_pictures": False, "mpp": "native", "metrics": ["dice", "pq"]}
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    isolated = bench([str(broken), "quickstart"], ["stardist-2d"], tmp_path / "a", jobs=2, cache=False, **options)
    here = bench(["quickstart"], ["stardist-2d"], tmp_path / "b", **options)
    assert [f.weights for f in isolated.failures] == ["broken"]
    for one, other in zip(isolated.rows, here.rows, strict=True):
        assert one.means == other.means
    if Path("/proc/self/clear_refs").exists():
        assert (here.rows[0].memory or 0) > 50


def test_ended_in_words() -> None:
    assert processes.ended(-11) == "SIGSEGV"
    assert processes.ended(3) == "status 3"


# --- averages ---------------------------------------------------------------------------------------------------------


def unets(tmp_path: Path, count: int = 2) -> list[str]:
    paths = []
    for seed in range(count):
        torch.manual_seed(seed)
        path = tmp_path / f"net-{seed}.safetensors"
        build.save(build.create("unet", UNET), path, recipe="net", seed=str(seed), trained_on=[])
        paths.append(str(path))
    return paths


def test_an_ensemble_and_its_views_average_probabilities(tmp_path: Path) -> None:
    first, second = (build.load(path) for path in unets(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def probability(family: Any, picture: Any) -> Any:
        return family.predict(picture).probability

    both = probability(average([first, second]), image)
    np.testing.assert_allclose(both, (probability(first, image) + probability(second, image)) / 2, atol=1e-5)
    views = [
        np.rot90(probability(first, np.rot90(image[:, ::-1] if flip else image, k).copy()), -k, (1, 2))[
            ..., :: -1 if flip else 1
        ]
        for k in range(4)
        for flip in (False, True)
    ]
    np.testing.assert_allclose(probability(average([first], "d4"), image), np.mean(views, 0), atol=1e-5)
    assert average([first]) is first
    chosen = average([first], "flips").predict(image, threshold=0.01)
    assert chosen.map.mean() > average([first], "flips").predict(image).map.mean()


def test_what_cannot_be_averaged_is_refused(tmp_path: Path, make_weights: Any) -> None:
    dark, net = build.load(make_weights("dark")), build.load(unets(tmp_path, 1)[0])
    with pytest.raises(UserError, match="cannot be averaged: they give different maps"):
        average([dark, net])
    with pytest.raises(UserError, match="its maps dark do not turn with the image"):
        average([dark], "d4")


def test_ensembles_seeds_and_pairs_in_the_tables(run: Any, make_dataset: Any, tmp_path: Path) -> None:
    a, b = unets(tmp_path)
    results = run([a, b, f"{a}+{b}"], [make_dataset()], limit=4)
    assert [row.weights for row in results.rows if not row.baseline] == ["net-0", "net-1", "net-0+net-1"]
    ((_, output, seeds),) = results.analysis.seeds
    assert (output, seeds.seeds) == ("semantic", ("0", "1"))
    assert seeds.value == pytest.approx(np.mean([row.means["dice"].value for row in results.rows[:2]]))
    (pairs,) = results.analysis.comparisons.values()
    assert len(pairs) == 6  # three weights and the best baseline
    text = (results.out / "table.md").read_text()
    assert "Paired by group, dice" in text
    assert "| net | semantic | 0, 1 | dice |" in text
    assert "no p can be below" in text
    assert results.analysis.ranking is not None
    written = json.loads((results.out / "results.json").read_text())
    assert len(written["comparisons"]) == 6
    assert written["seeds"][0]["between_seeds"] == pytest.approx(seeds.between_seeds)


def test_names_of_ensembles(tmp_path: Path) -> None:
    plus = tmp_path / "a+b.safetensors"
    plus.write_bytes(b"")
    assert members_of(str(plus)) == [str(plus)]
    assert members_of("a+b") == ["a", "b"]


# --- robustness, centres, operating points ----------------------------------------------------------------------------


def test_curves_under_perturbations(run: Any, make_weights: Any, make_dataset: Any) -> None:
    results = run([make_weights("good")], [make_dataset()], limit=2, robustness=["brightness", "blur", "magnification"])
    curves = {c.perturbation: c for c in results.analysis.curves}
    assert set(curves) == {"brightness", "blur", "magnification"}
    bright = curves["brightness"]
    assert bright.heights[bright.levels.index(1.0)] == results.rows[0].means["dice"]
    assert bright.heights[0].value < 0.5  # at 0.6 white counts as dark
    assert bright.area.value == pytest.approx(
        np.mean([(bright.heights[i].value + bright.heights[i + 1].value) / 2 for i in range(4)])
    )
    assert bright.kept < 1
    assert min(h.value for h in curves["magnification"].heights) > 0.9  # the truth goes with the image
    assert len({row.weights for row in results.rows if not row.baseline}) == 1
    assert "| brightness | output | metric | 0.6 |" in (results.out / "table.md").read_text()
    page = (results.out / "report.html").read_text()
    assert "Out of focus" in page
    with pytest.raises(UserError, match='no perturbation "blurr"'):
        run([make_weights("other")], ["squares"], robustness=["blurr"])


def test_an_operating_point_is_chosen_elsewhere_and_carried(run: Any, make_dataset: Any, tmp_path: Path) -> None:
    (path,) = unets(tmp_path, 1)
    results = run([path], [f"{make_dataset()}:test"], operating_on=f"{tmp_path / 'squares'}:train", metrics=["dice"])
    (point,) = results.analysis.points
    assert point.dataset == "squares"
    assert point.value >= point.before
    assert point.value == max(v for _, v in point.tried)
    carried = build.load(point.file)
    assert carried.options.threshold == point.options["threshold"]
    assert json.loads(carried.weights_metadata["operating"])["split"] == "train"
    own = bench([point.file], [f"{tmp_path / 'squares'}:test"], tmp_path / "second", metrics=["dice"])
    assert own.rows[0].means == results.rows[0].means
    assert "Operating points" in (results.out / "report.html").read_text()
    with pytest.raises(UserError, match="are among those that thresholds would be chosen on"):
        run([path], [f"{tmp_path / 'squares'}:test"], operating_on=f"{tmp_path / 'squares'}:all")


def test_a_model_without_a_threshold_says_so(run: Any, make_weights: Any, make_dataset: Any, tmp_path: Path) -> None:
    results = run([make_weights("good")], [f"{make_dataset()}:test"], operating_on=f"{tmp_path / 'squares'}:train")
    assert results.analysis.notes == ("good: the model has no threshold to choose.",)
    assert results.status == 0


def test_centres_stand_apart(run: Any, make_weights: Any, make_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import registry

    reader = registry.get("reader", "dark-squares")
    real = reader.read

    def with_center(self: Any, entry: Any) -> Any:
        return real(self, entry).with_(center="east" if entry.id < "field-6" else "west")

    monkeypatch.setattr(reader, "read", with_center)
    results = run([make_weights("good")], [make_dataset()])
    row, metric, means = results.analysis.centres[0]
    assert (row.weights, metric, sorted(means)) == ("good", "dice", ["east", "west"])
    assert means["west"].images + means["east"].images == 8
    assert "by centre" in (results.out / "table.md").read_text()


def test_bad_words_are_refused_before_anything_starts(run: Any, tmp_path: Path) -> None:
    for options, said in (({"tta": "d8"}, "no augmentation"), ({"jobs": -1}, "-1 processes")):
        with pytest.raises(UserError, match=said):
            run(["x"], ["y"], **options)
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"--limit: {limit} images"):
            run(["x"], ["y"], limit=limit)
    with pytest.raises(Problems, match="no-such"):
        run(["no-such+quickstart"], ["stardist-2d"])
    assert not (tmp_path / "out").exists()


def test_an_outcome_can_be_handed_over() -> None:
    import pickle

    dataset = open_dataset("stardist-2d")
    whole = Unit(Weights("x", (), work.leakage.Record((), ())), ((0, dataset),), Settings(), Path(os.sep))
    assert pickle.loads(pickle.dumps(whole)).datasets[0][1].name == "stardist-2d"
    assert pickle.loads(pickle.dumps(Outcome())).judged == []
