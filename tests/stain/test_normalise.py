"""Stains of single pictures: what is measured, what is done, and what is left alone."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stained import E, H, mixed, odd_pictures

from zoo.errors import UserError
from zoo.stain import colour, density, estimate
from zoo.stain.normalise import METHODS, MOST_GAIN, normaliser

FIXED = {"custom": {"matrix": [H, E]}}


def made(method: str, **more: Any) -> Any:
    return normaliser(method, **FIXED.get(method, {}), **more)


def test_optical_density_pixel_by_pixel() -> None:
    values = np.array([0, 1, 2, 127, 254, 255], np.uint8)
    expected = [max(-np.log(max(int(v), 1) / 255), 1e-6) for v in values]
    np.testing.assert_allclose(density.optical_density(values), expected, rtol=1e-12)


def test_tissue_is_what_is_dark_in_the_stretched_picture(stained: NDArray[Any]) -> None:
    mask = density.tissue_mask(stained)
    glass = stained.min(-1) > 240
    assert mask.any()
    assert not mask[glass].any()
    assert (density.tissue_mask(stained, 1.0) >= mask).all()


@pytest.mark.parametrize("method", ["macenko", "vahadane", "macenko-torchstain"])
def test_stains_that_were_mixed_in_are_found(method: str, stained: NDArray[Any]) -> None:
    look = made(method).measure(stained)
    assert look.note == ""
    truth = np.stack([H / np.linalg.norm(H), E / np.linalg.norm(E)])
    cosines = (look.matrix / np.linalg.norm(look.matrix, axis=1, keepdims=True) * truth).sum(1)
    assert np.degrees(np.arccos(cosines)).max() < 6, look.matrix


def test_concentrations_are_least_squares() -> None:
    rng = np.random.default_rng(1)
    matrix, seen = rng.random((2, 3)), rng.random((20, 3))
    expected = np.stack([np.linalg.lstsq(matrix.T, pixel, rcond=None)[0] for pixel in seen])
    np.testing.assert_allclose(estimate.concentrations(seen, matrix), expected, atol=1e-10)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_picture_normalised_to_itself_hardly_changes(method: str, stained: NDArray[Any]) -> None:
    result = made(method, target=stained)(stained)
    assert result.image.shape == stained.shape
    off = np.abs(result.image.astype(int) - stained)
    assert off.mean() < (12 if method in ("vahadane-tiatoolbox", "ruifrok") else 4)


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard", "ruifrok", "custom"])
def test_normalising_brings_pictures_together(method: str) -> None:
    """Two tiles that differ in the strength of their stains look alike afterwards."""
    one, two = mixed(1, eosin=0.7, haematoxylin=1.0), mixed(2, eosin=1.3, haematoxylin=1.9)
    change = made(method)
    before = np.abs(one.mean((0, 1)) - two.mean((0, 1))).sum()
    after = np.abs(change(one).image.mean((0, 1)) - change(two).image.mean((0, 1))).sum()
    assert after < 0.5 * before


@pytest.mark.parametrize("name", sorted(odd_pictures()))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_odd_pictures_neither_crash_nor_turn_to_noise(method: str, name: str) -> None:
    picture = odd_pictures()[name]
    result = made(method)(picture)
    assert result.image.dtype == np.uint8
    assert result.image.shape == picture.shape
    spread, before = (p.astype(float).mean(2).std() for p in (result.image, picture))
    assert spread <= MOST_GAIN * before + 2, "amplified"
    if name in ("blank", "white", "black"):
        assert np.array_equal(result.image, picture)
        assert "left as it is" in result.note
    if name == "one stain" and method in ("macenko", "vahadane", "macenko-torchstain"):
        assert "no two stains can be told apart" in result.note or "no pixel is tissue" in result.note
    if name == "pen":
        assert "pen marks" in result.note
        assert np.array_equal(result.image[20:40], picture[20:40])
        assert not np.array_equal(result.image[:20], picture[:20])


def test_pen_marks_do_not_change_what_is_measured() -> None:
    clean = mixed(5, (64, 64))
    marked = clean.copy()
    marked[20:40] = (20, 60, 200)
    without = np.concatenate([clean[:20], clean[40:]])
    change = normaliser("macenko")
    np.testing.assert_allclose(change.measure(marked).matrix, change.measure(without).matrix, atol=0.02)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_whatever_the_pixels_are_a_picture_comes_back(seed: int, height: int, width: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for method in ("macenko", "reinhard", "ruifrok"):
        result = normaliser(method)(picture)
        assert result.image.shape == picture.shape


def test_a_slide_has_one_look(stained: NDArray[Any]) -> None:
    change = normaliser("macenko")
    look = change.measure(stained)
    halves = [change.apply(half, look) for half in np.split(stained, 2)]
    assert np.array_equal(np.concatenate(halves), change.apply(stained, look))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_normaliser_survives_a_round_trip(method: str, stained: NDArray[Any]) -> None:
    first = made(method, target=stained)
    again = normaliser(**first.values())
    picture = mixed(7)
    assert np.abs(first(picture).image.astype(int) - again(picture).image).max() <= 1
    assert np.array_equal(pickle.loads(pickle.dumps(first))(picture).image, first(picture).image)


def test_mistakes_are_sentences(stained: NDArray[Any]) -> None:
    with pytest.raises(UserError, match=r'no method "maceko". Did you mean macenko'):
        normaliser("maceko")
    with pytest.raises(UserError, match="needs 2 or 3 rows of 3 numbers"):
        normaliser("custom", matrix=[[1, 2], [3, 4]])
    with pytest.raises(UserError, match="not independent"):
        normaliser("custom", matrix=[[1, 2, 3], [2, 4, 6]])
    with pytest.raises(UserError, match="finds its own"):
        normaliser("macenko", matrix=[[1, 0, 0], [0, 1, 0]])
    with pytest.raises(UserError, match="reference picture will not do: no stained tissue"):
        normaliser("macenko", target=np.full((8, 8, 3), 255, np.uint8))
    with pytest.raises(UserError, match="threshold 2"):
        normaliser("macenko", threshold=2)


def test_random_templates_have_the_statistics_that_they_are_drawn_from() -> None:
    rng = np.random.default_rng(0)
    look = colour.PUBLISHED["monuseg"]["lab"]
    for distribution in ("normal", "laplace", "uniform"):
        drawn = np.stack([colour.draw_template(rng, look, 0.0, distribution) for _ in range(4000)])
        np.testing.assert_allclose(drawn[..., 0].mean(0), look.mean_of_means, rtol=0.02)
        np.testing.assert_allclose(drawn[..., 1].mean(0), look.mean_of_stds, rtol=0.05)
        assert (drawn[..., 1] > 0).all()


def test_a_template_becomes_the_moments(stained: NDArray[Any]) -> None:
    template = np.array([[150.0, 30], [150, 8], [115, 6]])
    mean, std = colour.moments(colour.to_space(colour.retemplate(stained, "lab", template), "lab"))
    np.testing.assert_allclose(mean, template[:, 0], atol=4)
    np.testing.assert_allclose(std, template[:, 1], rtol=0.2)


def test_colours_of_a_tile_say_what_its_pixels_say() -> None:
    """A row a colour with how often it stands there, against a row a pixel; whole bytes are the same factorisation."""
    rng = np.random.default_rng(0)
    amounts = rng.gamma(2.0, 0.25, (4000, 2)) * (rng.random((4000, 2)) < 0.7)
    colours = np.exp(-amounts @ estimate.unit(estimate.RUIFROK)) * 255
    pixels = np.clip(colours + rng.normal(0, 2, colours.shape), 0, 255).astype(np.uint8)
    seen = density.optical_density(pixels)
    wanted = estimate.vahadane(seen)
    for bits, off in ((8, 1e-4), (6, 3e-3)):
        rows, counts = estimate.gathered(seen, pixels, bits)
        assert counts.sum() == len(pixels)
        np.testing.assert_allclose((rows * counts[:, None]).sum(0), seen.sum(0))
        assert np.abs(estimate.vahadane(rows, counts=counts) - wanted).max() < off
