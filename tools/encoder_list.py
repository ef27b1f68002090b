"""Write zoo/encoders/names.json: every encoder that takes pictures of any size, and what is known of it.

    python tools/encoder_list.py                            # names that are not there yet: goes on where it stopped
    python tools/encoder_list.py --again                    # all of timm and smp, about ten minutes of one core
    python tools/encoder_list.py --again --only 'resnet*'   # these anew, the rest as it stands

Every model is built on the meta device (shapes without numbers) and sent pictures of 320 x 256 and 64 x 96
through the Encoder contract. A model is listed when every level comes out; one whose maps are a pixel off
size / stride is marked `exact: false`, for the wrapper resizes them. Models that fail stand
under `refused` with the reason. `tools/sweep_encoders.py` runs the listed ones for real.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from zoo.encoders import smp_models, timm_models
from zoo.encoders.base import Encoder, parameter_count
from zoo.encoders.listing import FILE, Info

SIZES = ((320, 256), (64, 96))
PYRAMID_BUILDS: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
VIT_BUILDS: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {})
DIVISORS = (32, 64, 224, 256, 384, 512)  # the larger ones for windows of 7, 8, 12 and 16 at stride 32
BATCH = 20  # names between two writes, so that a stopped run goes on where it was
IMAGENET = ("in1k", "in12k", "in21k", "in22k", "imagenet")


def info_of(name: str, source: str, kind: str, build: dict[str, Any], divisor: int = 1, minimum: int = 1) -> Info:
    """Return an `Info` of a model that is on trial."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Info(name, source, name, "", kind, (), (), 0, mean, std, divisor, minimum, True, {}, None, build)  # type: ignore[arg-type]


def sizes_of(encoder: Encoder, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes of the maps that the backbone makes of a picture, before the wrapper fits them."""
    with torch.inference_mode():
        found = encoder.extract(torch.empty(1, encoder.in_channels, *size, device=next(encoder.parameters()).device))
    channels = [int(m.shape[1]) for m in found.maps]
    if channels != list(encoder.channels):
        raise ValueError(f"channels {channels}, declared {encoder.channels}")
    if encoder.patch and found.tokens is None:
        raise ValueError("no tokens")
    return [(int(m.shape[2]), int(m.shape[3])) for m in found.maps]


def runs(encoder: Encoder, divisor: int) -> tuple[bool, int]:
    """Return whether the maps have exactly the declared sizes, and the smallest side that goes through."""
    exact, minimum = True, 1
    for size in (*SIZES, *([(2 * divisor, divisor)] if divisor > 64 else [])):
        padded = tuple(-(-s // divisor) * divisor for s in size)
        try:
            maps = sizes_of(encoder, (padded[0], padded[1]))
        except Exception:
            if size != (64, 96):
                raise
            minimum = 128
            maps = sizes_of(encoder, (128, 160))
            padded = (128, 160)
        exact &= maps == [(padded[0] // s, padded[1] // s) for s in encoder.strides]
        for got, stride in zip(maps, encoder.strides, strict=True):
            if max(abs(g - p / stride) for g, p in zip(got, padded, strict=True)) > 1:
                raise ValueError(f"a map of {got} at stride {stride} from {padded}")
    return exact, minimum


def is_pyramid(strides: tuple[int, ...]) -> bool:
    """Return whether the strides rise, each once, and reach at least 16."""
    return len(strides) >= 3 and list(strides) == sorted(set(strides)) and strides[-1] >= 16


def attempt(name: str, kind: str) -> dict[str, Any]:
    """Return the entry of a timm model, without its weights. Raises the plainest reason for which it cannot be used."""
    reasons: list[Exception] = []
    builds = PYRAMID_BUILDS if kind == "pyramid" else VIT_BUILDS
    for build, device in [(b, "meta") for b in builds] + [(b, "cpu") for b in builds]:
        if device == "cpu" and not any("meta" in str(r) for r in reasons):
            break  # real numbers are only needed by models that look at them
        try:
            with torch.device(device):
                encoder = timm_models.build(info_of(name, "timm", kind, build), 3, None, None, {}).eval()
        except Exception as error:
            reasons.append(error)
            continue
        if kind == "pyramid" and not is_pyramid(encoder.strides):
            raise ValueError(f"no pyramid: strides {encoder.strides}")
        base = max(encoder.strides)
        for divisor in [base] if kind == "vit" else sorted({max(base, d) for d in DIVISORS}):
            try:
                exact, minimum = runs(encoder, divisor)
                if kind == "vit" and minimum > 1:
                    raise ValueError("it takes no small pictures")
            except Exception as error:
                reasons.append(error)
                continue
            return entry_of(encoder, "timm", kind, build, divisor, minimum, exact)
    raise reasons[0 if kind == "pyramid" else -1]


def entry_of(
    encoder: Encoder, source: str, kind: str, build: dict[str, Any], divisor: int, minimum: int, exact: bool
) -> dict[str, Any]:
    """Return the entry of an encoder; what is usual is left out."""
    entry: dict[str, Any] = {"source": source}
    entry |= {"kind": kind} if kind != "pyramid" else {}
    entry |= {"channels": list(encoder.channels), "strides": list(encoder.strides), "divisor": divisor}
    entry |= {"minimum": minimum} if minimum > divisor else {}
    entry |= {} if exact else {"exact": False}
    entry |= {"build": build} if build else {}
    entry["parameters"] = parameter_count(encoder)
    entry["mean"], entry["std"] = [round(v, 6) for v in encoder.mean], [round(v, 6) for v in encoder.std]
    return entry


def timm_weights(name: str) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Return timm's pretrained tags with their licence, and the tag behind `weights: imagenet`."""
    found: dict[str, dict[str, Any]] = {}
    for full, config in get_arch_pretrained_cfgs(name).items():
        tag = full.partition(".")[2]
        if not tag or not (config.hf_hub_id or config.url):
            continue
        entry: dict[str, Any] = {"licence": config.license} if config.license else {}
        if config.hf_hub_id:
            repo = config.hf_hub_id if "/" in config.hf_hub_id else f"timm/{config.hf_hub_id}"
            entry |= {"repo": repo} if repo != f"timm/{full}" else {}
            entry |= {"file": config.hf_hub_filename} if config.hf_hub_filename else {}
        else:
            entry["url"] = config.url
        found[tag] = entry
    default = get_pretrained_cfg(name)
    order = [default.tag, *found] if default is not None and default.tag in found else list(found)
    return found, next((t for t in order if any(word in t for word in IMAGENET)), None)


def timm_entries(wanted: list[str], failures: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the entries of timm's models."""
    found: dict[str, dict[str, Any]] = {}
    for name in wanted:
        entry, reasons = None, []
        for kind in ("pyramid", "vit"):
            try:
                entry = attempt(name, kind)
                break
            except Exception as error:
                reasons.append((str(error).splitlines() or [repr(error)])[0][:110])
        if entry is None:
            failures[name] = "; ".join(dict.fromkeys(reasons))
            continue
        entry["architecture"] = timm.models._registry._model_to_module[name]
        entry["weights"], imagenet = timm_weights(name)
        entry |= {"imagenet": imagenet} if imagenet else {}
        found[name] = entry
    return found


def smp_entries(known: set[str], only: str, failures: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the entries of smp's own encoders; a name that timm has, up to punctuation, gets the prefix."""
    same = {n.replace("-", "").replace("_", "") for n in known}
    found: dict[str, dict[str, Any]] = {}
    for name in smp_models.names():
        if not matches(name, only):
            continue
        try:
            with torch.device("meta"):
                encoder = smp_models.build(info_of(name, "smp", "pyramid", {}), 3, None, None, {}).eval()
            exact, minimum = runs(encoder, 32)
        except Exception as error:
            failures[f"smp:{name}"] = (str(error).splitlines() or [repr(error)])[0][:110]
            continue
        entry = entry_of(encoder, "smp", "pyramid", {}, 32, minimum, exact)
        entry["architecture"] = type(encoder.net).__name__
        entry["weights"] = {
            tag: {"revision": s["revision"]}
            | ({"repo": s["repo_id"]} if s["repo_id"] != f"smp-hub/{name}.{tag}" else {})
            for tag, s in smp_models.settings(name).items()
        }
        entry |= {"imagenet": "imagenet"} if "imagenet" in entry["weights"] else {}
        taken = name.replace("-", "").replace("_", "") in same
        found[f"smp:{name}" if taken else name] = entry
    return found


def matches(name: str, patterns: str) -> bool:
    """Return whether a name matches one of several patterns, apart by commas."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))


def write(entries: dict[str, dict[str, Any]], refused: dict[str, str], path: Path) -> None:
    """Write the list, one encoder a line, atomically."""
    import segmentation_models_pytorch

    lines = [f"{json.dumps(n)}: {json.dumps(entries[n], separators=(',', ':'))}" for n in sorted(entries)]
    made = {"tool": "tools/encoder_list.py", "timm": timm.__version__, "smp": segmentation_models_pytorch.__version__}
    body = ",\n".join(lines)
    reasons = ",\n".join(f"{json.dumps(n)}: {json.dumps(refused[n])}" for n in sorted(refused))
    text = f'{{"made": {json.dumps(made)},\n"encoders": {{\n{body}\n}},\n"refused": {{\n{reasons}\n}}}}\n'
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the encoders of a list, and the models that it refuses with the reasons."""
    if not path.is_file():
        return {}, {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["encoders"], found.get("refused", {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="only names that match one of these patterns, apart by commas")
    parser.add_argument("--again", action="store_true", help="also names that are listed or refused already")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    entries, refused = read(options.out)
    done = set() if options.again else set(entries) | set(refused)
    wanted = [n for n in timm.list_models() if matches(n, options.only) and n not in done]
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        failures: dict[str, str] = {}
        found = timm_entries(batch, failures)
        entries = {n: e for n, e in entries.items() if n not in batch} | found
        refused = {n: r for n, r in refused.items() if n not in batch} | failures
        write(entries, refused, options.out)
    failures = {}
    known = {n for n, e in entries.items() if e["source"] == "timm"}
    found = smp_entries(known, options.only, failures)
    stale = {name for n in found for name in (n.removeprefix("smp:"), f"smp:{n}") if name not in known}
    entries = {n: e for n, e in entries.items() if n not in stale} | found
    write(entries, refused | failures, options.out)
    print(f"{len(entries)} listed, {len(refused | failures)} refused", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
