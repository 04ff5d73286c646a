"""The verbs below `clearhead corpus`."""

from collections.abc import Callable

from clearhead.cli.corpus import build, inspect

HELP = "Turn texts into token shards to train on, and inspect such a corpus."

VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "build": (build.build, build.EPILOG),
    "inspect": (inspect.inspect, inspect.EPILOG),
}
"""Each verb with the text below its help."""
