"""How much memory a process takes that runs one sequence, and how much scoring a text of a whole context adds.

    python bench/memory.py MODEL --dtype int8

Prints the peak of the process's resident memory (MB of 10^6 bytes) after a prompt of 128 tokens and 32 more, at the
full context, and after a text as long as the context was scored. The weights are mapped from a file, and count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

_RUN = """
import resource, sys
import clearhead
from clearhead.inference.runner import ScoreTask

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6

runner = clearhead.load(sys.argv[1], backend="engine", dtype=sys.argv[2], threads=int(sys.argv[3])).runner
ids = [i % 1000 for i in range(runner.config.context_length)]
slot = runner.open()
runner.extend([(slot, ids[:128])])
for i in range(32):
    runner.extend([(slot, [ids[128 + i]])])
print(f"one sequence of {slot.length} tokens: {peak():.0f} MB at most")
runner.extend([(slot, ids[slot.length:])])
print(f"one sequence of {slot.length} tokens: {peak():.0f} MB at most")
runner.close(slot)
before, slot = peak(), runner.open()
runner.score([ScoreTask(slot, ids[:-1], ids[1:])])
print(f"scoring {len(ids) - 1} tokens adds {peak() - before:.0f} MB")
"""


def main() -> None:
    """Reads the arguments and measures in a fresh process, when everything is compiled and packed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or a name that clearhead.load knows")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    command = [sys.executable, "-c", _RUN, arguments.model, arguments.dtype, str(arguments.threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # compiles and packs
    print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="")


if __name__ == "__main__":
    main()
