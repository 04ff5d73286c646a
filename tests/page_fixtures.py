"""For the tests of the page: the file with the bundled model, that model in Python, and axe-core.

Test modules load this as a plugin of pytest.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import OpenPage, without_simd

import clearhead
from clearhead import GPT, weights
from clearhead.loading import bundled
from clearhead.web import export


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the bundled model."""
    source = weights.open(bundled())
    path = tmp_path_factory.mktemp("page") / "story.html"
    path.write_text(export.page_html("bundled", source.config, source.load(), source.tokenizer()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def plain_file(file: Path) -> Path:
    """The same page for a browser without SIMD."""
    return without_simd(file)


@pytest.fixture(scope="session")
def rounded_gpt() -> GPT:
    """The bundled model in PyTorch, with the weights rounded as in the page's file."""
    import torch

    model = clearhead.load(backend="torch")
    rounded = export.rounded(weights.open(bundled()).load())
    with torch.no_grad():
        for name, parameter in model.model.state_dict().items():
            parameter.copy_(torch.from_numpy(rounded["token_embedding.weight" if name == "head.weight" else name]))
    return model


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, which npm installs."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--no-save", "--prefix", str(folder), "axe-core@4"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("npm cannot install axe-core")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def fresh(browser: Any, file: Path) -> Iterator[OpenPage]:
    """The file, just opened."""
    opened = OpenPage(browser, file.as_uri(), viewport={"width": 1280, "height": 900})
    yield opened
    opened.check()
    opened.close()
