"""What calls a cell positive: fitted on validation cells, carried in the options of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.families.base import Maps
from zoo.families.miphei.options import Calling
from zoo.metrics import calls
from zoo.metrics.cells import cell_classifier
from zoo.types import Geometry, Instances, PicturePrediction, Sample

if TYPE_CHECKING:
    from zoo.families.miphei.model import Miphei

FEW = 20
"""Cells under which nothing is fitted."""


def rule(calling: Calling | None) -> Mapping[str, Any] | None:
    """Return what a prediction says of how its cells are called (`zoo.metrics.calls.called`)."""
    return None if calling is None else calling.model_dump()


def fit(
    family: Miphei, samples: Sequence[Sample], maps_of: Callable[[Sample], tuple[Maps, Geometry]]
) -> Calling | None:
    """Return a logistic regression for each marker on the means of all (section "Evaluation" of arXiv 2505.10294).

    The nuclear stain neither calls nor is called. None where too few nuclei with values are among the samples.
    """
    options = family.options
    channels = [name for name in family.markers if name.lower() not in calls.NUCLEAR]
    if options.positive_from is None or not channels:
        return None
    means, labels = [], []
    for sample in samples:
        nuclei = sample.truth.get(options.cells or "")
        if not isinstance(nuclei, Instances) or not nuclei.values or not nuclei.value_names:
            continue
        maps, place = maps_of(sample)
        picture = family.decode(maps, [place])[0]["markers"]
        assert isinstance(picture, PicturePrediction)
        ids, mean = calls.means(picture.data[[family.markers.index(c) for c in channels]], nuclei.map)
        there = [i for i, label in enumerate(ids) if int(label) in nuclei.values]
        carried = np.array([nuclei.values[int(ids[i])] for i in there], np.float32).reshape(len(there), -1)
        row = np.full((len(there), len(channels)), np.nan)
        for place_of, name in enumerate(channels):
            if name in nuclei.value_names:
                row[:, place_of] = carried[:, nuclei.value_names.index(name)]
        means.append(mean[there])
        labels.append(row)
    if sum(map(len, means)) < FEW:
        return None
    known = ~np.isnan(np.concatenate(labels)).any(0)
    called = [name for name, there in zip(channels, known, strict=True) if there]
    if not called:
        return None
    positive = np.concatenate(labels)[:, known] >= options.positive_from
    fitted = cell_classifier(np.concatenate(means), positive.astype(np.int64))
    weight = tuple(tuple(round(float(v), 8) for v in row) for row in fitted.weight)
    bias = tuple(round(float(v), 8) for v in fitted.bias)
    return Calling(channels=tuple(channels), markers=tuple(called), weight=weight, bias=bias)
