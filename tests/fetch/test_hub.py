"""The hub's client against a local hub: cache layout, revisions, gates, tokens, and what its errors mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_server import Server

from zoo.errors import UserError
from zoo.fetch import FetchError, consent, hub

COMMIT = "1234567890" * 4
NAME = "owner/name"


@pytest.fixture(autouse=True)
def _hub(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # it is read when the client is imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(home / "hf" / "token"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.add_repository(NAME, COMMIT, {"model.safetensors": b"weights", "sub/settings.json": b"{}"})


def test_a_file_lands_in_the_clients_cache(server: Server, home: Path) -> None:
    path = hub.file(NAME, "model.safetensors", COMMIT)
    assert path == home / "hf" / "hub" / "models--owner--name" / "snapshots" / COMMIT / "model.safetensors"
    assert path.read_bytes() == b"weights"
    assert hub.commit_of(path) == COMMIT
    server.seen.clear()
    assert hub.file(NAME, "model.safetensors", COMMIT) == path
    assert server.seen == []  # a commit cannot change: nobody is asked


def test_main_becomes_a_commit(server: Server) -> None:
    path = hub.file(NAME, "sub/settings.json")
    assert hub.commit_of(path) == COMMIT
    assert hub.cached(NAME, "sub/settings.json", None) == path
    assert hub.cached(NAME, "other.json", None) is None
    assert hub.cached("owner/other", "x", None) is None


def test_a_cache_that_another_program_filled(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "hf" / "hub" / "models--lab--net" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "w.bin").write_bytes(b"here")
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert hub.file("lab/net", "w.bin", COMMIT).read_bytes() == b"here"
    with pytest.raises(UserError, match=r"lab/net: other\.bin is not in .*, and ZOO_OFFLINE=1 forbids fetching"):
        hub.file("lab/net", "other.bin", COMMIT)
    assert server.seen == []


@pytest.mark.parametrize(
    ("repository", "name", "revision", "words"),
    [
        (NAME, "absent.bin", COMMIT, r"it has no file absent\.bin at 1234567890.*Visit .*/owner/name"),
        ("owner/absent", "w.bin", COMMIT, r"there is no such repository, or it is not open to you\. Visit"),
    ],
)
def test_what_is_not_there(server: Server, repository: str, name: str, revision: str, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        hub.file(repository, name, revision)


def test_a_gated_repository_wants_a_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.gated, server.token = {NAME}, "hf_secret"
    with pytest.raises(
        FetchError, match=r"access on request\. Visit https://x\.org/terms, accept .*HF_TOKEN"
    ) as caught:
        hub.file(NAME, "model.safetensors", COMMIT, "https://x.org/terms")
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(FetchError) as caught:
        hub.file(NAME, "model.safetensors", COMMIT)
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert hub.file(NAME, "model.safetensors", COMMIT).read_bytes() == b"weights"


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def silent(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub " + "and " * 50)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", silent)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    with pytest.raises(FetchError, match=r"for hub\.example does not answer\. .*pull it with --from FILE\.$"):
        hub.file(NAME, "other.bin", COMMIT)


def test_the_clients_own_store_of_tokens(server: Server, home: Path) -> None:
    server.gated, server.token = {NAME}, "hf_stored"
    (home / "hf").mkdir(parents=True)
    (home / "hf" / "token").write_text("hf_stored")
    assert hub.file(NAME, "model.safetensors", COMMIT).read_bytes() == b"weights"


def test_an_upload_without_a_token_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no token\. The folder is ready.*HF_TOKEN"):
        hub.upload(tmp_path, NAME, "message")


def test_references() -> None:
    assert hub.parse(f"hf://{NAME}@{COMMIT}") == (NAME, COMMIT)
    assert hub.parse(f"hf://{NAME}") == (NAME, None)
    for bad in ("hf://name", "hf://a/b/c", "hf://a/b@", "hf://../x"):
        with pytest.raises(UserError, match="no hub repository"):
            hub.parse(bad) if bad != "hf://../x" else hub.parse("hf://a b/c")


# --- consent ----------------------------------------------------------------------------------------------------------


def test_consent_is_asked_once_and_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"x: its licence \(CC-BY-NC-4\.0\) is not accepted yet.*--accept-licence"):
        consent.ask("x", "CC-BY-NC-4.0", "Not for commercial use.", accept=False)
    assert "Not for commercial use." in capsys.readouterr().err
    consent.ask("x", "CC-BY-NC-4.0", "terms", accept=True)
    consent.ask("x", "CC-BY-NC-4.0", "terms", accept=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="is not accepted yet"):
        consent.ask("x", "another licence", "terms", accept=False)
    with pytest.raises(UserError, match="is not accepted yet"):
        consent.ask("y", "CC-BY-NC-4.0", "terms", accept=False)


@pytest.mark.parametrize(("typed", "accepted"), [("yes\n", True), ("no\n", False), ("", False)])
def test_consent_at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: str, accepted: bool) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return typed

    monkeypatch.setattr("sys.stdin", Terminal())
    if accepted:
        consent.ask("x", "L", "terms", accept=False)
    else:
        with pytest.raises(UserError, match=r"was not accepted\. Nothing was downloaded"):
            consent.ask("x", "L", "terms", accept=False)
    assert consent.given("x", "L") is accepted
