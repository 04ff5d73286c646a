"""A small HTTP server that answers as the hub does, for the few requests that fetching a model or a data set makes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATASETS = "datasets/"
"""What the hub puts before the name of a data set in addresses of files; `Hub.models` has them under the same names."""


class Hub(ThreadingHTTPServer):
    """Serves folders as models and data sets.

    Attributes:
        models: the folder of each model, by name; of a data set, by `datasets/` and its name.
        commit: the revision that `main` is.
        older: earlier revisions, and what `models` was then.
        gated: names to which access is refused.
        wrong: what to give in place of a file, by its name.
        more_files: names of files that are listed and do not exist.
        portal: a page with which every request is answered, with status 200.
        requests: every request so far, as `GET /path`.
    """

    def __init__(self, models: dict[str, Path], gated: frozenset[str] = frozenset()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.gated = models, gated
        self.commit = COMMIT
        self.older: dict[str, dict[str, Path]] = {}
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

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = re.sub("^/api/models/", "/api/", path)
        api = re.fullmatch(r"/api/((?:datasets/)?[^/]+(?:/[^/]+)?)(?:/(revision|tree|paths-info)/([^/]+)/?)?", path)
        file = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        if self.server.portal:
            self._send(200, self.server.portal, {"Content-Type": "text/html"})
        elif self.server.broken:
            self._send(503, b"{}")
        elif api and self._may_see(api[1]):
            if api[3] not in (None, "main", self.server.commit, *self.server.older):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif api[2] == "paths-info":
                wanted = urllib.parse.parse_qs(body.decode())["paths"]
                self._send_json([self._entry(p) for p in self._files(api[1], api[3]) if p.name in wanted])
            elif api[2] == "tree":
                self._send_json([self._entry(p) for p in self._files(api[1], api[3])])
            else:
                siblings = [self._sibling(p) for p in self._files(api[1], api[3])]
                siblings += [{"rfilename": file, "size": 3} for file in self.server.more_files]
                name = api[1].removeprefix(DATASETS)
                self._send_json({"id": name, "modelId": api[1], "sha": self._commit(api[3]), "siblings": siblings})
        elif file and self._may_see(file[1]):
            self._send_file(self._folder(file[1], file[2]) / file[3], self._commit(file[2]))
        elif not api and not file:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"} if "/tree/" in path else None)

    def _may_see(self, name: str) -> bool:
        if name in self.server.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return False
        if name not in self.server.models:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _folder(self, name: str, revision: str | None) -> Path:
        return self.server.older.get(revision or "main", self.server.models)[name]

    def _files(self, name: str, revision: str | None) -> list[Path]:
        return sorted(path for path in self._folder(name, revision).iterdir() if path.is_file())

    def _commit(self, revision: str | None) -> str:
        return revision if revision in self.server.older else self.server.commit

    def _entry(self, path: Path) -> dict[str, Any]:
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _etag(path)}

    def _sibling(self, path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        found: dict[str, Any] = {"rfilename": path.name, "size": len(data)}
        if path.suffix in (".json", ".txt", ".md"):
            return found | {"blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return found | {"blobId": "0" * 40, "lfs": lfs}

    def _send_file(self, path: Path, commit: str) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = self.server.wrong.get(path.name, path.read_bytes())
        self._send(200, data, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": commit})

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
