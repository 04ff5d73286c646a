"""The HTTP server of the tour's pages, for browsers on this machine only."""

from __future__ import annotations

import errno
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from clearhead.errors import InputError
from clearhead.tour.site import Site, SitePage

_HERE = "127.0.0.1"
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src blob:; connect-src 'self'; style-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'"
)


def open_server(site: Site, port: int = 0) -> ThreadingHTTPServer:
    """Open a server that already listens; `serve_forever` makes it answer, and `server_port` is its port.

    Args:
        site: the pages.
        port: the port; 0 for any free one.

    Raises:
        InputError: if the port is in use or cannot be opened.
    """

    class Handler(_Handler):
        pages = site

    try:
        return ThreadingHTTPServer((_HERE, port), Handler)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "another program uses it" if taken else getattr(error, "strerror", None) or error
        raise InputError(
            f"port {port} cannot be opened ({why}); choose another --port, or leave it out to use a free one."
        ) from None


class _Handler(BaseHTTPRequestHandler):
    pages: Site
    server_version, sys_version = "clearhead", ""
    timeout = 30  # seconds until an idle connection is closed

    def do_GET(self) -> None:
        self.wfile.write(self._head())

    def do_HEAD(self) -> None:
        self._head()

    def _head(self) -> bytes:
        """Send status and headers, and return the body."""
        path = unquote(urlsplit(self.path).path)
        try:
            page = self.pages.page(path)
            status = 200 if page.found else 404
        except InputError as error:  # a chapter was damaged or removed while the server runs
            page, status = SitePage(str(error).encode(), "text/plain; charset=utf-8"), 500
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Content-Security-Policy", _POLICY if "svg" not in page.kind else "style-src 'unsafe-inline'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        return page.body

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the terminal shows only the address."""
