"""Write the text from which the induction model learns.

    python examples/induction/make_text.py texts
    clearhead train induction --data texts --out runs/induction

Each line draws some letters, and for each of them the letter that follows it; then it goes from letter to letter, with
a jump now and then. Nothing about a line can be known in advance, so predicting it takes induction: find an earlier
copy of the current letter, and repeat what followed. Strings that simply repeat would not do. A model of this size
predicts them without an induction head: it attends one period back, or prefers the letter not seen for longest.
"""

from __future__ import annotations

import random
import string
import sys
from pathlib import Path

LETTERS_OF_A_LINE = (8, 26)
LENGTH = 48
JUMP = 0.3


def random_line(drawn: random.Random) -> str:
    """Return the letters of one line, in which a letter is followed by its own successor in 7 of 10 cases."""
    letters = drawn.sample(string.ascii_lowercase, drawn.randint(*LETTERS_OF_A_LINE))
    successors = {letter: drawn.choice(letters) for letter in letters}
    line = [drawn.choice(letters)]
    while len(line) < LENGTH:
        line.append(drawn.choice(letters) if drawn.random() < JUMP else successors[line[-1]])
    return "".join(line)


def random_text(lines: int, seed: int) -> str:
    """Return lines, each with its own letters and successors."""
    drawn = random.Random(seed)
    return "".join(f"{random_line(drawn)}\n" for _ in range(lines))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lines.txt").write_text(random_text(20_000, seed=1), encoding="utf-8", newline="\n")
