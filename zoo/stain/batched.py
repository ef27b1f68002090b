"""Stain normalisation of batches in torch, on any device: what `zoo.stain.normalise` does, for many tiles at once.

Pictures are (B, 3, H, W) uint8. Measuring goes by histograms and tables instead of sorting, in float32:
directions agree with the path of single pictures to about 1e-3, bytes to a few levels. On a CPU a few tiles are taken
at a time, so that they stay in its cache.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.stain import density, estimate, normalise
from zoo.stain.normalise import Look, Normaliser

_BINS = 8192
_FINE = 16384
_SPARSE = 7
_WEIGHTS = (0.2126729, 0.7151522, 0.0721750)  # luminance of linear sRGB
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)


class BatchNormaliser:
    """A `Normaliser` for batches: `pictures, looks = BatchNormaliser(normaliser)(pictures)`.

    Every method but "vahadane-tiatoolbox", which cannot be batched (`UserError`).
    """

    def __init__(self, normaliser: Normaliser) -> None:
        if normaliser.method == "vahadane-tiatoolbox":
            raise UserError(
                "stain: vahadane-tiatoolbox works on single pictures only. Choose vahadane or macenko for batches."
            )
        self.normaliser = normaliser

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> tuple[Tensor, list[Look]]:
        """Return (B, 3, H, W) uint8 on the same device, each normalised by its own look, and the looks."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.dtype != torch.uint8:
            raise UserError(
                f"stain: a batch of shape {tuple(pictures.shape)}, {pictures.dtype}. Expected (B, 3, H, W) uint8."
            )
        size = pictures.shape[2] * pictures.shape[3]
        step = len(pictures) if pictures.device.type != "cpu" else max(1, 2**18 // max(size, 1))
        found = torch.empty_like(pictures, memory_format=torch.contiguous_format)
        looks: list[Look] = []
        for first in range(0, len(pictures), max(step, 1)):
            part = pictures[first : first + step]
            values, more = self._part(part.reshape(len(part), 3, size).contiguous())
            found[first : first + step] = values.view(part.shape)
            looks += more
        return found, looks

    def _part(self, pixels: Tensor) -> tuple[Tensor, list[Look]]:
        """Return the same for (B, 3, N) pixels."""
        table = density_table(pixels.device)
        pens, kept = None, None
        seen = looked_up(table, pixels[..., ::_SPARSE].contiguous())  # enough to know whether there is any ink
        inked = _pens(seen)
        shares = inked.float().mean(1)
        marked = shares >= normalise.LEAST_PEN / 2
        if bool(marked.any()):
            seen = looked_up(table, pixels)
            pens = inked = _pens(seen)
            shares = pens.float().mean(1)
            marked = shares >= normalise.LEAST_PEN
            kept = ~(pens & marked[:, None])
        free = ~(inked & marked[:, None])
        usable = (((seen.mean(1) > density.FAINT) & free).float().mean(1) >= normalise.LEAST_TISSUE).tolist()
        look = self._reinhard if self.normaliser.method == "reinhard" else self._stains
        values, looks = look(pixels, kept)
        for b, (share, pen) in enumerate(zip(shares.tolist(), marked.tolist(), strict=True)):
            remarks = (normalise.pen_remark(share),) if pen else ()
            if not usable[b]:
                looks[b] = Look(usable=False, remarks=(normalise.BLANK,))
            looks[b] = replace(looks[b], pens=pen, remarks=(*remarks, *looks[b].remarks))
            if not looks[b].usable:
                values[b] = pixels[b]
            elif pen and pens is not None:
                values[b] = torch.where(pens[b], pixels[b], values[b])
        return values, looks

    # stains

    def _stains(self, pixels: Tensor, kept: Tensor | None) -> tuple[Tensor, list[Look]]:
        own, reference = self.normaliser, self.normaliser.reference
        assert reference.matrix is not None
        assert reference.maxima is not None
        torchstain = own.method == "macenko-torchstain"
        table = _torchstain_table(pixels.device) if torchstain else density_table(pixels.device)
        seen = looked_up(table, pixels)
        found = self._directions(pixels, seen, kept)
        flaws = [normalise.flaw(m) if own.method in normalise.ESTIMATED else ("", True) for m in found]
        matrices = [reference.matrix if wrong else m for m, (wrong, _) in zip(found, flaws, strict=True)]
        back = torch.tensor(np.stack([np.linalg.pinv(m) for m in matrices]), dtype=torch.float32, device=pixels.device)
        amounts = back.transpose(1, 2) @ seen
        parts = [percentiles(amounts[:, s], kept, (99.0,)) for s in range(amounts.shape[1])]
        maxima = torch.cat(parts, 1).double().cpu().numpy()
        looks, mixes = [], []
        for matrix, highest, (wrong, coloured), inverse in zip(
            matrices, maxima, flaws, back.cpu().numpy(), strict=True
        ):
            gain, held = normalise.gains(reference.maxima if wrong else highest, reference.maxima)
            measured = Look(matrix, highest, remarks=held)
            looks.append(normalise.fallen_back(wrong, coloured, reference) if wrong else measured)
            mixes.append((inverse * gain) @ reference.matrix)
        mix = torch.tensor(np.stack(mixes), dtype=torch.float32, device=pixels.device).transpose(1, 2)
        white = 240.0 if torchstain else 255.0
        values = (-(mix @ seen)).exp_().mul_(white).clamp_(0, 255)
        return values.to(torch.uint8), looks

    def _directions(self, pixels: Tensor, seen: Tensor, kept: Tensor | None) -> list[Any]:
        """Return the (S, 3) directions of each picture; nan where there is no tissue."""
        own = self.normaliser
        if own.fixed is not None:
            return [own.fixed] * len(pixels)
        tissue = (seen >= 0.15).all(1) if own.method == "macenko-torchstain" else dark(pixels, own.threshold)
        tissue = tissue if kept is None else tissue & kept
        if own.method == "vahadane":
            return [self._vahadane(pixels[b], tissue[b]) for b in range(len(pixels))]
        return list(macenko(seen, tissue, 99.0 if own.method == "macenko-torchstain" else own.percentile))

    def _vahadane(self, pixels: Tensor, tissue: Tensor) -> density.Floats:
        """Return the directions from the colours of the pixels that single pictures are measured by too."""
        chosen = torch.nonzero(tissue)[:, 0]
        chosen = chosen[:: max(1, -(-len(chosen) // estimate.MOST))]
        if len(chosen) < 3:
            return np.full((2, 3), np.nan)
        colours = pixels[:, chosen].T.cpu().numpy()
        gathered, counts = estimate.gathered(density.optical_density(colours), colours)
        return estimate.vahadane(gathered, self.normaliser.weight, counts=counts)

    # Reinhard

    def _reinhard(self, pixels: Tensor, kept: Tensor | None) -> tuple[Tensor, list[Look]]:
        lab = to_lab(pixels)
        mean = lab.mean(2)
        std = ((lab * lab).mean(2) - mean * mean).clamp_min(0).sqrt()
        if kept is not None:
            weight = kept[:, None].float()
            count = weight.sum(2).clamp_min(1)
            mean = (lab * weight).sum(2) / count
            std = (((lab - mean[..., None]) ** 2 * weight).sum(2) / count).sqrt()
        pairs = torch.stack([mean, std], 1).double().cpu().numpy()
        looks = [normalise.contrast_held(pair, self.normaliser.reference) for pair in pairs]
        std = torch.from_numpy(np.stack([look.moments[1] for look in looks])).to(lab)  # type: ignore[index]
        target = torch.tensor(self.normaliser.reference.moments, dtype=torch.float32, device=pixels.device)
        scale = target[1] / std
        return from_lab(torch.addcmul((target[0] - mean * scale)[..., None], lab, scale[..., None])), looks


# --- measuring by tables and histograms -------------------------------------------------------------------------------


def looked_up(table: Tensor, pixels: Tensor) -> Tensor:
    """Return `table[pixels]`, float32, of uint8 pixels of any shape (int32 indices are the fast ones)."""
    return table.index_select(0, pixels.reshape(-1).int()).view(pixels.shape)


@functools.cache
def density_table(device: torch.device) -> Tensor:
    """Return (256,) float32: the optical density of each byte."""
    return torch.from_numpy(density.optical_density(np.arange(256, dtype=np.uint8))).float().to(device)


@functools.cache
def _torchstain_table(device: torch.device) -> Tensor:
    return torch.from_numpy(estimate.torchstain_density(np.arange(256, dtype=np.uint8))).float().to(device)


@functools.cache
def _linear(device: torch.device) -> Tensor:
    """Return (256,) linear light of sRGB bytes."""
    v = torch.arange(256, dtype=torch.float64) / 255
    return torch.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4).float().to(device)


@functools.cache
def _bent(device: torch.device) -> Tensor:
    """Return CIELAB's f of numbers in [0, 1]."""
    t = torch.arange(_FINE, dtype=torch.float64) / (_FINE - 1)
    return torch.where(t > 0.008856, t ** (1 / 3), 7.787 * t + 16 / 116).float().to(device)


@functools.cache
def _coded(device: torch.device) -> Tensor:
    """Return the sRGB byte of linear light in [0, 1]."""
    v = torch.arange(_FINE, dtype=torch.float64) / (_FINE - 1)
    coded = torch.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)
    return (255 * coded + 0.5).to(torch.uint8).to(device)


@functools.cache
def _to_xyz(device: torch.device) -> Tensor:
    return (torch.tensor(_TO_XYZ) / torch.tensor(_WHITE)[:, None]).to(device)


def percentiles(values: Tensor, mask: Tensor | None, wanted: Sequence[float]) -> Tensor:
    """Return (B, len(wanted)) float32: percentiles of (B, N) values where (B, N) `mask` holds (None: everywhere).

    From a histogram, linear within a bin of 1/8192 of the range; nan where nothing is chosen.
    """
    low, high = values.amin(1), values.amax(1)
    width = ((high - low) / _BINS).clamp_min(1e-12)
    index = ((values - low[:, None]) / width[:, None]).int().clamp_(0, _BINS - 1)
    if mask is not None:
        index.masked_fill_(~mask, _BINS)
    if len(values) > 1:
        index += (_BINS + 1) * torch.arange(len(values), device=values.device, dtype=torch.int32)[:, None]
    counts = torch.bincount(index.view(-1), minlength=len(values) * (_BINS + 1)).view(len(values), -1)[:, :_BINS]
    total = counts.cumsum(1)
    place = total[:, -1:].clamp_min(1).sub(1) * (torch.tensor(wanted, device=values.device, dtype=torch.float64) / 100)
    bins = torch.searchsorted(total.double(), place.contiguous(), right=True).clamp_max(_BINS - 1)
    here = counts.gather(1, bins).clamp_min(1)
    share = (place - (total.gather(1, bins) - here) + 0.5) / here
    found = low[:, None] + (bins + share.clamp(0, 1)) * width[:, None]
    return torch.where(total[:, -1:] > 0, found, torch.nan).float()


def dark(pixels: Tensor, threshold: float) -> Tensor:
    """Return (B, N) bool: `zoo.stain.density.tissue_mask` of (B, 3, N) uint8 pixels."""
    count, device = len(pixels), pixels.device
    index = pixels.int()
    offset = torch.arange(count, device=device, dtype=torch.int32)[:, None, None]
    total = (
        torch.bincount((index + 256 * offset if count > 1 else index).view(-1), minlength=256 * count)
        .view(count, 256)
        .cumsum(1)
    )
    bounds = _exact(total, (2.0, 98.0))
    ends = _exact(total, (0.0, 100.0))
    flat = bounds[:, :1] >= bounds[:, 1:]
    low, high = torch.where(flat, ends, bounds).unbind(1)
    grey = torch.arange(256, device=device, dtype=torch.float64)
    spread = (high - low).clamp_min(1e-9)[:, None]
    stretched = ((grey.clamp(low[:, None], high[:, None]) - low[:, None]) / spread * 255).long()
    stretched = torch.where((high > low)[:, None], stretched, grey.long())
    linear = _linear(device)[stretched]
    tables = torch.stack([weight * linear for weight in _WEIGHTS], 1).reshape(-1)
    index += 256 * torch.arange(3 * count, device=device, dtype=torch.int32).view(count, 3, 1)
    parts = tables.index_select(0, index.view(-1)).view(pixels.shape)
    return parts[:, 0] + parts[:, 1] + parts[:, 2] < _luminance_below(threshold)


def _luminance_below(threshold: float) -> float:
    """Return the luminance at which the byte of L reaches `threshold` of 255."""
    lightness = (np.ceil(255 * threshold) - 0.5) / 2.55
    return float(((lightness + 16) / 116) ** 3) if lightness > 8 else float(lightness / 903.3)


def _exact(total: Tensor, wanted: Sequence[float]) -> Tensor:
    """Return (B, len(wanted)) float64 percentiles, linear between ranks, of bytes with (B, 256) cumulative counts."""
    place = (total[:, -1:] - 1) * (torch.tensor(wanted, device=total.device, dtype=torch.float64) / 100)
    below, above = (
        torch.searchsorted(total, rank.long().contiguous(), right=True) for rank in (place.floor(), place.ceil())
    )
    return below + (above - below) * (place - place.floor())


def macenko(seen: Tensor, tissue: Tensor, percentile: float = 99.0) -> density.Floats:
    """Return (B, 2, 3) unit rows of (B, 3, N) optical density where (B, N) `tissue` holds; nan where nothing is."""
    count = tissue.sum(1).double()
    masked = seen * tissue[:, None]
    mean = masked.sum(2).double() / count.clamp_min(1)[:, None]
    second = (masked @ seen.transpose(1, 2)).double()
    cover = (second - count[:, None, None] * mean[:, :, None] * mean[:, None]) / (count - 1).clamp_min(1)[:, None, None]
    _, vectors = torch.linalg.eigh(cover.cpu())
    basis = vectors[:, :, [2, 1]]
    basis = basis * torch.where(basis[:, :1] < 0, -1.0, 1.0)
    along = basis.transpose(1, 2).to(seen) @ seen
    angles = torch.atan2(along[:, 1], along[:, 0])
    ends = percentiles(angles, tissue, (100 - percentile, percentile)).double().cpu()
    rows = torch.stack([ends.cos(), ends.sin()], 2) @ basis.transpose(1, 2)
    found = rows.numpy()
    found = np.where(found[:, :1, :1] > found[:, 1:, :1], found, found[:, ::-1])
    found[count.cpu().numpy() < 3] = np.nan
    return np.asarray(found)


def _pens(plain: Tensor) -> Tensor:
    """Return (B, N) bool: `zoo.stain.density.pen_mask` of (B, 3, N) optical density."""
    red, green, blue = plain.unbind(1)
    cold = (red > 1.5 * green) & (red > 0.35)
    hot = (green > 0.5) & (red < 0.12 * green) & (blue > 0.75 * green) & (blue < 1.2 * green)
    black = (plain.amin(1) > 1.5) & (plain.amax(1) - plain.amin(1) < 0.45)
    return cold | hot | black


# --- CIELAB by tables -------------------------------------------------------------------------------------------------


def to_lab(pixels: Tensor) -> Tensor:
    """Return (B, 3, ...) float32 of uint8 RGB: L in [0, 100], a and b in about [-128, 127] (D65, sRGB)."""
    device = pixels.device
    light = looked_up(_linear(device), pixels).flatten(2)
    place = (_to_xyz(device) @ light).mul_(_FINE - 1).clamp_(0, _FINE - 1)
    bent = _bent(device)
    x, y, z = bent.index_select(0, place.view(-1).int()).view(place.shape).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1).view(pixels.shape)


def from_lab(lab: Tensor) -> Tensor:
    """Return (B, 3, ...) uint8 RGB of `to_lab`'s values; what no screen can show is clipped."""
    device = lab.device
    lightness, a, b = lab.flatten(2).unbind(1)
    y = (lightness.clamp(0, 100) + 16) / 116
    bent = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(bent > 0.206893, bent * bent * bent, (bent - 16 / 116) / 7.787)
    light = (torch.linalg.inv(_to_xyz(device)) @ xyz).mul_(_FINE - 1).clamp_(0, _FINE - 1)
    return _coded(device).index_select(0, light.view(-1).int()).view(lab.shape)


def retemplated(pictures: Tensor, templates: Tensor) -> Tensor:
    """Return (B, 3, H, W) uint8 with the moments of each channel of 8-bit Lab replaced by `templates` (B, 3, 2).

    What `zoo.stain.colour.retemplate` does in the space "lab", where L is in [0, 255] and a and b are shifted by 128.
    """
    lab = to_lab(pictures).flatten(2)
    lab = lab * lab.new_tensor([2.55, 1, 1])[:, None] + lab.new_tensor([0, 128, 128])[:, None]
    mean, std = lab.mean(2, keepdim=True), lab.std(2, correction=0, keepdim=True)
    moved = (lab - mean) / std.clamp(1e-4, 255) * templates[:, :, 1:] + templates[:, :, :1]
    moved = moved.clamp(0, 255) - moved.new_tensor([0, 128, 128])[:, None]
    return from_lab(moved / moved.new_tensor([2.55, 1, 1])[:, None]).view(pictures.shape)
