"""A small HTTP server that answers as the hub does, for the few requests that fetching a model makes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves folders as models.

    Attributes:
        models: the folder of each model, by name.
        gated: names to which access is refused.
        wrong: what to give in place of a file, by its name.
        more_files: names of files that are listed and do not exist.
        portal: a page with which every request is answered, with status 200.
        requests: every request so far, as `GET /path`.
    """

    def __init__(self, models: dict[str, Path], gated: frozenset[str] = frozenset()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.gated = models, gated
        self.requests: list[str] = []
        self.wrong: dict[str, bytes] = {}
        self.broken = False
        self.more_files: list[str] = []
        self.portal = b""

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(models: dict[str, Path], gated: frozenset[str] = frozenset()) -> Iterator[Hub]:
    """Runs a hub for as long as the block lasts."""
    hub = Hub(models, gated)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+)/?)?", path)
        file = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        if self.server.portal:
            self._send(200, self.server.portal, {"Content-Type": "text/html"})
        elif self.server.broken:
            self._send(503, b"{}")
        elif api and self._may_see(api[1]):
            if api[3] not in (None, "main", COMMIT):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif api[2] == "tree":
                self._send_json([self._entry(p) for p in self._files(api[1])])
            else:
                siblings = [self._sibling(p) for p in self._files(api[1])]
                siblings += [{"rfilename": file, "size": 3} for file in self.server.more_files]
                self._send_json({"id": api[1], "modelId": api[1], "sha": COMMIT, "siblings": siblings})
        elif file and self._may_see(file[1]):
            self._send_file(self.server.models[file[1]] / file[3])

    def _may_see(self, name: str) -> bool:
        if name in self.server.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return False
        if name not in self.server.models:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _files(self, name: str) -> list[Path]:
        return sorted(path for path in self.server.models[name].iterdir() if path.is_file())

    def _entry(self, path: Path) -> dict[str, Any]:
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _etag(path)}

    def _sibling(self, path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        found: dict[str, Any] = {"rfilename": path.name, "size": len(data)}
        if path.suffix in (".json", ".txt", ".md"):
            return found | {"blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return found | {"blobId": "0" * 40, "lfs": lfs}

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = self.server.wrong.get(path.name, path.read_bytes())
        self._send(200, data, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
