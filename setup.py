"""What pyproject.toml cannot say: the tour's chapters and the recipes go into the wheel.

An editable installation reads them from docs/tour and recipes/.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

COPIES = {"docs/tour": "tour/chapters", "recipes": "training/recipes"}


class BuildWithTexts(build_py):
    """Copy the packages, and the folders of texts beside them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in COPIES.items():
                folder = Path(self.build_lib, "clearhead", target)
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(source, folder)


setup(cmdclass={"build_py": BuildWithTexts})
