"""Box algebra and positions against slow, obvious twins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.nn.boxes import inverse_sigmoid, pairwise_overlaps, short_side, to_centres, to_corners
from zoo.nn.positions import resize_padding, sine_positions, token_centres, valid_ratio

numbers = st.floats(0.0, 1.0, allow_nan=False, width=32)
box = st.tuples(numbers, numbers, st.floats(0.015625, 1, width=32), st.floats(0.015625, 1, width=32))


@given(box, box)
def test_overlaps(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (one, other)
    )
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    iou, giou = pairwise_overlaps(to_corners(torch.tensor([one])), to_corners(torch.tensor([other])))
    assert float(iou) == pytest.approx(shared / union, abs=1e-4)
    assert float(giou) == pytest.approx(shared / union - (hull - union) / hull, abs=1e-4)
    assert -1 <= float(giou) <= float(iou) + 1e-6
    torch.testing.assert_close(to_centres(to_corners(torch.tensor([one]))), torch.tensor([one]), atol=1e-5, rtol=1e-5)


def test_the_inverse_of_the_sigmoid_ends_somewhere() -> None:
    x = torch.tensor([-1.0, 0.0, 0.3, 1.0, 2.0])
    found = inverse_sigmoid(x)
    assert found[2].item() == pytest.approx(math.log(0.3 / 0.7), abs=1e-5)
    assert torch.isfinite(found).all()
    assert found[0] == found[1] == -found[4]


@pytest.mark.parametrize(
    ("given", "expected"),
    [((640, 480, 240, None), (320, 240)), ((480, 640, 800, 1333), (800, 1066)), ((100, 400, 800, 1333), (333, 1332))],
)
def test_short_side(given: tuple[int, int, int, int | None], expected: tuple[int, int]) -> None:
    assert short_side(*given) == expected


def test_positions_count_what_is_no_padding() -> None:
    padding = torch.zeros(1, 4, 6, dtype=torch.bool)
    padding[:, 3:], padding[:, :, 4:] = True, True
    found = sine_positions(padding, 4)
    assert found.shape == (1, 8, 4, 6)
    for row in range(3):
        for column in range(4):
            y = (row + 0.5) / (3 + 1e-6) * 2 * math.pi
            x = (column + 0.5) / (4 + 1e-6) * 2 * math.pi
            expected = [f(v / 10000 ** (2 * k / 4)) for v in (y, x) for k in (0, 1) for f in (math.sin, math.cos)]
            assert found[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)
    assert valid_ratio(padding)[0].tolist() == pytest.approx([4 / 6, 3 / 4])
    smaller = resize_padding(padding, (2, 3))
    assert smaller.tolist() == [[[False, False, True], [False, False, True]]]
    ratios = torch.stack([valid_ratio(padding), valid_ratio(smaller)], 1)
    centres = token_centres([(4, 6), (2, 3)], ratios)
    assert centres.shape == (1, 30, 2)
    assert centres[0, 3].tolist() == pytest.approx([3.5 / 4, 0.5 / 3])
