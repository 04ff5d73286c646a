"""The tour's pages served to browsers on this machine only."""

from __future__ import annotations

import errno
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from clearhead.errors import InputError
from clearhead.tour.site import Page, Site

_HERE = "127.0.0.1"
_POLICY = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"


def open_server(site: Site, port: int = 0) -> ThreadingHTTPServer:
    """A server that listens already; `serve_forever` begins to answer, and its address says the port.

    Args:
        site: the pages.
        port: where to listen; 0 for any that is free.

    Raises:
        InputError: where the port is taken or cannot be had.
    """

    class Handler(_Handler):
        pages = site

    try:
        return ThreadingHTTPServer((_HERE, port), Handler)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "another program listens there" if taken else getattr(error, "strerror", None) or error
        raise InputError(
            f"port {port} cannot be used ({why}); give another --port, or none for one that is free."
        ) from None


class _Handler(BaseHTTPRequestHandler):
    pages: Site
    server_version, sys_version = "clearhead", ""
    timeout = 30  # seconds; a connection on which nothing comes is closed

    def do_GET(self) -> None:
        self.wfile.write(self._head())

    def do_HEAD(self) -> None:
        self._head()

    def _head(self) -> bytes:
        """Sends status and headers, and returns the body."""
        path = unquote(urlsplit(self.path).path)
        try:
            page = self.pages.page(path)
            status = 200 if page.found else 404
        except InputError as error:  # a chapter was broken or taken away while the server runs
            page, status = Page(str(error).encode(), "text/plain; charset=utf-8"), 500
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Security-Policy", _POLICY if "svg" not in page.kind else "style-src 'unsafe-inline'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        return page.body

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the terminal belongs to the person who reads."""
