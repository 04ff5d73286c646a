"""The notebooks in examples/: they run, their conclusions hold, and they print what the committed files show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from notebooks import printed, run_notebook

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_conclusion_holds(path: Path) -> None:
    committed = json.loads(path.read_text(encoding="utf-8"))
    done = run_notebook(path)
    assert "assert " in "".join(done["cells"][-1]["source"])
    assert printed(done)[-1] == printed(committed)[-1] != ""


def test_notebooks_are_small_and_were_run_in_order() -> None:
    assert len(NOTEBOOKS) >= 4
    for path in NOTEBOOKS:
        assert path.stat().st_size < 100_000, path.name
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), path.name
