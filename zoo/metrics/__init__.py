"""Metrics: pure functions on arrays, chosen by the kind of truth or prediction.

A metric is a function of what one pass over a pair of arrays has counted, the evidence of its kind: a confusion matrix
(`semantic.confusion`), surfaces (`surface.surfaces`), a reliability table (`calibration.reliability`), a table of
overlaps (`instances.overlap`), the same with the maps (`shapes.shapes`) or with classes (`types.typed`), two pictures
(`picture.pair`), what they say of cells (`immunostain.Evidence`), two sets of boxes (`boxes.Pair`), nuclei on a
picture (`calls.cells`), the class of an image and what it was taken for (`labels.Named`). So any number of metrics
costs one pass.

A name may carry an argument: `object_f1@0.7` (IoU), `centroid_f1@8` (pixels), `surface_dice@3` (pixels),
`pearson@DAPI` (a channel), `cell_f1@CD8a` (a marker), `coco_ap50@WBC` (a class), `picture_fid@resnet50` (an encoder,
which it cannot do without). `function(NAME)` gives the function, `METRICS[NAME]` what it is; neither imports the module
behind a name before it is called for. A pooled metric (`about.pooled`) is a number of a set of images, not of one: see
`zoo.metrics.pooled`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple


class About(NamedTuple):
    """What a metric is: the kind of evidence it takes, whether larger ("max") or smaller ("min") is better, the largest
    value it can have (None = no bound; of a "min" metric, the best one is 0), one sentence, whether it is a number of a
    whole set of images, and the name of the argument that may follow an `@`."""

    kind: str
    better: str
    best: float | None
    summary: str
    pooled: bool = False
    argument: str | None = None


class Table(dict[str, About]):
    """Name -> what it is; also knows names with an argument."""

    def __missing__(self, name: str) -> About:
        base, at, argument = str(name).partition("@")
        known = self.get(base)
        if not at or known is None or known.argument is None:
            raise KeyError(name)
        parsed(base, argument)
        return known._replace(summary=f"{known.summary} ({known.argument.replace('_', ' ')} {argument})")

    def __contains__(self, name: object) -> bool:
        try:
            self[str(name)]
        except (KeyError, ValueError):
            return False
        return True


_IOU = "threshold"
_MARKER = "marker"

METRICS: Table = Table(
    {
        "dice": About("semantic", "max", 1.0, "Dice, mean over foreground classes present"),
        "iou": About("semantic", "max", 1.0, "IoU (Jaccard), mean over foreground classes present"),
        "pixel_f1": About("semantic", "max", 1.0, "F1 over pixels, pooled over foreground classes"),
        "pixel_precision": About("semantic", "max", 1.0, "Precision over pixels, pooled over foreground classes"),
        "pixel_recall": About("semantic", "max", 1.0, "Recall over pixels, pooled over foreground classes"),
        "pixel_accuracy": About("semantic", "max", 1.0, "Share of pixels that are right, background included"),
        "dice_pooled": About("semantic", "max", 1.0, "Dice of all pixels of all images, mean over classes", True),
        "hd95": About("surface", "min", None, "95th percentile of the Hausdorff distance of outlines, px"),
        "surface_dice": About(
            "surface", "max", 1.0, "Share of outlines within 2 px of the other's outline", argument="tolerance"
        ),
        "ece": About("calibration", "min", 1.0, "Expected calibration error of pixels, 15 bins"),
        "brier": About("calibration", "min", 2.0, "Brier score of pixels: squared error summed over classes"),
        "ece_pooled": About("calibration", "min", 1.0, "Expected calibration error of all pixels of all images", True),
        "object_f1": About("instances", "max", 1.0, "F1 over objects, matched at IoU >= 0.5", argument=_IOU),
        "object_precision": About("instances", "max", 1.0, "Precision over objects, at IoU >= 0.5", argument=_IOU),
        "object_recall": About("instances", "max", 1.0, "Recall over objects, matched at IoU >= 0.5", argument=_IOU),
        "object_accuracy": About(
            "instances", "max", 1.0, "TP / (TP + FP + FN) at IoU >= 0.5: StarDist's AP", argument=_IOU
        ),
        "object_ap": About("instances", "max", 1.0, "StarDist's AP, mean over IoU thresholds 0.5, 0.55 ... 0.95"),
        "object_f1_pooled": About(
            "instances", "max", 1.0, "F1 over all objects of all images, IoU >= 0.5", True, argument=_IOU
        ),
        "dq": About("instances", "max", 1.0, "Detection quality: F1 over objects, matched at IoU > 0.5"),
        "sq": About("instances", "max", 1.0, "Segmentation quality: mean IoU of objects matched at IoU > 0.5"),
        "pq": About("instances", "max", 1.0, "Panoptic quality: DQ times SQ"),
        "pq_pooled": About("instances", "max", 1.0, "Panoptic quality of all objects of all images", True),
        "aji": About("instances", "max", 1.0, "Aggregated Jaccard index"),
        "aji_plus": About("instances", "max", 1.0, "Aggregated Jaccard index, matched one to one"),
        "object_dice": About("instances", "max", 1.0, "Object-level Dice of the GlaS challenge"),
        "glas_f1": About("instances", "max", 1.0, "Object F1 of the GlaS challenge, by its own matching"),
        "object_hausdorff": About("shapes", "min", None, "Object-level Hausdorff distance of the GlaS challenge, px"),
        "centroid_f1": About(
            "shapes", "max", 1.0, "F1 over objects whose centroids are within 12 px", argument="radius"
        ),
        "count_error": About("instances", "min", None, "Absolute error of the number of objects"),
        "mpq": About("types", "max", 1.0, "Panoptic quality a class, mean over classes present in an image"),
        "mpq_pooled": About("types", "max", 1.0, "Panoptic quality a class over all images, mean over classes", True),
        "type_f1": About("types", "max", 1.0, "F1 of the classes of matched objects, mean over classes present"),
        "typed_object_f1": About("types", "max", 1.0, "F1 over objects found with their class, mean over classes"),
        "psnr": About("picture", "max", None, "Peak signal-to-noise ratio, dB"),
        "ssim": About("picture", "max", 1.0, "Structural similarity, Gaussian window of sigma 1.5"),
        "pearson": About(
            "picture", "max", 1.0, "Pearson's correlation over pixels, mean over channels", argument="channel"
        ),
        "dab_concordance": About(
            "immunostain", "max", 1.0, "Lin's concordance of DAB's optical density, means of 8 px", argument="block"
        ),
        "positive_area_error": About("immunostain", "min", 1.0, "Error of the share of the area that is brown"),
        "positive_share_error": About("immunostain", "min", 1.0, "Error of the share of nuclei that are brown"),
        "positive_cell_f1": About(
            "immunostain", "max", 1.0, "F1 over brown nuclei, centres within 8 px", argument="radius"
        ),
        "positive_count_correlation": About(
            "immunostain", "max", 1.0, "Pearson's correlation over fields of the numbers of brown nuclei", True
        ),
        "picture_fid": About(
            "picture_features", "min", None, "Frechet distance of the pictures' features", True, argument="encoder"
        ),
        "picture_kid": About(
            "picture_features", "min", None, "Kernel distance of the pictures' features", True, argument="encoder"
        ),
        "cell_f1": About("cells", "max", 1.0, "F1 of cells called positive, mean over markers", True, _MARKER),
        "cell_balanced_accuracy": About(
            "cells", "max", 1.0, "Balanced accuracy of cells called positive, mean over markers", True, _MARKER
        ),
        "cell_auc": About(
            "cells", "max", 1.0, "ROC AUC of a cell's mean of a marker in the picture, mean over markers", True, _MARKER
        ),
        "cell_auc_called": About(
            "cells", "max", 1.0, "ROC AUC of the probability that calls a cell, mean over markers", True, _MARKER
        ),
        "cell_pearson": About(
            "cells",
            "max",
            1.0,
            "Pearson's correlation of means and true values of cells, mean over markers",
            True,
            _MARKER,
        ),
        "cell_count_pearson": About(
            "cells", "max", 1.0, "Pearson's correlation over images of numbers of positive cells", True, _MARKER
        ),
        "box_f1": About("boxes", "max", 1.0, "F1 over boxes, matched at IoU >= 0.5", argument=_IOU),
        "box_precision": About("boxes", "max", 1.0, "Precision over boxes, matched at IoU >= 0.5", argument=_IOU),
        "box_recall": About("boxes", "max", 1.0, "Recall over boxes, matched at IoU >= 0.5", argument=_IOU),
        "box_count_error": About("boxes", "min", None, "Absolute error of the number of boxes, summed over classes"),
        "attribute_f1": About("boxes", "max", 1.0, "F1 of the attributes of matched boxes, mean over attributes"),
        "coco_ap": About(
            "boxes", "max", 1.0, "COCO's AP, mean over IoU 0.5, 0.55 ... 0.95 and classes", True, argument="class"
        ),
        "coco_ap50": About("boxes", "max", 1.0, "COCO's AP at IoU 0.5, mean over classes", True, argument="class"),
        "coco_ap75": About("boxes", "max", 1.0, "COCO's AP at IoU 0.75, mean over classes", True, argument="class"),
        "coco_ap_small": About("boxes", "max", 1.0, "COCO's AP of boxes below 32² pixels", True),
        "coco_ap_medium": About("boxes", "max", 1.0, "COCO's AP of boxes of 32² to 96² pixels", True),
        "coco_ap_large": About("boxes", "max", 1.0, "COCO's AP of boxes above 96² pixels", True),
        "coco_ar1": About("boxes", "max", 1.0, "COCO's AR, a box an image and class, mean over IoU and classes", True),
        "coco_ar10": About("boxes", "max", 1.0, "COCO's AR, 10 boxes an image, mean over IoU and classes", True),
        "coco_ar100": About("boxes", "max", 1.0, "COCO's AR, 100 boxes an image, mean over IoU and classes", True),
        "differential_error": About(
            "boxes",
            "min",
            1.0,
            "Differential count: |share - true share| of all boxes, mean over classes",
            True,
            argument="class",
        ),
        "attribute_f1_pooled": About(
            "boxes",
            "max",
            1.0,
            "Macro F1 of the attributes of all matched boxes of all images",
            True,
            argument="attribute",
        ),
        "label_accuracy": About("labels", "max", 1.0, "1 where the class of an image is right, else 0"),
        "balanced_accuracy": About(
            "labels", "max", 1.0, "Share of a class's images that are right, mean over classes", True
        ),
        "fid": About("features", "min", None, "Frechet distance of the features of two sets of pictures"),
        "kid": About("features", "min", None, "Kernel distance (MMD²) of the features of two sets of pictures"),
        "phv": About("features", "min", 1.0, "Perceptual hash value: share of channels whose means differ"),
        "robustness_index": About("features", "max", 1.0, "Same class of another centre among neighbours (PathoROB)"),
    }
)


def parsed(base: str, argument: str) -> Any:
    """Return the argument behind an `@` as its metric takes it. Raises `ValueError` with one sentence."""
    kind = dict.get(METRICS, base)
    word = kind.argument if kind else None
    if word in ("channel", "encoder", "class", "attribute", _MARKER):
        if not argument:
            raise ValueError(f'metric "{base}@": the {word} is missing. Expected {base}@{word.upper()}')
        return argument
    try:
        value = float(argument)
    except ValueError:
        value = -1.0
    top = 1.0 if word == _IOU else 1e6
    if not 0 < value <= top:
        raise ValueError(f'metric "{base}@{argument}": expected a number above 0, at most {top:g}, as in {base}@0.7')
    return value


def function(name: str) -> Callable[..., Any]:
    """Return the metric of a name, its argument filled in: `function("object_f1@0.7")(table)`.

    Raises `UserError` for an unknown name, `ValueError` for an argument that cannot be.
    """
    from zoo import registry

    base, at, argument = name.partition("@")
    found: Any = registry.get("metric", base if name in METRICS else name)
    if not at:
        return found  # type: ignore[no-any-return]
    value = parsed(base, argument)
    return found.at(value) if METRICS[base].pooled else functools.partial(found, **{str(METRICS[base].argument): value})
