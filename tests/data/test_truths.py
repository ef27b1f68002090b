"""Any truth as classes of the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import truths
from zoo.data.truths import IGNORE, as_planes, as_semantic, instance_boundaries, match_classes
from zoo.types import Boxes, Instances, Semantic

WBC = ("background", "cytoplasm", "nucleus")


def test_classes_are_matched_by_name() -> None:
    assert match_classes(WBC, ("background", "nucleus", "cytoplasm")) == {"background": 0, "cytoplasm": 2, "nucleus": 1}
    assert match_classes(WBC, ("background", "nucleus")) == {"background": 0, "cytoplasm": 0, "nucleus": 1}
    assert match_classes(("background", "gland"), ("background", "tumour")) == {"background": 0, "gland": 1}
    merged = match_classes(WBC, ("background", "cell"), {"cell": ["cytoplasm", "nucleus"]})
    assert merged == {"background": 0, "cytoplasm": 1, "nucleus": 1}
    ignored = match_classes(WBC, ("background", "nucleus"), {"ignore": ["cytoplasm"]})
    assert ignored == {"background": 0, "cytoplasm": None, "nucleus": 1}


def test_classes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r'nothing for the class "cell".*merge: \{cell: \[cytoplasm\]\}'):
        match_classes(WBC, ("background", "cell"))
    with pytest.raises(ValueError, match=r'no class "nucleos"\. Did you mean nucleus'):
        match_classes(WBC, ("background", "nucleus"), {"nucleos": ["nucleus"]})
    with pytest.raises(ValueError, match="of kind boxes has no class map"):
        as_semantic(Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)), ("rbc",), ("background", "rbc"))
    with pytest.raises(ValueError, match=r"holds the value 7, which is no class\. Expected 0 to 2"):
        as_semantic(Semantic(np.array([[0, 7]])), WBC, WBC)


@given(st.integers(0, 1000))
def test_semantic_maps_equal_their_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    given_map = rng.choice([0, 1, 2, 99], (6, 5))
    classes, merge = ("background", "nucleus", "rest"), {"rest": ["cytoplasm"], "ignore": []}
    found = as_semantic(Semantic(given_map, ignore=99), WBC, classes, merge)
    expected = np.vectorize({0: 0, 1: 2, 2: 1, 99: IGNORE}.get)(given_map)
    assert found.map.dtype == np.uint8
    assert found.ignore == IGNORE
    np.testing.assert_array_equal(found.map, expected)


def test_objects_become_classes() -> None:
    labels = np.array([[0, 4, 4], [9, 9, 2]], np.int32)
    plain = as_semantic(Instances(labels), ("nucleus",), ("background", "nucleus"))
    np.testing.assert_array_equal(plain.map, [[0, 1, 1], [1, 1, 1]])
    hidden = np.array([[True, False, False], [False, False, False]])
    typed = Instances(labels, classes={4: 1, 9: 2}, ignore=hidden)  # 2 has no class: not annotated
    found = as_semantic(typed, ("lymphocyte", "tumour"), ("background", "tumour", "lymphocyte"))
    np.testing.assert_array_equal(found.map, [[IGNORE, 2, 2], [1, 1, IGNORE]])
    one = as_semantic(typed, ("lymphocyte", "tumour"), ("background", "tumour"))
    np.testing.assert_array_equal(one.map, [[IGNORE, 0, 0], [1, 1, IGNORE]])


def test_planes_of_a_multi_label_model() -> None:
    found = as_planes(Semantic(np.array([[0, 1, 2, 9]]), ignore=9), WBC, ("nucleus", "cytoplasm"))
    np.testing.assert_array_equal(found, [[[0, 0, 1, IGNORE]], [[0, 1, 0, IGNORE]]])
    several = Semantic(np.array([[[1, 1]], [[0, 1]]], bool), multilabel=True)
    np.testing.assert_array_equal(as_planes(several, ("a", "b"), ("b", "a")), [[[0, 1]], [[1, 1]]])
    kept = as_semantic(several, ("a", "b"), ("a", "b"))
    assert kept.multilabel
    np.testing.assert_array_equal(kept.map, several.map)


def slow_boundary(labels: np.ndarray, width: int, outline: bool) -> np.ndarray:
    out = np.zeros(labels.shape, bool)
    H, W = labels.shape
    for i in range(H):
        for j in range(W):
            window = labels[max(0, i - width) : i + width + 1, max(0, j - width) : j + width + 1]
            others = set(window.ravel().tolist()) - {int(labels[i, j])}
            out[i, j] = labels[i, j] > 0 and bool(others if outline else others - {0})
    return out


@given(st.integers(0, 1000), st.integers(1, 3), st.booleans())
def test_boundaries_equal_their_slow_twin(seed: int, width: int, outline: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (4, 3)), np.ones((4, 4), int)).astype(np.int32)
    found = instance_boundaries(labels, width, "outline" if outline else "touching")
    np.testing.assert_array_equal(found, slow_boundary(labels, width, outline))


def test_foreground() -> None:
    assert truths.foreground(WBC) == ("cytoplasm", "nucleus")
