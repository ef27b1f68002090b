"""Downloads that can be gone on with: one file, one lock, one checksum, and a sentence for whatever a server says.

A file appears under its name only when it is whole and is what was expected. Until then its bytes lie beside it
(`.NAME.part`), with what the server said of it (`.NAME.part.json`), so that a later call, of this process or another,
asks for the rest only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zoo.errors import UserError
from zoo.fetch import FetchError, checksum, forbidden, quarantine, room_for, shown, wrong_checksum

BLOCK = 1 << 16
CONNECT, READ = 10.0, 60.0
"""Seconds for a connection, and of silence within an answer."""
ATTEMPTS = 6
"""Tries without a single new byte before giving up."""
LONGEST_WAIT = 120.0
"""Seconds that a server may ask us to wait; where it asks for more, the user is told."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class _Again(Exception):
    """An attempt failed in a way that a later one may not; `wait`: seconds that the server asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Request:
    """What is to be had: address, where it goes, what it must be, and the page that a person may visit."""

    url: str
    target: Path
    sha256: str | None = None
    size: int | None = None
    page: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    says: str = "its card says"

    @property
    def partial(self) -> Path:
        """Where the bytes lie until the file is whole."""
        return self.target.with_name(f".{self.target.name}.part")

    @property
    def about(self) -> Path:
        """What the server said of the file."""
        return self.target.with_name(f".{self.target.name}.part.json")


@dataclass
class Settings:
    """How patient a download is, and whether it shows a bar (None: where standard error is a terminal)."""

    connect: float = CONNECT
    read: float = READ
    attempts: int = ATTEMPTS
    sleep: Callable[[float], None] = time.sleep
    progress: bool | None = None


def download(request: Request, settings: Settings | None = None) -> str:
    """Have the file under its name, whole and checked, and return its SHA-256.

    A file that is there and has the right sum is left alone. Where neither the caller nor the server (the hub states
    one in its redirect) knows a sum, the file is believed. Raises `FetchError` where it cannot be had (what came is
    kept, a later call goes on), `UserError` where the network is forbidden or the address is none.
    """
    settings = settings or Settings()
    scheme = urlsplit(request.url).scheme
    if scheme not in ("http", "https"):
        raise UserError(f'{shown(request.url)}: "{scheme}" is no scheme to download from. Expected http or https.')
    if why := forbidden():
        raise UserError(f"{shown(request.url)}: {why}. Unset it, or see docs/how-to-weights.md for machines without.")
    try:
        request.target.parent.mkdir(parents=True, exist_ok=True)
        with locked(request.target) as lock:
            found = _have(request, settings)
            lock.unlink(missing_ok=True)  # safe now: whoever still waits for it finds the whole file
            return found
    except OSError as error:  # of the disk: those of the network are caught where they arise
        place = error.filename or request.target
        raise FetchError(f"{place}: cannot be written ({error.strerror}). Make room, or set ZOO_CACHE.") from None


@contextlib.contextmanager
def locked(target: Path, what: str = "") -> Iterator[Path]:
    """Hold the lock of a file or folder, over processes, and give the lock's own file.

    Says so where another process holds it.
    """
    from filelock import FileLock, Timeout

    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_name(f".{target.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=1.0)
    except Timeout:
        print(f"waiting for another process that fetches {what or target.name}", file=sys.stderr)  # noqa: T201
        lock.acquire()
    try:
        yield file
    finally:
        lock.release()


def _have(request: Request, settings: Settings) -> str:
    if request.target.is_file():
        actual = checksum(request.target)
        if request.sha256 in (None, actual):
            return actual
        quarantine(request.target)
    resumed = request.partial.is_file()
    stated = _receive(request, settings)
    expected = request.sha256 or stated
    actual = checksum(request.partial)
    if expected and actual != expected and resumed:  # the parts may not belong together: once more from the start
        request.partial.unlink()
        _receive(request, settings)
        actual = checksum(request.partial)
    request.about.unlink(missing_ok=True)
    if expected and actual != expected:
        says = request.says if request.sha256 else "the hub states"
        raise wrong_checksum(request.partial, shown(request.url), actual, expected, says)
    request.partial.replace(request.target)
    return actual


def _receive(request: Request, settings: Settings) -> str:
    """Fill the partial file, going on after every failure that may pass; returns the sum that the server states."""
    failures = 0
    while True:
        before = request.partial.stat().st_size if request.partial.is_file() else 0
        try:
            return _attempt(request, settings, before)
        except _Again as error:
            after = request.partial.stat().st_size if request.partial.is_file() else 0
            failures = 1 if after > before else failures + 1
            wait = error.wait if error.wait is not None else min(0.5 * 2**failures, 20.0)
            if failures >= settings.attempts or wait > LONGEST_WAIT:
                later = f"in {wait:.0f} s" if error.wait is not None else "later"
                kept = f" {after} bytes are kept: the same command goes on from there" if after else " Try again"
                raise FetchError(f"{shown(request.url)}: {error}.{kept} {later}.".replace("  ", " ")) from None
            settings.sleep(wait)


def _attempt(request: Request, settings: Settings, start: int) -> str:
    import requests

    headers = {"User-Agent": "histozoo", "Accept-Encoding": "identity", **request.headers}
    validator = _validator(request)
    if start and (validator or request.sha256):
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    else:
        start = 0
    try:
        timeout = (settings.connect, settings.read)
        with requests.get(request.url, headers=headers, stream=True, timeout=timeout) as answer:
            stated = _judge(request, answer, start)
            if answer.status_code == 416:
                return stated
            start = start if answer.status_code == 206 else 0
            _note(request, answer)
            _write(request, answer, start, settings)
            return stated
    except requests.exceptions.SSLError as error:
        raise FetchError(f"{shown(request.url)}: the server's certificate is not accepted ({_root(error)}).") from None
    except requests.exceptions.Timeout:
        raise _Again(f"the server was silent for {settings.read:g} s") from None
    except requests.exceptions.ConnectionError as error:
        raise _Again(f"the connection failed ({_root(error)})") from None
    except requests.exceptions.RequestException as error:
        raise _Again(f"the transfer broke off ({_root(error)})") from None


def _root(error: BaseException) -> str:
    """Return the innermost reason of a chain of exceptions, in a few words and without addresses' queries."""
    inner: Any = error
    for _ in range(6):
        following = getattr(inner, "reason", None) or (inner.args[0] if getattr(inner, "args", None) else None)
        following = following or inner.__cause__
        if not isinstance(following, BaseException):
            break
        inner = following
    strerror = getattr(inner, "strerror", None)
    text = str(strerror or inner).split("object at 0x")[-1].partition(": ")[2] or str(strerror or inner)
    return " ".join(text.split())[:120] or type(inner).__name__


def _validator(request: Request) -> str | None:
    """Return what the server called the version that we have a part of: a strong entity tag, or a date."""
    try:
        about = json.loads(request.about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if about.get("url") != request.url:
        return None
    found = about.get("etag") or about.get("modified")
    return str(found) if found else None


def _note(request: Request, answer: Any) -> None:
    etag = answer.headers.get("ETag", "")
    about = {
        "url": request.url,
        "etag": "" if etag.startswith("W/") else etag,
        "modified": answer.headers.get("Last-Modified", ""),
    }
    request.about.write_text(json.dumps(about), encoding="utf-8")


def _judge(request: Request, answer: Any, start: int) -> str:
    """Return the sum that the server states, "" where it states none. Raises what the status means."""
    status, url = answer.status_code, shown(request.url)
    page = f" See {request.page}" if request.page else ""
    if request.url.startswith("https:") and answer.url.startswith("http:"):
        raise FetchError(f"{url}: the server sends on to an address without encryption. Refused.{page}")
    if status in (401, 403):
        raise FetchError(
            f"{url}: access is not granted ({status}). Visit {request.page or url}, accept the terms there, and set "
            "HF_TOKEN (or run: hf auth login)."
        )
    if status in (404, 410):
        raise FetchError(f"{url}: the file is not there ({status}). Visit {request.page or url}: it may have moved.")
    if status in _PASSING:
        said = "too many requests" if status == 429 else answer.reason or "no reason given"
        raise _Again(f"the server answers {status} ({said})", _retry_after(answer.headers.get("Retry-After")))
    if status == 416:
        return _out_of_range(request, answer)
    if status not in (200, 206):
        raise FetchError(f"{url}: the server answers {status} ({answer.reason}).{page}")
    if status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        request.partial.unlink(missing_ok=True)
        raise _Again("the server sent another part than was asked for")
    if "text/html" in answer.headers.get("Content-Type", "") and not request.target.suffix.startswith(".htm"):
        raise FetchError(
            f"{url}: the server sent a web page in place of the file. Visit {request.page or url} in a browser, save "
            "the file, and give it: --from FILE."
        )
    total = _total(answer, start)
    if total is not None and request.size is not None and total != request.size:
        raise FetchError(
            f"{url}: the server has {total} bytes, {request.says} {request.size}. The publisher has changed the file."
            f"{page}"
        )
    room_for(request.target.parent, None if total is None else total - start)
    return _stated(answer)


def _stated(answer: Any) -> str:
    """Return the SHA-256 that the Hugging Face hub states where it sends on to the file."""
    for one in (*answer.history, answer):
        tag = one.headers.get("X-Linked-Etag", "").strip('W/"')
        if len(tag) == 64 and set(tag) <= set("0123456789abcdef"):
            return str(tag)
    return ""


def _out_of_range(request: Request, answer: Any) -> str:
    """The server has nothing after what we have: all of it is here, or our part is none of this file."""
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if total.isdigit() and int(total) == request.partial.stat().st_size:
        return _stated(answer)
    request.partial.unlink()
    raise _Again("the part that was here belongs to another file")


def _total(answer: Any, start: int) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) + (start if answer.status_code == 206 else 0) if length.isdigit() else None


def _retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def _write(request: Request, answer: Any, start: int, settings: Settings) -> None:
    from tqdm import tqdm

    total = _total(answer, start)
    hidden = None if settings.progress is None else not settings.progress
    with (
        request.partial.open("r+b" if start else "wb") as file,
        tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=request.target.name[:32], disable=hidden,
            leave=False, dynamic_ncols=True,
        ) as bar,
    ):  # fmt: skip
        file.seek(start)
        received = start
        for block in answer.iter_content(BLOCK):
            received += len(block)
            if request.size is not None and received > request.size:
                raise FetchError(f"{shown(request.url)}: the server sends more than the {request.size} bytes expected.")
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if (total is not None and received < total) or (request.size is not None and received < request.size):
        raise _Again(f"the transfer broke off after {received} of {total or request.size} bytes")
