"""The verbs below `clearhead weights`."""

from collections.abc import Callable

from clearhead.cli.weights import convert, fetch, inspect, map, verify

HELP = "Inspect a model's weights, verify them, fetch them, and write them in another layout."

VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "inspect": (inspect.inspect_weights, inspect.EPILOG),
    "map": (map.map_weights, map.EPILOG),
    "verify": (verify.verify_weights, verify.EPILOG),
    "convert": (convert.convert_weights, convert.EPILOG),
    "fetch": (fetch.fetch_weights, fetch.EPILOG),
}
"""Each verb with the text below its help."""
