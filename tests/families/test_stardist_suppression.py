"""Suppression against the package's own, pair by pair: the same objects, whatever the threads."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from zoo.errors import UserError
from zoo.families.stardist import decode, native, rays, suppress, targets

Stars = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]


def field(shape: tuple[int, ...], radii: tuple[float, ...], count: int, seed: int) -> NDArray[np.int32]:
    """Return a map of `count` ellipsoids that hardly overlap."""
    rng = np.random.default_rng(seed)
    places = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for label in range(1, count + 1):
        centre = rng.uniform(0, shape).reshape(-1, *[1] * len(shape))
        radius = (np.array(radii) * rng.uniform(0.8, 1.25, len(radii))).reshape(centre.shape)
        here = (((places - centre) / radius) ** 2).sum(0) <= 1
        if here.any() and (labels[here] > 0).mean() < 0.1:
            labels[here & (labels == 0)] = label
    return labels


def stars(labels: NDArray[np.int32], spread: int | rays.Rays, noise: float, least: float, seed: int) -> Stars:
    """Return distances, points and probabilities of noisy candidates, strongest first."""
    rng = np.random.default_rng(seed)
    small, _ = targets.compact(labels)
    dist = targets.distances(small, spread, (1,) * labels.ndim)
    dist = np.maximum(dist * (1 + noise * rng.standard_normal(dist.shape)), 1e-3).astype(np.float32)
    prob = targets.probability(labels)
    prob = (prob + 0.03 * rng.standard_normal(prob.shape)) * (prob > 0)  # no two are equal
    found = decode.candidates(prob, dist, (1,) * labels.ndim, least, 0)
    return found.dist, found.points, found.prob


@pytest.mark.parametrize(("noise", "seed"), [(0.05, 0), (0.15, 1), (0.3, 2)])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_polygons_are_those_of_the_package(noise: float, seed: int, threshold: float) -> None:
    dist, points, prob = stars(field((90, 110), (7, 9), 60, seed), 32, noise, 0.3, seed)
    theirs = native.module("nms").non_maximum_suppression_inds(dist, points, prob, thresh=threshold, verbose=0)
    assert len(points) > 1000
    np.testing.assert_array_equal(suppress.polygons(dist, points, threshold), np.flatnonzero(theirs))


@pytest.mark.parametrize(("noise", "least", "seed"), [(0.07, 0.8, 0), (0.25, 0.8, 1), (0.4, 0.85, 2)])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_polyhedra_are_those_of_the_package(noise: float, least: float, seed: int, threshold: float) -> None:
    spread = rays.golden_spiral(24, (2, 1, 1))
    dist, points, prob = stars(field((16, 40, 40), (3.5, 7, 7), 20, seed), spread, noise, least, seed)
    theirs = native.module("nms").non_maximum_suppression_3d_inds(
        dist, points, spread, prob, thresh=threshold, verbose=0
    )
    assert len(points) > 60
    np.testing.assert_array_equal(suppress.polyhedra(dist, points, spread, threshold), np.flatnonzero(theirs))


@pytest.mark.parametrize("kind", ["octo", "tetra", "cartesian"])
def test_other_rays_do_too(kind: str) -> None:
    arguments = {"n_level": 2} if kind != "cartesian" else {"n_rays_x": 7, "n_rays_z": 5}
    spread = rays.make(kind, arguments)
    dist, points, prob = stars(field((16, 24, 24), (5, 5, 5), 8, 3), spread, 0.1, 0.7, 0)
    theirs = native.module("nms").non_maximum_suppression_3d_inds(dist, points, spread, prob, thresh=0.4, verbose=0)
    np.testing.assert_array_equal(suppress.polyhedra(dist, points, spread, 0.4), np.flatnonzero(theirs))


def test_suppression_is_many_times_faster() -> None:
    """The package spends milliseconds a candidate of a volume; the issue asks for a fifth of that at most."""
    spread = rays.golden_spiral(32, (2, 1, 1))
    dist, points, prob = stars(field((20, 48, 48), (3.5, 7, 7), 30, 5), spread, 0.07, 0.6, 5)
    suppress.polyhedra(dist[:20], points[:20], spread, 0.3)  # compiles
    ours, theirs = [], []
    for _ in range(2):  # interleaved: this machine has other work
        begin = time.process_time()
        suppress.polyhedra(dist, points, spread, 0.3)
        middle = time.process_time()
        native.module("nms").non_maximum_suppression_3d_inds(dist, points, spread, prob, thresh=0.3, verbose=0)
        ours.append(middle - begin)
        theirs.append(time.process_time() - middle)
    assert 5 * min(ours) < min(theirs)


def test_nothing_and_one_are_no_special_cases() -> None:
    spread = rays.golden_spiral(8)
    assert len(suppress.polygons(np.zeros((0, 8), np.float32), np.zeros((0, 2)), 0.5)) == 0
    assert len(suppress.polyhedra(np.zeros((0, 8), np.float32), np.zeros((0, 3)), spread, 0.5)) == 0
    one = np.full((1, 8), 3, np.float32)
    assert suppress.polygons(one, np.array([[5, 5]]), 0.5).tolist() == [0]
    assert suppress.polyhedra(one, np.array([[5, 5, 5]]), spread, 0.5).tolist() == [0]
    same = np.repeat(one, 3, 0)
    assert suppress.polyhedra(same, np.full((3, 3), 5), spread, 0.5).tolist() == [0]
    far = np.array([[0, 0, 0], [10**6, 0, 0], [0, 10**6, 5]])
    assert suppress.polyhedra(same, far, spread, 0.5).tolist() == [0, 1, 2]


def test_too_many_candidates_are_an_error_and_no_hang() -> None:
    prob = np.full((40, 40), 0.9, np.float32)
    with pytest.raises(UserError, match=r"1296 candidates .* at most 1000.*Raise the threshold"):
        decode.candidates(prob, np.ones((8, 40, 40), np.float32), (1, 1), 0.5, most=1000)


def test_the_volume_is_that_of_the_tetrahedra() -> None:
    spread = rays.golden_spiral(400)
    ball = 4 / 3 * np.pi * 5**3
    assert abs(float(rays.volume(np.full(400, 5.0), spread)) / ball - 1) < 0.03
