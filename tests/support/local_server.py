"""An HTTP server on loopback that behaves as told: ranges, drops, wrong lengths, statuses, slowness; and, for paths of
its layout, like the Hugging Face hub."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """How the next answer goes wrong."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    length: int | None = None
    extra: bytes = b""
    stall: float = 0.0
    piece: int = 0
    """Send in pieces of so many bytes, with a pause."""
    no_ranges: bool = False
    body: bytes | None = None


@dataclass
class Server:
    """`files`: path -> content; `plan`: behaviours of the answers to come; `seen`: requests (method, path, headers)."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    plan: list[Behaviour] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    etags: bool = True
    token: str | None = None
    commits: dict[str, str] = field(default_factory=dict)
    """Hub repository -> commit of main."""
    gated: set[str] = field(default_factory=set)

    def ranges(self) -> list[str]:
        """The Range headers of the requests so far."""
        return [headers.get("Range", "") for method, _, headers in self.seen if method == "GET"]

    def add_repository(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        """Publish a hub repository: its files at a commit, which is what main is."""
        self.commits[name] = commit
        for file, content in files.items():
            for revision in (commit, "main"):
                self.files[f"/{name}/resolve/{revision}/{file}"] = content


def _handler(state: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def hub(self, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str]]:
            repository = "/".join(self.path.split("/")[1:3])
            if repository not in state.commits:
                return 0, headers
            if repository in state.gated and self.headers.get("Authorization") != f"Bearer {state.token}":
                return 403 if self.headers.get("Authorization") else 401, {"X-Error-Code": "GatedRepo"}
            digest = hashlib.sha256(content).hexdigest()
            more = {"X-Repo-Commit": state.commits[repository], "ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"'}
            return 0, headers | more

        def answer(self, body: bool) -> None:
            state.seen.append((self.command, self.path, dict(self.headers)))
            how = state.plan.pop(0) if state.plan and body else Behaviour()
            if how.stall:
                time.sleep(how.stall)
            if how.status:
                self.plain(how.status, how.headers, how.body or b"")
                return
            content = state.files.get(self.path.partition("?")[0])
            if content is None:
                known = "/".join(self.path.split("/")[1:3]) in state.commits
                self.plain(
                    404,
                    {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"} if "/resolve/" in self.path else {},
                )
                return
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'} if state.etags else {}
            status, headers = self.hub(headers, content)
            if status:
                self.plain(status, headers)
                return
            content = how.body if how.body is not None else content
            start, code = 0, 200
            asked = self.headers.get("Range")
            fresh = self.headers.get("If-Range") in (None, headers.get("ETag"))
            if asked and fresh and not how.no_ranges:
                start, code = int(asked.removeprefix("bytes=").split("-")[0]), 206
                if start >= len(content):
                    self.plain(416, {"Content-Range": f"bytes */{len(content)}"})
                    return
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(code, headers | how.headers, content[start:] + how.extra, how, body)

        def plain(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
            self.send(status, headers, data, Behaviour(), self.command == "GET")

        def send(self, code: int, headers: dict[str, str], data: bytes, how: Behaviour, body: bool) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", state.types.get(self.path, "application/octet-stream"))
            self.send_header("Content-Length", str(len(data) if how.length is None else how.length))
            self.end_headers()
            if not body:
                return
            sent = data if how.drop_after is None else data[: how.drop_after]
            step = how.piece or len(sent) or 1
            try:
                for at in range(0, len(sent), step):
                    self.wfile.write(sent[at : at + step])
                    if how.piece:
                        time.sleep(0.002)
            except (BrokenPipeError, ConnectionResetError):
                pass
            if how.drop_after is not None or how.length is not None:
                self.close_connection = True

    return Handler


@contextmanager
def serving() -> Iterator[Server]:
    """A running server."""
    state = Server("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
