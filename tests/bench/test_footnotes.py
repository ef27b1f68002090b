"""What stands under a table."""

from __future__ import annotations

from zoo.bench.results import Row, footnotes
from zoo.bench.statistics import Mean


def row(weights: str, **undefined: int) -> Row:
    means = {metric: Mean(0.5, 0.4, 0.6, 20, 8, count) for metric, count in undefined.items()}
    return Row(weights, "d", "test", "semantic", "t", "semantic", tuple(means), (), means)


def test_images_left_out_are_one_sentence_however_many_rows_and_metrics() -> None:
    said = footnotes([row("a", dice=5, aji=0, pq=7), row("b", dice=9, aji=0, pq=7)])
    assert said == ["Images for which a metric is not defined are left out of its mean: dice 5 to 9, pq 7."]


def test_nothing_is_said_where_nothing_is_left_out() -> None:
    assert footnotes([row("a", dice=0)]) == []
