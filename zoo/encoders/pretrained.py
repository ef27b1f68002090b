"""Pretrained weights of encoders: what is on this machine, what can be fetched, and what to do where neither is.

The cache is looked at first. The network is touched only for weights that were asked for by name and are nowhere on
this machine: announced on standard error, one try, short time limits, checked against the hub's own SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from zoo import paths
from zoo.encoders import listing
from zoo.encoders.listing import Info, Weights
from zoo.errors import UserError, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.encoders.base import Encoder

TIMEOUT = 8.0  # seconds for a connection, and for each answer
WRAPPERS = ("state_dict", "model", "teacher", "model_state", "net")


class Build(Protocol):
    """How a library builds an encoder."""

    def __call__(
        self,
        info: Info,
        in_channels: int,
        tag: str | None,
        tensors: Mapping[str, Tensor] | None,
        arguments: Mapping[str, Any],
    ) -> Encoder: ...


@dataclass(frozen=True)
class File:
    """A file of pretrained weights on this machine; `tag` is None for a file of the user's own."""

    path: Path
    tag: str | None
    label: str


def check(name: str, weights: str | Path = "none") -> None:
    """Raise `UserError` where an encoder or its weights are unknown, or not here and must not be fetched.

    Needs neither torch nor a network, for whoever checks a recipe before anything starts.
    """
    info = listing.info(name)
    found = choose(info, weights)
    if isinstance(found, Weights) and local(info, found) is None and _forbidden():
        raise absent(info, found, _forbidden())


def find(info: Info, weights: str | Path) -> File | None:
    """Return the file behind `weights`, fetching it where that is allowed, or None for "none". Raises `UserError`."""
    chosen = choose(info, weights)
    if isinstance(chosen, Weights):
        return File(local(info, chosen) or fetch(info, chosen), chosen.tag, chosen.tag)
    return None if chosen is None else File(chosen, None, chosen.name)


def choose(info: Info, weights: str | Path) -> Weights | Path | None:
    """Return what `weights` names: known weights, a file of the user's own, or None for "none". Raises `UserError`."""
    text = str(weights)
    if text == "none":
        return None
    if text in info.weights or text == "imagenet":
        chosen = info.weights.get(text) or info.weights.get(info.imagenet or "")
        if chosen is None:
            raise UserError(f"encoder {info.name}: it has no ImageNet weights. {_tags(info)}")
        return chosen
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.suffix or os.sep in text:
        raise UserError(f"encoder {info.name}: weights: no file {path}. Expected none, imagenet, a tag or a file.")
    raise UserError(f'encoder {info.name}: no weights "{text}". {suggest(text, info.weights)} {_tags(info)}'.strip())


def _tags(info: Info) -> str:
    if not info.weights:
        return "No pretrained weights are known for it: write weights: none, or the path of a file."
    shown = ", ".join(list(info.weights)[:4]) + (", ..." if len(info.weights) > 4 else "")
    return f"Expected none, imagenet, a file, or one of {shown}. See: zoo show {info.name}"


def place(info: Info, weights: Weights) -> Path:
    """Return where the zoo keeps a file of pretrained encoder weights."""
    suffix = Path(weights.file if weights.repo else urlsplit(weights.url or "").path).suffix or ".pth"
    source = "" if info.source == "timm" else f"{info.source}-"
    return paths.cache_root() / "encoders" / f"{source}{info.model}.{weights.tag}{suffix}"


def local(info: Info, weights: Weights) -> Path | None:
    """Return the file if it is on this machine: in the zoo's cache, Hugging Face's or torch's; asks no network."""
    candidates = [place(info, weights)]
    if weights.repo:
        candidates += _hub_files(weights.repo, weights.file, weights.revision)
    elif weights.url:
        home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
        candidates.append(home / "hub" / "checkpoints" / Path(urlsplit(weights.url).path).name)
    return next((path for path in candidates if path.is_file()), None)


def _hub_files(repo: str, file: str, revision: str) -> list[Path]:
    """Return where Hugging Face's cache would hold a file (its documented layout; the client loads slowly)."""
    root = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    folder = Path(os.environ.get("HF_HUB_CACHE", root)) / f"models--{repo.replace('/', '--')}"
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    return [folder / "snapshots" / commit / file]


# --- the network ------------------------------------------------------------------------------------------------------


def _forbidden() -> str:
    if paths.offline():
        return "ZOO_OFFLINE=1 forbids fetching them"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE=1 forbids fetching them"
    return ""


def absent(info: Info, weights: Weights, why: str) -> UserError:
    """Return the error that says which page has the file and where to put it."""
    licence = f" (licence: {weights.licence})" if weights.licence else ""
    return UserError(
        f"encoder {info.name}: weights {weights.tag} are not on this machine, and {why}. "
        f"Download {_mirrored(weights.download)}{licence} and put it at {place(info, weights)}, or write weights: none."
    )


def _mirrored(address: str | None) -> str:
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    text = address or "(no address is known)"
    return text.replace("https://huggingface.co", mirror, 1) if mirror else text


def fetch(info: Info, weights: Weights) -> Path:
    """Download a file into the zoo's cache: announced, one try. Raises `UserError` that says what to do by hand."""
    address = _mirrored(weights.download)
    why = _forbidden()
    if not why and not weights.download:
        why = "the library names no address"
    if not why and not reachable(address):
        why = f"{urlsplit(address).hostname} cannot be reached"
    if why:
        raise absent(info, weights, why)
    target = place(info, weights)
    licence = f", licence {weights.licence}" if weights.licence else ""
    print(f"fetching {address}{licence} -> {target}", file=sys.stderr)  # noqa: T201
    try:
        download(address, target)
    except (OSError, ValueError) as error:
        raise absent(info, weights, f"fetching them failed ({error})") from None
    return target


def reachable(address: str) -> bool:
    """Return whether a connection can be opened, within `TIMEOUT` even where the name server is silent."""
    parts = urlsplit(address)
    if any(os.environ.get(n) for n in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy")):
        return True  # a proxy is asked instead
    port = parts.port or (443 if parts.scheme == "https" else 80)
    opened: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname or "", port), timeout=TIMEOUT).close()
            opened.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return bool(opened)


class _Remember(HTTPRedirectHandler):
    """Keeps the SHA-256 that the Hugging Face hub states in its redirect to the file."""

    sha256 = ""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.sha256 = headers.get("X-Linked-Etag", self.sha256).strip('W/"')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(address: str, target: Path) -> None:
    """Stream `address` into `target`, atomically. Raises `OSError`, or `ValueError` where the checksum differs."""
    remember, digest = _Remember(), hashlib.sha256()
    request = Request(address, headers={"User-Agent": "histozoo"})
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with build_opener(remember).open(request, timeout=TIMEOUT) as answer, partial.open("wb") as file:
            while block := answer.read(1 << 20):
                digest.update(block)
                file.write(block)
        if len(remember.sha256) == 64 and remember.sha256 != digest.hexdigest():
            raise ValueError("the file's SHA-256 is not the one that the hub states")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


# --- from a file into an encoder --------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a .safetensors or torch file; nothing in it is executed. Raises `UserError`."""
    import pickle

    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: the file holds more than tensors, and nothing in it is executed. "
            "Expected a state dict. Save the tensors alone as .safetensors."
        ) from None
    except Exception as error:  # a truncated or foreign file fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as weights ({reason}). Expected .safetensors or a .pth.") from None
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise UserError(f"{path}: the file holds no state dict. Expected names and tensors.")
    return {k.removeprefix("module."): v for k, v in tensors.items()}


def filled(build: Build, info: Info, in_channels: int, file: File, arguments: Mapping[str, Any]) -> Encoder:
    """Return an encoder with a file's weights, every one of them accounted for. Raises `UserError`.

    Libraries skip entries that do not fit. So the encoder is built twice from one seed, with and without the file:
    a weight that is equal in both was not in the file.
    """
    import torch

    from zoo.encoders.base import untouched

    tensors = read(file.path)
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(0)
            encoder = build(info, in_channels, file.tag, tensors, arguments)
        except (RuntimeError, KeyError) as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:3])
            raise UserError(f"{file.path}: does not fit encoder {info.name}: {reason[:300]}") from None
        torch.manual_seed(0)
        missing = untouched(encoder, build(info, in_channels, file.tag, None, arguments), tensors)
    if missing:
        raise UserError(
            f"{file.path}: does not fit encoder {info.name}: it leaves {len(missing)} of its tensors as they were, "
            f"among them {missing[0].removeprefix('net.')}. Expected a state dict of {info.source}'s {info.model}."
        )
    return encoder
