"""Names of components, and where each lives: name -> "module:attribute", resolved on first use.

Listing needs no import of the module behind a name. Every kind has one table here; a family from another package comes
in through the entry-point group `zoo.families`, its published cases through `zoo.cases`, what converts its published
weights through `zoo.converters`. The kind "cases" names, for a published system (or "system/kind"), what answers its
cases (`zoo.cases.Answer`). Encoders and recipes have too many names for a table in code: theirs are generated files
(`zoo/encoders/names.json`) and folders.
"""

from __future__ import annotations

import functools
from importlib import import_module, metadata
from typing import Any

from zoo.errors import UserError, suggest

TABLES: dict[str, dict[str, str]] = {
    "family": {
        "cerberus": "zoo.families.cerberus:Cerberus",
        "detr": "zoo.families.detr:Detr",
        "diffusion": "zoo.families.diffusion.family:Diffusion",
        "miphei": "zoo.families.miphei:Miphei",
        "stardist": "zoo.families.stardist:StarDist",
        "translation": "zoo.families.translation:Translation",
        "unet": "zoo.families.unet:UNet",
    },
    "converter": {
        "cerberus": "zoo.families.cerberus.published:from_files",
        "ctranspath": "zoo.encoders.layouts:from_swin",
        "dinov2": "zoo.encoders.layouts:from_dinov2",
        "kimianet": "zoo.encoders.layouts:from_densenet",
        "mfds-detr": "zoo.families.detr.published:convert_file",
        "miphei": "zoo.families.miphei.published:from_files",
        "large-image-diffusion": "zoo.families.diffusion.published:large_image",
        "pixcell": "zoo.families.diffusion.published:pixcell",
        "pixcell-controlnet": "zoo.families.diffusion.published:pixcell_control",
        "pixcell-original": "zoo.families.diffusion.published:pixcell_original",
        "pixcell-stain": "zoo.families.diffusion.published:pixcell_stain",
        "plain": "zoo.weights.convert:plain_state_dict",
        "stardist": "zoo.families.stardist.convert:folder",
        "pix2pix-code-base": "zoo.families.translation.published:convert_file",
        "timm": "zoo.encoders.layouts:from_timm",
        "torchvision-resnet": "zoo.encoders.layouts:from_resnet",
        "transformers": "zoo.encoders.layouts:from_transformers",
        "zoo": "zoo.weights.convert:zoo_file",
    },
    "decoder": {
        "deeplabv3plus": "zoo.families.unet.decoders:deeplabv3plus",
        "dpt": "zoo.families.unet.decoders:dpt",
        "fpn": "zoo.families.unet.decoders:fpn",
        "linknet": "zoo.families.unet.decoders:linknet",
        "manet": "zoo.families.unet.decoders:manet",
        "pspnet": "zoo.families.unet.decoders:pspnet",
        "segformer": "zoo.families.unet.decoders:segformer",
        "unet": "zoo.families.unet.decoders:unet",
        "unetplusplus": "zoo.families.unet.decoders:unetplusplus",
        "upernet": "zoo.families.unet.decoders:upernet",
    },
    "loss": {
        "boundary_cross_entropy": "zoo.losses:boundary_cross_entropy",
        "cross_entropy": "zoo.losses:cross_entropy",
        "dice": "zoo.losses:dice",
        "focal": "zoo.losses:focal",
        "lovasz": "zoo.losses:lovasz",
        "tversky": "zoo.losses:tversky",
    },
    "metric": {
        "dice": "zoo.metrics.semantic:dice",
        "iou": "zoo.metrics.semantic:iou",
        "pixel_f1": "zoo.metrics.semantic:pixel_f1",
        "pixel_precision": "zoo.metrics.semantic:pixel_precision",
        "pixel_recall": "zoo.metrics.semantic:pixel_recall",
        "pixel_accuracy": "zoo.metrics.semantic:pixel_accuracy",
        "dice_pooled": "zoo.metrics.pooled:dice_pooled",
        "hd95": "zoo.metrics.surface:hd95",
        "surface_dice": "zoo.metrics.surface:surface_dice",
        "ece": "zoo.metrics.calibration:ece",
        "brier": "zoo.metrics.calibration:brier",
        "ece_pooled": "zoo.metrics.pooled:ece_pooled",
        "object_f1": "zoo.metrics.instances:object_f1",
        "object_precision": "zoo.metrics.instances:object_precision",
        "object_recall": "zoo.metrics.instances:object_recall",
        "object_accuracy": "zoo.metrics.instances:object_accuracy",
        "object_ap": "zoo.metrics.instances:object_ap",
        "object_f1_pooled": "zoo.metrics.pooled:object_f1_pooled",
        "dq": "zoo.metrics.instances:dq",
        "sq": "zoo.metrics.instances:sq",
        "pq": "zoo.metrics.instances:pq",
        "pq_pooled": "zoo.metrics.pooled:pq_pooled",
        "aji": "zoo.metrics.instances:aji",
        "aji_plus": "zoo.metrics.instances:aji_plus",
        "object_dice": "zoo.metrics.instances:object_dice",
        "glas_f1": "zoo.metrics.instances:glas_f1",
        "object_hausdorff": "zoo.metrics.shapes:object_hausdorff",
        "centroid_f1": "zoo.metrics.shapes:centroid_f1",
        "count_error": "zoo.metrics.instances:count_error",
        "mpq": "zoo.metrics.types:mpq",
        "mpq_pooled": "zoo.metrics.pooled:mpq_pooled",
        "type_f1": "zoo.metrics.types:type_f1",
        "typed_object_f1": "zoo.metrics.types:typed_object_f1",
        "psnr": "zoo.metrics.picture:psnr",
        "ssim": "zoo.metrics.picture:ssim",
        "pearson": "zoo.metrics.picture:pearson",
        "dab_concordance": "zoo.metrics.immunostain:dab_concordance",
        "positive_area_error": "zoo.metrics.immunostain:positive_area_error",
        "positive_cell_f1": "zoo.metrics.immunostain:positive_cell_f1",
        "positive_count_correlation": "zoo.metrics.pooled:positive_count_correlation",
        "positive_share_error": "zoo.metrics.immunostain:positive_share_error",
        "picture_fid": "zoo.metrics.pooled:picture_fid",
        "picture_kid": "zoo.metrics.pooled:picture_kid",
        "cell_auc": "zoo.metrics.calls:cell_auc",
        "cell_auc_called": "zoo.metrics.calls:cell_auc_called",
        "cell_balanced_accuracy": "zoo.metrics.calls:cell_balanced_accuracy",
        "cell_count_pearson": "zoo.metrics.calls:cell_count_pearson",
        "cell_f1": "zoo.metrics.calls:cell_f1",
        "cell_pearson": "zoo.metrics.calls:cell_pearson",
        "box_f1": "zoo.metrics.boxes:box_f1",
        "box_precision": "zoo.metrics.boxes:box_precision",
        "box_recall": "zoo.metrics.boxes:box_recall",
        "box_count_error": "zoo.metrics.boxes:box_count_error",
        "attribute_f1": "zoo.metrics.boxes:attribute_f1",
        "coco_ap": "zoo.metrics.pooled:coco_ap",
        "coco_ap50": "zoo.metrics.pooled:coco_ap50",
        "coco_ap75": "zoo.metrics.pooled:coco_ap75",
        "coco_ap_small": "zoo.metrics.pooled:coco_ap_small",
        "coco_ap_medium": "zoo.metrics.pooled:coco_ap_medium",
        "coco_ap_large": "zoo.metrics.pooled:coco_ap_large",
        "coco_ar1": "zoo.metrics.pooled:coco_ar1",
        "coco_ar10": "zoo.metrics.pooled:coco_ar10",
        "coco_ar100": "zoo.metrics.pooled:coco_ar100",
        "attribute_f1_pooled": "zoo.metrics.pooled:attribute_f1_pooled",
        "differential_error": "zoo.metrics.pooled:differential_error",
        "label_accuracy": "zoo.metrics.labels:label_accuracy",
        "balanced_accuracy": "zoo.metrics.pooled:balanced_accuracy",
        "fid": "zoo.metrics.features:fid",
        "kid": "zoo.metrics.features:kid",
        "phv": "zoo.metrics.features:phv",
        "robustness_index": "zoo.metrics.features:robustness_index",
    },
    "measure": {
        "cell_classifier": "zoo.metrics.cells:cell_classifier",
        "cell_expression": "zoo.metrics.cells:expression",
        "cell_gate": "zoo.metrics.cells:gate",
        "coco": "zoo.metrics.coco:Evaluation",
        "golden_threshold": "zoo.metrics.operating:golden_threshold",
        "kid": "zoo.metrics.features:kid_of",
        "knn_balanced_accuracy": "zoo.metrics.features:knn_balanced_accuracy",
        "marker_scores": "zoo.metrics.cells:marker_scores",
        "neighbours": "zoo.metrics.features:neighbours",
        "object_matching": "zoo.metrics.instances:matching",
        "object_report": "zoo.metrics.instances:report",
        "robustness_curves": "zoo.metrics.features:robustness_curves",
        "saved_picture": "zoo.metrics.picture:saved",
    },
    "optimizer": {
        "adam": "zoo.training.optim:adam",
        "adamw": "zoo.training.optim:adamw",
        "sgd": "zoo.training.optim:sgd",
    },
    "schedule": {
        "constant": "zoo.training.optim:Constant",
        "cosine": "zoo.training.optim:Cosine",
        "linear-decay": "zoo.training.optim:LinearDecay",
        "plateau": "zoo.training.optim:Plateau",
        "poly": "zoo.training.optim:Poly",
        "warm-hold": "zoo.training.optim:WarmHold",
    },
    "augmentation": {
        "affine": "zoo.data.augment:Affine",
        "albumentations": "zoo.data.augment:Albumentations",
        "blur": "zoo.data.steps:Blur",
        "brightness-contrast": "zoo.data.steps:BrightnessContrast",
        "elastic": "zoo.data.augment:Elastic",
        "flips": "zoo.data.steps:Flips",
        "fluorescence": "zoo.data.fluorescence:Fluorescence",
        "gamma": "zoo.data.steps:Gamma",
        "hole": "zoo.data.steps:Hole",
        "hue": "zoo.data.augment:Hue",
        "intensity": "zoo.data.steps:Intensity",
        "jpeg": "zoo.data.augment:Jpeg",
        "mosaic": "zoo.data.compose:Mosaic",
        "noise": "zoo.data.steps:Noise",
        "randstainna": "zoo.data.stains:RandStainNA",
        "restained": "zoo.data.steps:Restained",
        "rotate90": "zoo.data.steps:Rotate90",
        "stain-augment": "zoo.data.stains:StainAugment",
        "stain-jitter": "zoo.data.steps:StainJitter",
        "stain-normalise": "zoo.data.stains:StainNormalise",
        "zoom": "zoo.data.compose:Zoom",
    },
    "reader": {
        "bccd": "zoo.data.readers.voc:BccdReader",
        "coco": "zoo.data.readers.coco:CocoReader",
        "deepliif": "zoo.data.readers.strips:DeepLiifReader",
        "dsb2018": "zoo.data.readers.dsb2018:Dsb2018Reader",
        "folder": "zoo.data.readers.folder:FolderOfImages",
        "glas": "zoo.data.readers.glas:GlasReader",
        "hemit": "zoo.data.readers.mif:HemitReader",
        "leukemia-attri": "zoo.data.readers.coco:LeukemiaAttriReader",
        "mif-tiles": "zoo.data.readers.mif:TilesReader",
        "nifti": "zoo.data.readers.nifti:NiftiReader",
        "package": "zoo.data.readers.package:PackageReader",
        "pairs": "zoo.data.readers.pairs:PairsReader",
        "phantom": "zoo.data.phantom.reader:PhantomReader",
        "phantom-mif": "zoo.data.phantom.reader:MifReader",
        "phantom-slide": "zoo.data.phantom.reader_slide:SlideReader",
        "phantom-smear": "zoo.data.phantom.reader_smear:SmearReader",
        "phantom-stains": "zoo.data.phantom.reader:StainsReader",
        "phantom-volume": "zoo.data.phantom.reader_volume:VolumeReader",
        "voc": "zoo.data.readers.voc:VocReader",
        "wbc": "zoo.data.readers.wbc:WbcReader",
    },
    "writer": {
        "boxes": "zoo.io.writers:BoxesWriter",
        "instances": "zoo.io.writers:InstancesWriter",
        "label": "zoo.io.writers:LabelWriter",
        "picture": "zoo.io.writers:PictureWriter",
        "semantic": "zoo.io.writers:SemanticWriter",
    },
    "procedure": {
        "denoising": "zoo.families.diffusion.procedure:Denoising",
        "embedding-flow": "zoo.families.diffusion.procedure:Translating",
        "mean-teacher": "zoo.families.detr.teacher:MeanTeacher",
    },
    "target": {
        "box_assignment": "zoo.losses.detection:match",
        "box_cost": "zoo.losses.detection:match_cost",
        "cerberus_ellipses": "zoo.families.cerberus.targets:ellipses",
        "cerberus_objects": "zoo.families.cerberus.targets:object_targets",
        "cerberus_patch_class": "zoo.families.cerberus.targets:patch_class",
    },
    "postprocess": {
        "cerberus_inside": "zoo.families.cerberus.objects:keep_inside",
        "cerberus_instances": "zoo.families.cerberus.objects:instances",
        "cerberus_records": "zoo.families.cerberus.objects:records",
        "cerberus_windows": "zoo.families.cerberus.windows:windows",
        "top_boxes": "zoo.postprocess.boxes:top_boxes",
    },
    "transform": {
        "short_side": "zoo.nn.boxes:short_side",
    },
    "cases": {
        "cerberus": "zoo.families.cerberus.cases:answer",
        "kimianet": "zoo.families.cerberus.kimianet:answer",
        "leukemia-attri": "zoo.families.detr.cases:answer",
        "mfds-detr": "zoo.families.detr.cases:answer",
        "asp": "zoo.families.translation.cases:answer",
        "asp/metric": "zoo.metrics.cases:answer",
        "mfds-detr/metric": "zoo.metrics.cases:answer",
        "miphei-vit": "zoo.families.miphei.cases:answer",
        "miphei-vit/metric": "zoo.metrics.cases:answer",
        "robustness-index/metric": "zoo.metrics.cases:answer",
        "stardist/metric": "zoo.metrics.cases:answer",
        "pixcell": "zoo.families.diffusion.cases:answer",
        "stardist": "zoo.families.stardist.cases:answer",
        "stain": "zoo.stain.cases:answer",
    },
    "engine": {
        "fills": "zoo.encoders.fill:fits",
        "fits": "zoo.families.build:fits",
        "maps": "zoo.inference.predict:maps_of",
        "predict": "zoo.inference.predict:predict_array",
    },
}

_GROUPS = {"family": "zoo.families", "cases": "zoo.cases", "converter": "zoo.converters"}
"""Kinds to which other packages may add, and their entry-point groups."""

_SEE = {
    "family": "zoo list families",
    "encoder": "zoo list encoders",
    "metric": "zoo list metrics",
}


@functools.cache
def table(kind: str) -> dict[str, str]:
    """Return name -> "module:attribute" of one kind, with what other installed packages add."""
    found = dict(TABLES[kind])
    if kind in _GROUPS:
        for point in metadata.entry_points(group=_GROUPS[kind]):
            found.setdefault(point.name, point.value)
    return found


def names(kind: str) -> list[str]:
    """Return the names of one kind, sorted; imports nothing."""
    return sorted(table(kind))


def unknown(kind: str, name: str) -> str:
    """Return the sentence that says there is no such component, with the nearest names."""
    return f'no {kind} "{name}". {suggest(name, names(kind), _SEE.get(kind, ""))}'.strip()


def get(kind: str, name: str) -> Any:
    """Return the component of that name, importing its module. Raises `UserError` for an unknown name."""
    known = table(kind)
    if name not in known:
        raise UserError(unknown(kind, name))
    return resolve(known[name])


@functools.cache
def resolve(target: str) -> Any:
    """Return what "module:attribute" names."""
    module, _, attribute = target.partition(":")
    found: Any = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found
