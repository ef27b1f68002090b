"""Mistakes read `file:line: where: what`, and unknown words name their nearest neighbours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import DataError, Interrupted, Problem, Problems, UserError, ZooError, nearest, suggest


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.yaml", 3, "train.epochs", "too few."), "a.yaml:3: train.epochs: too few."),
        (Problem("a.yaml", 0, "train", "gone."), "a.yaml: train: gone."),
        (Problem("", 7, "", "gone."), "gone."),
        (Problem("a.yaml", 2, "", "gone."), "a.yaml:2: gone."),
    ],
)
def test_a_problem_says_where(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_problems_are_one_user_error_a_line_each() -> None:
    error = Problems([Problem("a", 1, "x", "one."), Problem("a", 2, "y", "two.")])
    assert isinstance(error, UserError)
    assert str(error).splitlines() == ["a:1: x: one.", "a:2: y: two."]
    assert error.status == 2


def test_exit_statuses() -> None:
    assert (ZooError.status, UserError.status, DataError.status, Interrupted.status) == (1, 2, 1, 130)


def test_nearest_finds_typing_mistakes() -> None:
    words = ["resnet50", "resnet101", "convnext_tiny", "swin_tiny"]
    assert nearest("resnet5O", words)[0] == "resnet50"
    assert nearest("RESNET101", words)[0] == "resnet101"
    assert set(nearest("tiny", words)) == {"convnext_tiny", "swin_tiny"}
    assert nearest("zzzz", words) == []


@given(st.lists(st.text("abcdef_", min_size=1, max_size=8), min_size=1, max_size=20), st.data())
def test_a_known_word_is_its_own_nearest(words: list[str], data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(words))
    found = nearest(word, words)
    assert word in found
    assert len(found) == len(set(found)) <= 3
    assert set(found) <= set(words)


def test_suggest_never_lists_everything() -> None:
    many = [f"name{i}" for i in range(500)]
    assert suggest("qqq", many, "zoo list things") == "See: zoo list things"
    assert suggest("nam3", many).startswith("Did you mean name3")
    assert suggest("q", ["a", "b"]) == "Expected one of a, b."
    assert suggest("q", []) == ""
