"""The tour: eleven short chapters on a GPT-2, whose code runs and whose output is checked.

`chapters.py` finds the chapters, `cells.py` runs them and compares, `site.py` turns them into pages, which `server.py`
serves to a browser on the same machine, and `notebooks.py` writes them as notebooks. The chapters are in `docs/tour` of
the project.
"""

from clearhead.tour.cells import Cell, Problem, check, parse, rewrite
from clearhead.tour.chapters import LANGUAGES, Chapter, find, folder

__all__ = ["LANGUAGES", "Cell", "Chapter", "Problem", "check", "find", "folder", "parse", "rewrite"]
