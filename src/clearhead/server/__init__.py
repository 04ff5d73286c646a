"""An HTTP server with OpenAI's API. `create_app(gpt)` returns the ASGI application.

A request goes through `limits.py` (keys, sizes, times), `schemas.py` (types and ranges), `completions.py` or `chat.py`
(what it means), and `clearhead.inference.scheduler` (which runs all requests together).
"""

from clearhead.server.app import create_app
from clearhead.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
