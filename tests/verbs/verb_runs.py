"""Runs of verbs that several tests share."""

import json
import signal
import subprocess
from typing import Any

from command_line import PATIENCE, call


def interrupt(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Ctrl-C; what it still writes to its two streams. A process that goes on all the same is killed."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


SMALL = ["--emb-dim", "24", "--n-heads", "4", "--n-layers", "2", "--context-length", "32"]


def made(*args: object, stdin: bytes = b"") -> dict[str, Any]:
    """What `generate --json` says."""
    result = call("generate", *args, "--json", stdin=stdin)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))
