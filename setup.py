"""What pyproject.toml can't say: a wheel holds configurations, embedded data and the training, too."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHARED = ("configs", "data", "tools/training")


class WithShared(build_py):
    """Copies them into msat_det/share, where msat_det.base.settings.SHARE finds them; a checkout is used as it is."""

    def run(self) -> None:
        super().run()
        for name in () if self.editable_mode else SHARED:
            target = Path(self.build_lib, "msat_det", "share", name)
            shutil.copytree(name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": WithShared})
