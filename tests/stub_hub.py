"""A model hub over real HTTP: the two paths of Hugging Face's that a pull asks, told how to misbehave.

Large files are redirected to another host name, as the hub does it, and take byte ranges. ``requests`` has what was
asked for, ``ranges`` from which byte on files were asked; ``break_off`` ends a reply early, ``hold`` makes it
pause.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import orjson

LARGE = 1_000
"""From so many bytes on a file is kept as Git LFS does it."""


class StubHub:
    """``files`` by repository, commit and path; ``revisions`` by repository: what a branch or tag means."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.revisions: dict[str, dict[str, str]] = {}
        self.token: str | None = None
        """Without it a repository is not there, as private ones are."""
        self.gated: set[str] = set()
        self.damaged: set[str] = set()
        self.break_off: dict[str, int] = {}
        """By path: replies end after so many bytes, this once."""
        self.hold: dict[str, int] = {}
        """By path: replies pause after so many bytes until ``let_go`` is set."""
        self.held = threading.Event()
        self.let_go = threading.Event()
        self.status: int | None = None
        """Answer everything with this status."""
        self.requests: list[str] = []
        self.ranges: list[tuple[str, int]] = []
        self.authorizations: list[tuple[str, str | None]] = []
        """Of downloads: host as asked, and the header."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, name="hub", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repository: str, files: Mapping[str, bytes], *, revision: str = "main") -> str:
        """A commit that ``revision`` now means; its name."""
        commit = hashlib.sha1(repr((repository, sorted(files.items()))).encode()).hexdigest()
        self.files.setdefault(repository, {})[commit] = dict(files)
        self.revisions.setdefault(repository, {})[revision] = commit
        return commit

    def downloads(self) -> list[str]:
        """Paths of the files that were asked for since the last time."""
        asked, self.ranges = [path for path, _ in self.ranges], []
        return asked


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: StubHub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> StubHub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def do_GET(self) -> None:
        self.hub.requests.append(self.path)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.hub.status is not None:
            self.refuse(self.hub.status, "")
        elif parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), "/".join(parts[5:]))
        elif parts[2:3] != ["resolve"]:
            self.refuse(404, "")
        else:
            self.give("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def describe(self, repository: str, revision: str) -> None:
        right = self.hub.token is None or self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository in self.hub.gated:
            return self.refuse(403, "GatedRepo")
        if repository not in self.hub.files or not right:
            return self.refuse(404 if right else 401, "RepoNotFound")
        commit = self.hub.revisions[repository].get(revision, revision)
        if commit not in self.hub.files[repository]:
            return self.refuse(404, "RevisionNotFound")
        siblings = [_described(path, content) for path, content in self.hub.files[repository][commit].items()]
        return self.send(orjson.dumps({"id": repository, "sha": commit, "siblings": siblings}))

    def give(self, repository: str, commit: str, path: str) -> None:
        content = self.hub.files[repository][commit][path]
        if len(content) >= LARGE and self.headers["Host"].startswith("127.0.0.1"):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.hub.port}{self.path}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Xet-Hash", "0" * 64)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.hub.authorizations.append((self.headers["Host"].split(":")[0], self.headers.get("Authorization")))
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.hub.ranges.append((path, start))
        if path in self.hub.damaged:
            content = bytes(len(content))
        return self.send_file(path, content, start)

    def send_file(self, path: str, content: bytes, start: int) -> None:
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = self.hub.break_off.pop(path, len(content))
        pause = self.hub.hold.get(path, end)
        self.wfile.write(content[start:pause])
        if pause < end:
            self.hub.held.set()
            self.hub.let_go.wait(30)
        with suppress(ConnectionError):  # whoever asked may be gone
            self.wfile.write(content[pause:end])
        self.close_connection = end < len(content)

    def send(self, body: bytes, status: int = 200, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send(b'{"error": "refused"}', status, code)

    def log_message(self, *_: object) -> None:
        pass


def _described(path: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    told: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob}
    if len(content) >= LARGE:
        told["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return told
