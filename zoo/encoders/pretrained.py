"""Pretrained weights of encoders: what is on this machine, what can be fetched, and what to do where neither is.

The cache is looked at first. The network is touched only for weights that were asked for by name and are nowhere on
this machine: announced on standard error, short time limits, checked against the hub's own SHA-256; what came of a
broken transfer is kept and gone on with.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from zoo import paths
from zoo.encoders import listing
from zoo.encoders.listing import Info, Weights
from zoo.errors import UserError, suggest
from zoo.fetch import FetchError, forbidden, http, hub
from zoo.weights import store

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.encoders.base import Encoder

TIMEOUT = 8.0  # seconds for a connection, and for each answer


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
    if isinstance(found, Weights) and local(info, found) is None and forbidden():
        raise absent(info, found, forbidden())


def find(info: Info, weights: str | Path) -> File | None:
    """Return the file behind `weights`, fetching it where that is allowed, or None for "none". Raises `UserError`."""
    chosen = choose(info, weights)
    if isinstance(chosen, Weights):
        return File(local(info, chosen) or fetch(info, chosen), chosen.tag, chosen.tag)
    if chosen is None:
        return None
    return File(chosen, None, str(info.card) if str(weights) == "published" else chosen.name)


def choose(info: Info, weights: str | Path) -> Weights | Path | None:
    """Return what `weights` names: known weights, a file (the user's, or a pulled one that has a card), or None for
    "none". Raises `UserError`."""
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
    if text == "published":
        return _published(info)
    if path.is_dir():  # a run: the encoder within its model
        return store.find(path).path
    if store.known(text):
        card = store.card(store.resolve(text))
        if card.encoder is None and card.family is None:
            raise UserError(f"encoder {info.name}: weights: {text} are those of the {card.part}. {_tags(info)}")
        return store.find(text).path
    if path.suffix or os.sep in text:
        raise UserError(f"encoder {info.name}: weights: no file {path}. {_tags(info)}")
    raise UserError(f'encoder {info.name}: no weights "{text}". {suggest(text, info.weights)} {_tags(info)}'.strip())


def _published(info: Info) -> Path:
    """Return the pulled file of a foundation encoder's own weights. Raises `UserError`: what to do to have them."""
    if info.card is None:
        raise UserError(f"encoder {info.name}: weights: published is for foundation encoders. {_tags(info)}")
    card = store.card(info.card)
    found = store.local(card)
    if found is not None:
        return found
    why = store.absent(card)
    gate = ""
    if card.gate == "token":
        gate = f"Accept the terms at {card.source.page} and set HF_TOKEN first. "
    raise UserError(f"encoder {info.name}: {str(why).rstrip('.')}. {gate}Or write weights: none for random ones.")


def _tags(info: Info) -> str:
    if info.card:
        return f"Expected none, published ({info.card}) or a file. See: zoo show {info.name}"
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
        found = hub.cached(weights.repo, weights.file, weights.revision)
        candidates += [found] if found else []
    elif weights.url:
        home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
        candidates.append(home / "hub" / "checkpoints" / Path(urlsplit(weights.url).path).name)
    return next((path for path in candidates if path.is_file()), None)


# --- the network ------------------------------------------------------------------------------------------------------


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
    why = forbidden()
    if not why and not weights.download:
        why = "the library names no address"
    if not why and not reachable(address):
        why = f"{urlsplit(address).hostname} cannot be reached"
    if why:
        raise absent(info, weights, why)
    target = place(info, weights)
    licence = f", licence {weights.licence}" if weights.licence else ""
    print(f"fetching {address}{licence} -> {target}", file=sys.stderr)  # noqa: T201
    headers = {"Authorization": f"Bearer {token}"} if weights.repo and (token := _token()) else {}
    request = http.Request(address, target, page=weights.page, headers=headers)
    try:
        http.download(request, http.Settings(connect=TIMEOUT, read=TIMEOUT, attempts=2))
    except FetchError as error:
        raise absent(info, weights, f"fetching them failed ({str(error).rstrip('.')})") from None
    return target


def _token() -> str | None:
    """Return the hub's token, from the environment or the store of its client."""
    from huggingface_hub import get_token

    found = get_token()
    return str(found) if found else None


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


# --- from a file into an encoder --------------------------------------------------------------------------------------


def filled(build: Build, info: Info, in_channels: int, file: File, arguments: Mapping[str, Any]) -> Encoder:
    """Return an encoder with a file's weights, every one of them accounted for. Raises `UserError`.

    Libraries skip entries that do not fit. So the encoder is built twice from one seed, with and without the file:
    a weight that is equal in both was not in the file.
    """
    from zoo.weights.readers import state_dict

    tensors = state_dict(file.path)
    inside = _of_a_model(build, info, in_channels, file, tensors, arguments)
    if inside is not None:
        return inside
    encoder = from_tensors(build, info, in_channels, file, tensors, arguments)
    kernel = tensors.get("patch_embed.proj.weight")
    if file.tag is None and encoder.patch and kernel is not None and kernel.shape[-1] != encoder.patch:
        raise UserError(  # timm resizes such a kernel without a word
            f"{file.path}: its patches are {kernel.shape[-2]} x {kernel.shape[-1]} pixels, those of encoder "
            f"{info.name} {encoder.patch} x {encoder.patch}. Expected weights of the same; `patch` resizes them "
            "afterwards."
        )
    return encoder


def _of_a_model(
    build: Build, info: Info, in_channels: int, file: File, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> Encoder | None:
    """Return the encoder of a whole model of the zoo, None where the file is none that has this encoder.

    Within a model the encoder's entries lie under one prefix. Raises `UserError` where several encoders fit.
    """
    import torch

    if file.tag is not None or not any(".encoder." in name for name in tensors):
        return None
    with torch.random.fork_rng(devices=[]):
        encoder = build(info, in_channels, None, None, arguments)
    wanted = {name: value.shape for name, value in encoder.state_dict().items()}
    first = next(iter(wanted))
    prefixes = [
        prefix
        for prefix in sorted(name.removesuffix(first) for name in tensors if name.endswith(f".{first}"))
        if all(prefix + name in tensors and tensors[prefix + name].shape == shape for name, shape in wanted.items())
    ]
    if not prefixes:
        return None
    if len(prefixes) > 1:
        places = ", ".join(prefix.rstrip(".") for prefix in prefixes)
        raise UserError(
            f"{file.path}: {len(prefixes)} encoders of it fit {info.name}: {places}. Expected one. "
            "Save the one that is meant in a file of its own."
        )
    encoder.load_state_dict({name: tensors[prefixes[0] + name] for name in wanted})
    return encoder


def from_tensors(
    build: Build,
    info: Info,
    in_channels: int,
    file: File,
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
) -> Encoder:
    """Return what `filled` does, of a file's tensors under the library's names."""
    import torch

    from zoo.encoders.base import untouched

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
            f"among them {missing[0].removeprefix('net.')}. Expected a state dict of {info.source}'s {info.model}, "
            "or a model of the zoo that has this encoder."
        )
    return encoder
