"""Downloads over a server that drops, lies, refuses and dawdles."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from local_server import Behaviour, Server

from zoo.errors import UserError
from zoo.fetch import FetchError
from zoo.fetch.http import Request, Settings, download

DATA = bytes(range(256)) * 12_000  # 3 MB: several blocks
SHA = hashlib.sha256(DATA).hexdigest()
PAGE = "https://example.org/the-model"


@pytest.fixture(autouse=True)
def _user(home: Path) -> None:
    pass


class Naps(list[float]):
    """Remembers how long it was told to sleep, and does not."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def asked(server: Server, folder: Path, **more: Any) -> Request:
    server.files["/w.bin"] = DATA
    return Request(f"{server.url}/w.bin", folder / "w.bin", **{"sha256": SHA, "page": PAGE, **more})


def quick(**more: Any) -> Settings:
    return Settings(**{"connect": 2.0, "read": 2.0, "sleep": Naps(), **more})


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_file_is_had_once(server: Server, tmp_path: Path) -> None:
    request = asked(server, tmp_path / "deep" / "er")
    assert download(request, quick()) == SHA
    assert request.target.read_bytes() == DATA
    assert left(request.target.parent) == ["w.bin"]
    assert download(request, quick()) == SHA
    assert len(server.seen) == 1


def test_a_drop_in_mid_file_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.plan = [Behaviour(drop_after=1_500_000), Behaviour(drop_after=1_000_000)]
    assert download(asked(server, tmp_path), quick()) == SHA
    starts = [int(r.removeprefix("bytes=")[:-1]) for r in server.ranges()[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] <= 1_500_000
    assert starts[0] < starts[1] <= 2_500_000


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server: Server, tmp_path: Path) -> None:
    request = asked(server, tmp_path)
    server.plan = [Behaviour(drop_after=2_000_000)] + [Behaviour(drop_after=0)] * 9
    with pytest.raises(FetchError, match=r"w\.bin: .*bytes are kept: the same command goes on from there later\."):
        download(request, quick(attempts=3))
    kept = request.partial.stat().st_size
    assert kept > 0
    assert not request.target.exists()
    server.plan = []
    server.seen.clear()
    assert download(request, quick()) == SHA
    assert server.ranges() == [f"bytes={kept}-"]


def test_a_file_that_changed_in_between_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    request = asked(server, tmp_path, sha256=None)
    server.plan = [Behaviour(drop_after=2_000_000)] + [Behaviour(drop_after=0)] * 2
    with pytest.raises(FetchError):
        download(request, quick(attempts=2))
    new = bytes(reversed(DATA))
    server.files["/w.bin"], server.plan = new, []
    assert download(request, quick()) == hashlib.sha256(new).hexdigest()
    assert request.target.read_bytes() == new


@pytest.mark.parametrize("known", [True, False])
def test_without_an_entity_tag_only_a_known_sum_lets_one_go_on(server: Server, tmp_path: Path, known: bool) -> None:
    server.etags = False
    server.plan = [Behaviour(drop_after=1_500_000)]
    assert download(asked(server, tmp_path, sha256=SHA if known else None), quick()) == SHA
    assert (server.ranges()[1] != "") is known


def test_parts_that_do_not_belong_together_are_fetched_once_more(server: Server, tmp_path: Path) -> None:
    server.etags = False
    request = asked(server, tmp_path)
    request.partial.write_bytes(b"of another file" * 1000)
    assert download(request, quick()) == SHA


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.plan = [Behaviour(drop_after=1_500_000), Behaviour(no_ranges=True)]
    assert download(asked(server, tmp_path), quick()) == SHA


def test_a_whole_part_needs_no_more(server: Server, tmp_path: Path) -> None:
    request = asked(server, tmp_path)
    request.partial.write_bytes(DATA)
    assert download(request, quick()) == SHA
    request.target.unlink()
    request.partial.write_bytes(DATA + b"more than there is")
    assert download(request, quick()) == SHA


def test_a_wrong_sum_is_quarantined(server: Server, tmp_path: Path, home: Path) -> None:
    request = asked(server, tmp_path / "c", sha256="0" * 64)
    with pytest.raises(FetchError, match=rf"SHA-256 is {SHA}, its card says 0+\. The file was not used") as caught:
        download(request, quick())
    (kept,) = (home / "cache" / "quarantine").iterdir()
    assert kept.name == f"{SHA[:12]}-w.bin"
    assert kept.read_bytes() == DATA
    assert str(kept) in str(caught.value)
    assert left(tmp_path / "c") == []


def test_a_file_that_is_there_and_is_wrong_is_fetched_anew(server: Server, tmp_path: Path, home: Path) -> None:
    request = asked(server, tmp_path)
    request.target.write_bytes(b"damaged")
    assert download(request, quick()) == SHA
    assert [p.read_bytes() for p in (home / "cache" / "quarantine").iterdir()] == [b"damaged"]


@pytest.mark.parametrize(("size", "what"), [(len(DATA) + 5, "the server has"), (100, "the server has")])
def test_another_length_than_the_card_says(server: Server, tmp_path: Path, size: int, what: str) -> None:
    with pytest.raises(FetchError, match=f"{what} {len(DATA)} bytes, its card says {size}"):
        download(asked(server, tmp_path, size=size), quick())


def test_a_server_that_promises_more_than_it_sends(server: Server, tmp_path: Path) -> None:
    server.plan = [Behaviour(length=len(DATA) + 1000)] * 3
    with pytest.raises(FetchError, match=r"broke off|connection failed"):
        download(asked(server, tmp_path, sha256=None), quick(attempts=2, read=0.5))
    assert not (tmp_path / "w.bin").exists()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, rf"access is not granted \(401\)\. Visit {PAGE}, accept the terms there, and set HF_TOKEN"),
        (403, "access is not granted"),
        (404, rf"the file is not there \(404\)\. Visit {PAGE}"),
        (410, "the file is not there"),
        (418, rf"the server answers 418 .* See {PAGE}"),
    ],
)
def test_what_a_status_means(server: Server, tmp_path: Path, status: int, words: str) -> None:
    server.plan = [Behaviour(status=status)]
    with pytest.raises(FetchError, match=words):
        download(asked(server, tmp_path), quick())
    assert len(server.seen) == 1


def test_too_many_requests_are_waited_for(server: Server, tmp_path: Path) -> None:
    settings = quick()
    server.plan = [Behaviour(status=429, headers={"Retry-After": "7"}), Behaviour(status=503)]
    assert download(asked(server, tmp_path), settings) == SHA
    assert settings.sleep[0] == 7
    assert 0 < settings.sleep[1] < 7


def test_a_wait_that_is_too_long_is_said(server: Server, tmp_path: Path) -> None:
    settings = quick()
    server.plan = [Behaviour(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(FetchError, match=r"429 \(too many requests\)\. Try again in 3600 s\."):
        download(asked(server, tmp_path), settings)
    assert settings.sleep == []


def test_a_wait_until_a_date(server: Server, tmp_path: Path) -> None:
    from email.utils import formatdate
    from time import time

    settings = quick()
    server.plan = [Behaviour(status=503, headers={"Retry-After": formatdate(time() + 30, usegmt=True)})]
    assert download(asked(server, tmp_path), settings) == SHA
    assert 25 < settings.sleep[0] <= 30


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(server: Server, tmp_path: Path) -> None:
    server.plan = [Behaviour(piece=20_000)]
    assert download(asked(server, tmp_path), quick()) == SHA
    (tmp_path / "w.bin").unlink()
    server.plan = [Behaviour(stall=0.6)] * 2
    with pytest.raises(FetchError, match=r"the server was silent for 0\.2 s"):
        download(asked(server, tmp_path), quick(read=0.2, attempts=2))


def test_a_web_page_is_not_the_file(server: Server, tmp_path: Path) -> None:
    server.types["/w.bin"] = "text/html; charset=utf-8"
    with pytest.raises(FetchError, match=rf"a web page in place of the file\. Visit {PAGE} in a browser.*--from FILE"):
        download(asked(server, tmp_path), quick())


def test_nobody_listens(tmp_path: Path) -> None:
    request = Request("http://127.0.0.1:9/w.bin", tmp_path / "w.bin")
    with pytest.raises(FetchError, match=r"the connection failed \(.*refused\)\. Try again later") as caught:
        download(request, quick(attempts=2))
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize("name", ["ZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=f"{name}=1 forbids fetching"):
        download(asked(server, tmp_path), quick())
    assert server.seen == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "w.bin"])
def test_other_schemes(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="is no scheme to download from"):
        download(Request(url, tmp_path / "w.bin"), quick())


def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    server.plan = [Behaviour(piece=100_000)]
    request, sums = asked(server, tmp_path), []
    threads = [threading.Thread(target=lambda: sums.append(download(request, quick()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [SHA] * 3
    assert len(server.seen) == 1


def test_processes_share_a_download(server: Server, tmp_path: Path) -> None:
    server.plan = [Behaviour(piece=50_000)]
    request = asked(server, tmp_path)
    code = "import sys; from pathlib import Path; from zoo.fetch.http import Request, download; "
    code += "print(download(Request(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))"
    command = [sys.executable, "-c", code, request.url, str(request.target), SHA]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [worker.communicate(timeout=60)[0].strip() for worker in workers] == [SHA, SHA]
    assert len(server.seen) == 1


def test_a_secret_is_in_no_message(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server.plan = [Behaviour(status=401)]
    url = f"http://user:hunter2@{server.url.removeprefix('http://')}/w.bin?token=hunter2"
    request = Request(url, tmp_path / "w.bin", headers={"Authorization": "Bearer hunter2"})
    with pytest.raises(FetchError) as caught:
        download(request, quick())
    assert "hunter2" not in str(caught.value) + repr(request.headers and "") + "".join(
        r.getMessage() for r in caplog.records if r.name.startswith("zoo")
    )


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(FetchError, match=r"are needed, 0\.0 GB are free"):
        download(asked(server, tmp_path), quick())


def test_an_unwritable_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="cannot be written"):
        download(asked(server, tmp_path / "file"), quick())


def test_the_sum_that_the_hub_states_is_checked(server: Server, tmp_path: Path, home: Path) -> None:
    server.add_repository("owner/name", "a" * 40, {"w.bin": DATA})
    request = Request(f"{server.url}/owner/name/resolve/main/w.bin", tmp_path / "w.bin")
    assert download(request, quick()) == SHA
    request.target.unlink()
    server.plan = [Behaviour(body=DATA[::-1])]
    with pytest.raises(FetchError, match=f"the hub states {SHA}"):
        download(request, quick())


def test_a_proxy_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    server.files["http://models.example/w.bin"] = DATA
    assert download(Request("http://models.example/w.bin", tmp_path / "w.bin", sha256=SHA), quick()) == SHA


def test_progress_is_shown_on_request(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download(asked(server, tmp_path), quick(progress=True))
    assert "w.bin" in capsys.readouterr().err
