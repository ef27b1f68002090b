"""Metrics: pure functions on arrays, chosen by the kind of truth or prediction.

A metric is a function of what one pass over a pair of arrays has counted, the evidence of its kind: a confusion matrix
(`semantic.confusion`), a table of overlaps (`instances.overlap`), two pictures (`picture.pair`), matched boxes
(`boxes.matching`). So any number of metrics costs one pass. `zoo.registry.get("metric", NAME)` gives the function.
"""

from __future__ import annotations

from typing import NamedTuple


class About(NamedTuple):
    """What a metric is: the kind of evidence it takes, whether larger ("max") or smaller ("min") is better, the largest
    value it can have (None = no bound), and one sentence."""

    kind: str
    better: str
    best: float | None
    summary: str


METRICS: dict[str, About] = {
    "dice": About("semantic", "max", 1.0, "Dice, mean over foreground classes present"),
    "iou": About("semantic", "max", 1.0, "IoU (Jaccard), mean over foreground classes present"),
    "pixel_f1": About("semantic", "max", 1.0, "F1 over pixels, pooled over foreground classes"),
    "pixel_precision": About("semantic", "max", 1.0, "Precision over pixels, pooled over foreground classes"),
    "pixel_recall": About("semantic", "max", 1.0, "Recall over pixels, pooled over foreground classes"),
    "pixel_accuracy": About("semantic", "max", 1.0, "Share of pixels that are right, background included"),
    "object_f1": About("instances", "max", 1.0, "F1 over objects, matched at IoU >= 0.5"),
    "object_precision": About("instances", "max", 1.0, "Precision over objects, matched at IoU >= 0.5"),
    "object_recall": About("instances", "max", 1.0, "Recall over objects, matched at IoU >= 0.5"),
    "object_accuracy": About("instances", "max", 1.0, "TP / (TP + FP + FN) at IoU >= 0.5: StarDist's AP"),
    "dq": About("instances", "max", 1.0, "Detection quality: F1 over objects, matched at IoU > 0.5"),
    "sq": About("instances", "max", 1.0, "Segmentation quality: mean IoU of objects matched at IoU > 0.5"),
    "pq": About("instances", "max", 1.0, "Panoptic quality: DQ times SQ"),
    "aji": About("instances", "max", 1.0, "Aggregated Jaccard index"),
    "aji_plus": About("instances", "max", 1.0, "Aggregated Jaccard index, matched one to one"),
    "object_dice": About("instances", "max", 1.0, "Object-level Dice of the GlaS challenge"),
    "psnr": About("picture", "max", None, "Peak signal-to-noise ratio, dB"),
    "ssim": About("picture", "max", 1.0, "Structural similarity, Gaussian window of sigma 1.5"),
    "pearson": About("picture", "max", 1.0, "Pearson's correlation over pixels, mean over channels"),
    "box_f1": About("boxes", "max", 1.0, "F1 over boxes, matched at IoU >= 0.5"),
}
