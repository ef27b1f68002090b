"""The Hugging Face hub, through its own client: its cache, its locks, its token store, its resumed downloads.

The client's cache is shared with every other program that uses it: what another one downloaded is found here. Tokens
come from the environment (HF_TOKEN) or from the client's store; nothing here prints or keeps one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zoo.errors import UserError
from zoo.fetch import FetchError, forbidden

SCHEME = "hf://"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def endpoint() -> str:
    """Return the address of the hub, or of the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def page(repository: str) -> str:
    """Return the page of a repository, where terms are accepted."""
    return f"{endpoint()}/{repository}"


def cache() -> Path:
    """Return the client's cache folder (its documented rule; importing the client is slow)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def cached(repository: str, name: str, revision: str | None) -> Path | None:
    """Return a file that is in the client's cache; asks no network and imports nothing. None = revision `main`."""
    folder = cache() / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    if revision and is_commit(revision):
        commit = revision
    elif reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    else:
        return None
    path = folder / "snapshots" / commit / name
    return path if path.is_file() else None


def is_commit(revision: str) -> bool:
    """Return whether a revision is a commit, which cannot change, and not a branch or a tag."""
    return bool(_COMMIT.fullmatch(revision))


def parse(reference: str) -> tuple[str, str | None]:
    """Return repository and revision of `hf://OWNER/NAME[@REVISION]`. Raises `UserError`."""
    text, at, revision = reference.removeprefix(SCHEME).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or (at and not re.fullmatch(r"[\w./-]+", revision)):
        raise UserError(f'"{reference}": no hub repository. Expected hf://OWNER/NAME@REVISION.')
    return text, revision or None


def commit_of(path: Path) -> str:
    """Return the commit of a file in the client's cache: the folder below `snapshots`."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""


def file(repository: str, name: str, revision: str | None = None, visit: str | None = None) -> Path:
    """Return a file of a repository at a revision (default: what `main` is now), downloading what is not cached.

    Raises `FetchError` with the page to visit where it cannot be had.
    """
    found = cached(repository, name, revision)
    if found is not None and (forbidden() or (revision and is_commit(revision))):
        return found
    if why := forbidden():
        raise UserError(
            f"{page(repository)}: {name} is not in {cache()}, and {why}. Pull it where the network is open."
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.hf_hub_download(
                repository, name, revision=revision, cache_dir=cache(), endpoint=endpoint(), library_name="histozoo"
            )
        )
    except Exception as error:  # the client's exceptions come from several libraries
        raise refused(error, repository, name, revision, visit) from None


def refused(
    error: Exception, repository: str, name: str, revision: str | None = None, visit: str | None = None
) -> FetchError:
    """Return what an exception of the hub's client means for a user."""
    kinds = {cls.__name__ for cls in type(error).__mro__}
    where, status = visit or page(repository), getattr(getattr(error, "response", None), "status_code", None)
    at = f" at {revision}" if revision else ""
    if "GatedRepoError" in kinds:
        return gated(repository, where)
    if "RepositoryNotFoundError" in kinds or status in (401, 403):
        return FetchError(
            f"{repository}: there is no such repository, or it is not open to you. Visit {where}; where it is private "
            "or gated, set HF_TOKEN (or run: hf auth login)."
        )
    if "RevisionNotFoundError" in kinds:
        return FetchError(f"{repository}: it has no revision {revision}. Visit {where}: it may have been rewritten.")
    if "RemoteEntryNotFoundError" in kinds or ("EntryNotFoundError" in kinds and "Local" not in type(error).__name__):
        return FetchError(f"{repository}: it has no file {name}{at}. Visit {where}: it may have been renamed.")
    if status == 429:
        wait = _header(error, "Retry-After")
        later = f"in {wait} s" if wait else "later"
        return FetchError(f"{where}: the hub answers 429 (too many requests). Try again {later}, or set HF_TOKEN.")
    if status:
        return FetchError(f"{where}: the hub answers {status} for {name}. Try again later.")
    if "LocalEntryNotFoundError" in kinds:  # how the client says that the hub is silent or down
        return FetchError(
            f"{where}: {name} cannot be had, for {urlsplit(endpoint()).hostname} does not answer. Check the network or "
            "the proxy, and try again; or fetch the file elsewhere, and pull it with --from FILE."
        )
    reason = " ".join((str(error).splitlines() or [""])[0].split())[:160] or type(error).__name__
    return FetchError(f"{where}: {name} cannot be had ({reason}). Check the network or the proxy, and try again.")


def gated(repository: str, where: str) -> FetchError:
    """Return what to do where a repository gives its files to those alone who accepted its terms."""
    return FetchError(
        f"{repository}: the owner gives access on request. Visit {where}, accept the terms there, and set HF_TOKEN "
        "(or run: hf auth login)."
    )


def lacks_token() -> bool:
    """Return whether the hub itself, and no mirror that may ask for none, would be asked without a token."""
    if os.environ.get("HF_ENDPOINT"):
        return False
    import huggingface_hub

    return huggingface_hub.get_token() is None


def _header(error: Any, name: str) -> str:
    headers = getattr(getattr(error, "response", None), "headers", {})
    return str(headers.get(name, ""))


def upload(folder: Path, repository: str, message: str) -> str:
    """Upload a folder into a repository, made where there is none, and return the commit's address.

    Raises `UserError` where there is no token, `FetchError` where the hub refuses.
    """
    if why := forbidden():
        raise UserError(f"{page(repository)}: {why}. The folder is ready: upload {folder} where the network is open.")
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UserError(
            f"{page(repository)}: there is no token. The folder is ready: {folder}. Set HF_TOKEN (or run: hf auth "
            "login) to one that may write, and run the same command again."
        )
    api = huggingface_hub.HfApi(endpoint=endpoint(), library_name="histozoo")
    try:
        api.create_repo(repository, exist_ok=True)
        found = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # as above
        raise refused(error, repository, str(folder)) from None
    return str(getattr(found, "commit_url", found))
