"""Published cases of stain tools: TIAToolbox, torchstain as EXAONEPath uses it, scikit-image, RandStainNA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zoo.cases import Case
from zoo.stain import colour, density, estimate
from zoo.stain.normalise import Look, augmented, restained


def answer(case: Case) -> Mapping[str, Any]:
    """Return what this build computes for a case of the system "stain"."""
    about = f"{case.source} {case.component}".casefold()
    for words, part in _PARTS.items():
        if words in about:
            return part(case)
    raise case.unknown()


def _image(case: Case, name: str) -> Any:
    return case.inputs[name].numpy()


def _stains(case: Case, find: Callable[[Any], Any]) -> dict[str, Any]:
    """A normaliser of stain matrices: source and target, their directions, amounts and the picture before storing."""
    looks, found = {}, {}
    for name in ("source", "target"):
        rgb = _image(case, name)
        matrix = find(rgb)
        amounts = estimate.concentrations(density.optical_density(rgb), matrix).reshape(-1, len(matrix))
        maxima = np.percentile(amounts, 99, axis=0)
        looks[name] = Look(matrix, maxima)
        found[f"stain_matrix_{name}"] = matrix
        found[f"max_c_{name}"] = maxima if name == "source" else maxima[None]
        found[f"concentrations_{name}"] = amounts
    source = density.optical_density(_image(case, "source"))
    values = _restained(source, looks["source"], looks["target"])
    return {**found, "normalised_float": values, "normalised": density.to_bytes(values)}


def _restained(density: Any, source: Look, target: Look) -> Any:
    """The published rule: whatever the factor is, it is used."""
    assert source.matrix is not None
    assert source.maxima is not None
    assert target.matrix is not None
    assert target.maxima is not None
    return restained(density, source.matrix, target.maxima / source.maxima, target.matrix)


def _macenko(case: Case) -> dict[str, Any]:
    said = case.configuration
    threshold, percentile = said.get("luminosity_threshold", density.TISSUE), said.get("angular_percentile", 99)
    return _stains(case, lambda rgb: estimate.macenko(estimate.tissue_density(rgb, threshold), percentile))


def _vahadane(case: Case) -> dict[str, Any]:
    said = case.configuration
    threshold, weight = said.get("luminosity_threshold", density.TISSUE), said.get("regularizer", 0.1)
    return _stains(case, lambda rgb: estimate.vahadane_tiatoolbox(estimate.tissue_density(rgb, threshold), weight))


def _fixed(case: Case) -> dict[str, Any]:
    said = case.configuration.get("matrix", case.configuration.get("stain_matrix"))
    matrix = estimate.RUIFROK if said is None else np.asarray(said, np.float64)
    return _stains(case, lambda _: matrix)


def _reinhard(case: Case) -> dict[str, Any]:
    source, target = (_image(case, name) for name in ("source", "target"))
    looks = {"source": colour.reinhard_moments(source), "target": colour.reinhard_moments(target)}
    found: dict[str, Any] = {f"lab_{name}": colour.to_space(_image(case, name), "lab") for name in looks}
    for name, (means, stds) in looks.items():
        found |= {f"means_{name}": means, f"stds_{name}": stds}
    return {**found, "normalised": colour.reinhard(source, looks["source"], looks["target"])}


def _mask(case: Case) -> dict[str, Any]:
    rgb, said = _image(case, "image"), case.configuration
    bounds = said.get("low_p", 2), said.get("high_p", 98)
    found: dict[str, Any] = {"od": density.optical_density(rgb), "contrast": density.stretched(rgb, *bounds)}
    for name in case.wanted:
        if name.startswith("mask_"):
            found[name] = density.tissue_mask(rgb, float(name.removeprefix("mask_")), *bounds).astype(np.uint8)
    return found


def _augment(case: Case) -> dict[str, Any]:
    """Outputs are called WHERE_MATRIX: tissue or all pixels, the given matrix or one that is estimated."""
    rgb, said = _image(case, "image"), case.configuration
    alpha, beta = _image(case, "alpha_beta").astype(np.float64).T
    tissue = density.tissue_mask(rgb, said.get("tissue_threshold", 0.85))
    found = {}
    for name in case.wanted:
        where, _, how = name.partition("_")
        seen = estimate.tissue_density(rgb)
        if how == "given":
            matrix = _image(case, "stain_matrix")
        elif how == "macenko":
            matrix = estimate.macenko(seen)
        elif how == "vahadane":
            matrix = estimate.vahadane_tiatoolbox(seen)
        else:
            raise case.unknown(f'the output "{name}"')
        found[name] = augmented(rgb, matrix, alpha, beta, tissue if where == "tissue" else None)
    return found


def _hed(case: Case) -> dict[str, Any]:
    from skimage import color

    hed = colour.to_space(_image(case, "image"), "hed")
    matrices = {"rgb_from_hed": estimate.RUIFROK_HED, "hed_from_rgb": np.linalg.inv(estimate.RUIFROK_HED)}
    return {"hed": hed, "rgb_back": color.hed2rgb(hed), **matrices}


def _randstainna(case: Case) -> dict[str, Any]:
    """Outputs are called SPACE_bgr, in the order of channels that the published code returns."""
    rgb, found = _image(case, "image"), {}
    for name in case.wanted:
        space, _, order = name.partition("_")
        picture = colour.retemplate(rgb, space.lower(), _image(case, f"{space}_template"))
        found[name] = picture[..., ::-1].copy() if order == "bgr" else picture
    return found


def _torchstain(case: Case) -> dict[str, Any]:
    said = case.configuration
    white, faint, percentile = said.get("Io", 240), said.get("beta", 0.15), said.get("alpha", 1)
    looks: dict[str, Look] = {}
    found: dict[str, Any] = {}
    for name in ("source", "target"):
        if name not in case.inputs:
            continue
        seen = estimate.torchstain_density(_image(case, name), white).reshape(-1, 3)
        matrix = estimate.torchstain_macenko(seen, faint, percentile)
        maxima = estimate.nearest_rank(estimate.concentrations(seen, matrix), 99)
        looks[name] = Look(matrix, maxima)
        found |= {f"HE_{name}": matrix.T.copy(), f"maxC_{name}": maxima}
    builtin = Look(np.asarray(said.get("HERef"), np.float64).T, np.asarray(said.get("maxCRef"), np.float64))
    source = estimate.torchstain_density(_image(case, "source"), white)
    for name, reference in (("normalised", looks.get("target")), ("normalised_default_reference", builtin)):
        if reference is not None and name in case.wanted:
            values = np.minimum(_restained(source, looks["source"], reference) * (white / 255), 255) / 255
            found[name] = np.moveaxis(values, -1, 0)
    return found


_PARTS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "stainaugment": _augment,
    "customnormalizer": _fixed,
    "ruifroknormalizer": _fixed,
    "macenkonormalizer": _macenko,
    "vahadanenormalizer": _vahadane,
    "reinhardnormalizer": _reinhard,
    "rgb2od": _mask,
    "rgb2hed": _hed,
    "randstainna": _randstainna,
    "exaonepath": _torchstain,
    "torchstain": _torchstain,
}
"""Words of a case's source -> what answers it; the first that fits."""
