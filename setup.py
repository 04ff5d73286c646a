"""What pyproject.toml cannot say: the chapters of docs/tour go into the wheel, as clearhead/tour/chapters.

An editable installation reads them where they are.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithTour(build_py):
    """Copies the packages as ever, and the tour with them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib, "clearhead", "tour", "chapters")
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree("docs/tour", place)


setup(cmdclass={"build_py": BuildWithTour})
