"""The tour: ten short chapters through a GPT-2, whose code runs and is held against the output written below it.

`chapters.py` finds them, `cells.py` runs them and compares, `figures.py` draws what they draw, `site.py` makes pages of
them, and `server.py` serves these to a browser on the same machine. The chapters are in `docs/tour` of the project.
"""

from clearhead.tour.cells import Cell, Problem, check, parse, rewrite
from clearhead.tour.chapters import LANGUAGES, Chapter, find, folder

__all__ = ["LANGUAGES", "Cell", "Chapter", "Problem", "check", "find", "folder", "parse", "rewrite"]
