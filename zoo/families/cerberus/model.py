"""The family cerberus: one encoder, a decoder a task, objects with classes and the tissue around a point."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.cards import DatasetCard
from zoo.encoders import Pyramid, build_encoder
from zoo.errors import UserError, suggest
from zoo.families.base import (
    Context,
    Encoding,
    Family,
    IOSpec,
    Maps,
    MapSpec,
    Need,
    Output,
    Player,
    Procedure,
    StoredMaps,
    TargetMaker,
)
from zoo.families.cerberus import large, losses, make_targets
from zoo.families.cerberus.decode import decode
from zoo.families.cerberus.network import Decoder, DenseHead, PatchHead, initialise, lateral
from zoo.families.cerberus.options import BACKGROUND, CerberusOptions, Task
from zoo.io.colours import PALETTE
from zoo.types import Batch, Geometry, Kind, Prediction

MIDDLE = "middle/"
"""Begins the tap that gives a patch task's logits of the middle window, (B, K, 1, 1)."""


class Cerberus(Family):
    """Several tissue tasks at once (Graham et al. 2022, "One model is all you need").

    Raw maps, one a task: `NAME` (B, 3, H, W) background, inside and contour of objects; (B, 1 + K, H, W) none and the
    classes of objects; (B, K, H, W) the class of the patch around each point, constant over the cells of the deepest
    map. While it trains the last is that of the middle patch everywhere. All are read with a softmax.
    """

    name = "cerberus"
    summary = "One encoder, many tissue tasks: instances by inside and contour, their classes, classes of patches"
    Options = CerberusOptions
    options: CerberusOptions

    def __init__(self, options: CerberusOptions) -> None:
        super().__init__(options)
        for name, task in options.tasks.items():
            if task.kind != "objects" and not task.classes:
                raise ValueError(f"task {name}: its classes are not known. Write them down: classes: [...]")
        self.tasks = options.tasks
        chosen = options.encoder
        encoder = build_encoder(chosen.name, **{"weights": options.encoder_weights, **chosen.arguments})
        self.dense = [name for name, task in self.tasks.items() if task.kind != "patch"]
        self._labels = {n for n, t in self.tasks.items() if t.kind == "patch" and t.window is None}
        self._places = len(self._labels) < len(self.tasks)  # whether something is said of places, not of the whole
        self.pyramid = Pyramid(encoder, _strides(encoder.strides, encoder.patch, options.finest, bool(self.dense)))
        *levels, deepest = self.pyramid.channels
        widths = _widths(options, levels, self.pyramid.sources)
        self.stride = self.pyramid.strides[-1]
        self.divisor = max(self.stride, encoder.divisor)
        if self.dense:
            self.laterals = nn.ModuleList(
                lateral(f, w, source == "identity")
                for f, w, source in zip(levels, widths, self.pyramid.sources, strict=False)
            )
            self.neck = nn.Conv2d(deepest, widths[-1], 1, bias=False)
        self.decoders = nn.ModuleDict({name: Decoder(widths) for name in self.dense})
        self.heads = nn.ModuleDict({name: self._head(task, widths, deepest) for name, task in self.tasks.items()})
        initialise(self.decoders)
        initialise(self.heads)
        self.spec = self._spec(encoder.mean, encoder.std)

    def _head(self, task: Task, widths: Sequence[int], deepest: int) -> nn.Module:
        if task.kind != "patch":
            return DenseHead(widths[0], task.planes, self.options.head_width)
        window = None if task.window is None else max(1, round(task.window / self.stride))
        return PatchHead(deepest, task.planes, window, task.dropout, task.head == "linear")

    def _spec(self, mean: Sequence[float], std: Sequence[float]) -> IOSpec:
        options = self.options
        outputs: dict[str, Output] = {}
        shades = itertools.cycle(PALETTE)
        for name, task in self.tasks.items():
            if task.kind == "classes":
                continue
            named = options.classes_of(name)
            classes = task.classes or ()
            if task.kind == "objects":
                classes = named[1].foreground if named else task.foreground or (name,)
            kind: Any = "instances" if task.kind == "objects" else "semantic" if task.output == "map" else "label"
            colours = {c: "#{:02x}{:02x}{:02x}".format(*next(shades)) for c in classes if c != BACKGROUND}
            outputs[name] = Output(kind, classes, options.truth_of(name), colours)
        unit = options.encoding == "unit"
        return IOSpec(
            maps={name: MapSpec(task.planes, "softmax") for name, task in self.tasks.items()},
            outputs=outputs,
            encoding=Encoding("rgb8", (0.0,) * 3 if unit else tuple(mean), (1.0,) * 3 if unit else tuple(std)),
            mpp=options.mpp,
            divisor=self.divisor,
            margin=options.margin,
            tile=options.tile,
        )

    # what it learns from

    @classmethod
    def needs(cls, options: CerberusOptions) -> tuple[Need, ...]:
        found: dict[str, tuple[Kind, ...]] = {}
        for name, task in options.tasks.items():
            if task.weight > 0:
                key, kinds = options.truth_of(name), make_targets.KINDS[task.kind]
                found[key] = tuple(k for k in found.get(key, kinds) if k in kinds) or kinds
        return tuple(Need(kinds, key) for key, kinds in found.items())

    @classmethod
    def resolve(cls, options: CerberusOptions, cards: Sequence[DatasetCard]) -> CerberusOptions:
        return make_targets.resolve(options, cards)

    @classmethod
    def targets(cls, options: CerberusOptions, card: DatasetCard) -> TargetMaker:
        return make_targets.make(options, card)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {
            "encoder": {"name": "test_resnet", "arguments": {"stem_stride": 1}},
            "tasks": {
                "gland": {"kind": "objects", "truth": "glands", "rule": "gland", "min_size": 30},
                "lumen": {"kind": "objects", "truth": "lumina", "rule": "lumen", "inside": "gland", "min_size": 10},
                "nuclei": {"kind": "objects", "rule": "nuclei"},
                "nuclei_class": {"kind": "classes", "of": "nuclei", "classes": ["epithelial", "lymphocyte"]},
                "tissue": {"kind": "patch", "classes": ["background", "stroma", "epithelium"], "window": 32},
            },
            "widths": [8, 8, 8, 8],
            "head_width": 8,
            "tile": 64,
            "margin": 16,
        }

    # what it computes

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        """Return every task's raw map, each (B, C, H, W), for an encoded `image` (B, 3, H, W) of any size.

        `taps`: "level0", "level1", ... (the encoder's maps, finest first), "neck" (what decoders begin with) and
        "middle/TASK" (logits of a patch task's middle window), all of the padded image. Raises `UserError` for others.
        """
        return self.maps(inputs, self.tasks, taps)

    def maps(
        self,
        inputs: Mapping[str, Tensor],
        tasks: Collection[str],
        taps: Sequence[str] = (),
        rows: Mapping[str, Tensor] | None = None,
    ) -> Maps:
        """Return the raw maps of some tasks only, and taps: what a step of training asks for.

        `rows`: task -> (B,) bool; a map of a task named there has those samples only.
        """
        image = inputs["image"]
        height, width = image.shape[-2:]
        whole = self._whole(image, [*tasks, *(tap.removeprefix(MIDDLE) for tap in taps)])
        down, right = -height % self.divisor, -width % self.divisor
        if down or right:
            image = F.pad(image, (0, right, 0, down))
        *levels, deepest = self.pyramid(image) if whole is None or self._places else [whole]
        whole = deepest if whole is None else whole
        found: Maps = {}
        features: Maps = {f"level{i}": level for i, level in enumerate([*levels, deepest])}
        if self.dense and (taps or any(name in self.decoders for name in tasks)):
            levels = [change(level) for change, level in zip(self.laterals, levels, strict=True)]
            features["neck"] = self.neck(deepest)
        size = int(image.shape[-2]), int(image.shape[-1])
        for name in [n for n in self.tasks if n in tasks]:
            chosen = None if rows is None else rows.get(name)
            if name in self.decoders:
                start, finer = _rows(features["neck"], chosen), [_rows(level, chosen) for level in levels]
                logits = self._dense(name, start, finer, size)
            else:
                logits = self._patch(name, _rows(whole if name in self._labels else deepest, chosen), size)
            found[name] = logits[..., :height, :width]
        return found | {tap: self._tap(tap, features, deepest, whole) for tap in taps}

    def _whole(self, image: Tensor, names: Collection[str]) -> Tensor | None:
        """Return the deepest map of a picture as it is, where a task reads the whole of it and the encoder must not see
        padding (`Encoder.unpadded`); None where that of the padded picture will do."""
        encoder: Any = self.pyramid.encoder
        if not encoder.unpadded or not any(n % self.divisor for n in image.shape[-2:]):
            return None
        if self._places and not any(name in self._labels for name in names):
            return None
        deepest: Tensor = encoder.pooled(image).maps[-1]
        return deepest

    def _dense(self, name: str, start: Tensor, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        logits: Tensor = self.heads[name](self.decoders[name](start, levels))
        if tuple(logits.shape[-2:]) != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits

    def _patch(self, name: str, deepest: Tensor, size: tuple[int, int]) -> Tensor:
        head = self.heads[name]
        assert isinstance(head, PatchHead)
        if self.training or head.window is None:
            return head.middle(deepest).expand(-1, -1, *size)
        cells = head.everywhere(deepest)
        return cells.repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)

    def _tap(self, tap: str, features: Maps, deepest: Tensor, whole: Tensor) -> Tensor:
        name = tap.removeprefix(MIDDLE)
        head = self.heads[name] if tap.startswith(MIDDLE) and name in self.heads else None
        if isinstance(head, PatchHead):
            return head.middle(whole if name in self._labels else deepest)
        if tap not in features:
            known = [*features, *(MIDDLE + n for n, t in self.tasks.items() if t.kind == "patch")]
            raise UserError(f'cerberus: no feature "{tap}". Expected one of {", ".join(known)}.')
        return features[tap]

    def middle(self, name: str, logits: Tensor) -> Tensor:
        """Return (B, K) logits of the middle window from a patch task's map."""
        head = self.heads[name]
        assert isinstance(head, PatchHead)
        at = []
        for size in logits.shape[-2:]:
            cells = -(-int(size) // self.stride)
            window = cells if head.window is None else min(head.window, cells)
            at.append(min(int(size) - 1, ((cells - window) // 2 + window // 2) * self.stride))
        return logits[:, :, at[0], at[1]]

    def learnt(self, batch: Batch) -> list[str]:
        """Return the tasks that a batch teaches: annotated, and of some weight."""
        known = annotated(batch)
        return [name for name, task in self.tasks.items() if name in known and task.weight > 0]

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return each task's loss times its weight, of the tasks that the batch annotates and the maps hold."""
        return self.terms(maps, batch)

    def terms(self, maps: Maps, batch: Batch, rows: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return `loss`; `rows`: task -> (B,) bool, the samples that a task's map was computed of."""
        found: dict[str, Tensor] = {}
        for name, task in self.tasks.items():
            if name not in maps or name not in annotated(batch) or task.weight == 0:
                continue
            chosen = None if rows is None else rows.get(name)
            found[name] = task.weight * self._loss(name, task, maps[name], batch, chosen)
        if not found:  # nothing to learn here; validation still wants a number
            found["none"] = torch.stack([value.sum() * 0 for value in maps.values()]).sum()
        return found

    def _loss(self, name: str, task: Task, logits: Tensor, batch: Batch, rows: Tensor | None) -> Tensor:
        def of(key: str) -> Tensor:
            value = batch.targets[key]
            assert isinstance(value, Tensor)
            return _rows(value, rows)

        has = None if name not in batch.has else _rows(batch.has[name], rows)
        valid = None if batch.valid is None else _rows(batch.valid, rows)
        if task.kind == "objects":
            return losses.objects_loss(logits, of(name), of(name + make_targets.WEIGHT), has=has, valid=valid)
        if task.kind == "classes":
            return losses.classes_loss(logits, of(name), class_weights=task.class_weights, has=has, valid=valid)
        return losses.patch_loss(self.middle(name, logits), of(name), has=has)

    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        """Return each task's prediction for each image: instances (named by their classes task), tissue."""
        found = {name: maps[name].detach().float().cpu() for name in self.tasks}
        return [
            decode({name: value[i] for name, value in found.items()}, where, self.options)
            for i, where in enumerate(geometry)
        ]

    def keeps(self) -> Mapping[str, Sequence[int]]:
        """Return inside and contour of objects, and every plane of the other tasks."""
        tasks = self.tasks.items()
        return {n: (1, 2) if t.kind == "objects" else tuple(range(t.planes)) for n, t in tasks}

    def decode_stored(
        self, maps: StoredMaps, geometry: Geometry, **options: Any
    ) -> Iterator[tuple[int, dict[str, Prediction]]]:
        """Yield what `decode` says of a large picture, rows at a time; no object is cut or doubled."""
        del options  # there are none
        yield from large.decode(maps, geometry, self.options)

    def procedure(self) -> Procedure:
        """Return training that computes of each stream what it annotates."""
        return MultiTask()

    def with_task(self, name: str, task: Task | Mapping[str, Any]) -> Cerberus:
        """Return a new network with one more task, which begins untrained; all else is a copy, so that the old outputs
        stay as they are, bit for bit, as long as nothing old is trained."""
        if name in self.tasks:
            raise UserError(f'cerberus: there is a task "{name}" already. Choose another name.')
        values = self.options.model_dump()
        values["tasks"] = {**values["tasks"], name: task.model_dump() if isinstance(task, Task) else dict(task)}
        values["encoder_weights"] = "none"
        made = zoo.create("cerberus", **values)
        assert isinstance(made, Cerberus)
        made.load_state_dict(self.state_dict(), strict=False)
        made.stain = self.stain
        return made.to(self.device)

    def parts(self, *tasks: str) -> tuple[str, ...]:
        """Return the prefixes of the parameters that belong to some tasks alone, for a stage's `freeze`."""
        for name in tasks:
            if name not in self.tasks:
                raise UserError(f'cerberus: no task "{name}". {suggest(name, self.tasks)}')
        return tuple(f"{room}.{name}." for name in tasks for room in ("decoders", "heads"))


def _rows(value: Tensor, rows: Tensor | None) -> Tensor:
    """Return the chosen samples of a batch."""
    return value if rows is None else value[rows.to(value.device)]


def annotated(batch: Batch) -> set[str]:
    """Return the targets of which some sample of a batch carries the truth."""
    return {name for name in batch.targets if name not in batch.has or bool(batch.has[name].any())}


def _strides(own: Sequence[int], patch: int | None, finest: int, dense: bool) -> tuple[int, ...]:
    """Return the strides of the levels that are used, finest first: from `finest` to the encoder's deepest."""
    deepest = 16 if patch else max(own)
    if not dense:
        return (deepest,)
    if deepest < 2 * finest:
        raise ValueError(
            f"finest is {finest}, but the encoder's deepest level has stride {deepest}. Write a smaller one"
        )
    return tuple(2**i for i in range(finest.bit_length() - 1, deepest.bit_length()))


def _widths(options: CerberusOptions, levels: Sequence[int], sources: Sequence[str]) -> tuple[int, ...]:
    """Return the decoders' channels at each level but the deepest. Raises `ValueError`."""
    if options.widths is not None and levels:
        if len(options.widths) != len(levels):
            raise ValueError(
                f"{len(options.widths)} widths for {len(levels)} levels above the deepest. Write one a level, finest "
                "first"
            )
        return options.widths
    widths = list(levels)
    if sources[0] == "identity" and len(widths) > 1:  # the picture itself, which has three channels
        widths[0] = widths[1]
    return tuple(widths)


class MultiTask(Procedure):
    """One optimiser; each task is computed of the samples annotated for it, so that a decoder neither costs time on
    images that teach it nothing nor takes up their statistics (the published code does both)."""

    def players(self, family: Family) -> dict[str, Player]:
        trainable = [p for p in family.parameters() if p.requires_grad]
        return {"model": Player(trainable, groups=family.groups())}

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        assert isinstance(family, Cerberus)
        terms: dict[str, Tensor] = {}
        learnt = {stream: family.learnt(part) for stream, part in batch.streams()}
        for stream, part in batch.streams():
            wanted = learnt[stream]
            if not wanted and (stream != "main" or any(learnt.values())):
                continue
            rows = {name: part.has[name] for name in wanted if name in part.has and not bool(part.has[name].all())}
            for name in [n for n in rows if family.tasks[n].kind == "patch"]:
                del rows[name]  # its norms see one value a sample, and want as many as there are
            maps = family.maps(family.prepare(part.inputs), wanted, () if wanted else ("level0",), rows)
            prefix = "" if stream == "main" else f"{stream}/"
            terms |= {prefix + name: value for name, value in family.terms(maps, part, rows).items()}
        ctx.update("model", torch.stack(list(terms.values())).sum())
        ctx.log({name: value.detach() for name, value in terms.items()})
