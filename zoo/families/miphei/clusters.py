"""The frozen network of the loss `cell_cluster`: from a nucleus's means in a picture of markers to what it carries.

Its layout is that of MIPHEI-ViT (arXiv 2505.10294): normalise, N -> 64 -> 64 -> a number a marker, the nuclear stain
left out. How the published one was trained is not known. Ours is fitted on training cells before the training begins,
and stands in the options of the weights as text: half floats, base64.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import UserError
from zoo.families.miphei.options import MipheiOptions
from zoo.losses.markers import CellClusters
from zoo.metrics import calls
from zoo.types import Instances, Picture, Sample

FEW = 20
"""Cells under which nothing is fitted."""
STEPS, RATE = 300, 1e-2


def outputs(markers: Sequence[str]) -> list[str]:
    """Return the markers that the network answers for."""
    return [name for name in markers if name.lower() not in calls.NUCLEAR]


def build(options: MipheiOptions) -> CellClusters | None:
    """Return the network that a term needs, None where none does. Raises `ValueError` where its text does not fit."""
    markers = options.markers or ()
    if not options.needs("network"):
        return None
    if not outputs(markers):
        raise ValueError("cell_cluster: all markers are nuclear stains. Expected another one. Remove the term")
    made = CellClusters(len(markers), len(outputs(markers)))
    if options.clusters is not None:
        _read(made, options.clusters)
    return made


def fitted(options: MipheiOptions) -> None:
    """Raise `UserError` where a loss asks a network that was never fitted."""
    if options.clusters is None:
        raise UserError(
            "model: objective: cell_cluster: its network is not fitted. Expected a training (zoo train) on data whose "
            "nuclei carry values. Train, or remove the term."
        )


def _read(network: CellClusters, text: str) -> None:
    state = network.state_dict()
    wanted = sum(v.numel() for v in state.values())
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f2")
    except ValueError:
        numbers = np.zeros(0, "<f2")
    if len(numbers) != wanted:
        raise ValueError(f"clusters: {len(numbers)} numbers. Expected {wanted}. Remove it, and it is fitted anew")
    parts = torch.split(torch.from_numpy(numbers.astype(np.float32)), [v.numel() for v in state.values()])
    network.load_state_dict({k: p.view_as(v) for (k, v), p in zip(state.items(), parts, strict=True)})


def _written(network: CellClusters) -> str:
    flat = torch.cat([v.flatten() for v in network.state_dict().values()]).clamp(-6e4, 6e4)
    return base64.b64encode(flat.numpy().astype("<f2").tobytes()).decode()


def fit(options: MipheiOptions, samples: Sequence[Sample]) -> str:
    """Return a network fitted on the nuclei of training samples that carry every marker.

    Full batches, Adam, binary cross-entropy, each class of a marker weighing the same. Raises `ValueError` where there
    are too few such nuclei, or nothing says from which value one is positive.
    """
    found = [cells for sample in samples if (cells := _cells(options, sample)) is not None]
    count = sum(len(mean) for mean, _ in found)
    if count < FEW:
        raise ValueError(
            f"cell_cluster: {count} training nuclei carry a value for each marker. Expected {FEW} or more. "
            "Gate the data first (zoo data gate), or remove the term"
        )
    means, positive = (torch.from_numpy(np.concatenate(part).astype(np.float32)) for part in zip(*found, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CellClusters(means.shape[1], positive.shape[1])
    network.mean.copy_(means.mean(0))
    network.std.copy_(means.std(0).clamp_min(1e-2))
    _train(network, means, positive)
    return _written(network)


def _train(network: CellClusters, means: Tensor, positive: Tensor) -> None:
    share = positive.mean(0).clamp(1e-3, 1 - 1e-3)
    weight = torch.where(positive > 0.5, 0.5 / share, 0.5 / (1 - share))
    network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(means), positive, weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.requires_grad_(False)


def _cells(options: MipheiOptions, sample: Sample) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return means (N, markers) from 0 to 255 and what is positive (N, outputs) of a sample's nuclei, or None."""
    markers, threshold = options.markers or (), options.positive_from
    picture, nuclei = sample.truth.get(options.truth or ""), sample.truth.get(options.cells or "")
    if not isinstance(picture, Picture) or not isinstance(nuclei, Instances) or threshold is None:
        return None
    names = outputs(markers)
    if not nuclei.values or set(markers) - set(picture.channels) or set(names) - set(nuclei.value_names):
        return None
    planes = picture.data[[picture.channels.index(name) for name in markers]]
    ids, mean = calls.means(planes, nuclei.map)
    there = [i for i, label in enumerate(ids) if int(label) in nuclei.values]
    columns = [nuclei.value_names.index(name) for name in names]
    carried = np.array([nuclei.values[int(ids[i])] for i in there], np.float32).reshape(len(there), -1)[:, columns]
    scale = np.asarray(options.full_scale or (255.0,) * len(markers))
    known = ~np.isnan(carried).any(1)
    return (mean[there] / scale * 255)[known], (carried >= threshold)[known]
