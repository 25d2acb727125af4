"""What ``pip install`` brings is all that the first command needs: a wheel, built here, run in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from msat_det.base.settings import PROJECT

pytestmark = pytest.mark.slow  # building and installing
PARTS = ("msat_det", "configs", "data", "tools", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def call(*words: str | Path, cwd: Path) -> str:
    """What the command prints; without this checkout and without anybody's settings."""
    kept = {name: os.environ[name] for name in ("PATH", "XDG_CACHE_HOME", "TMPDIR") if name in os.environ}
    environment = kept | {"HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of a bare environment that holds the wheel; its dependencies are this environment's."""
    home = tmp_path_factory.mktemp("wheel")
    source, bare = home / "source", home / "bare"
    source.mkdir()
    for name in PARTS:  # a copy: building leaves files in the folder that it builds
        part = PROJECT / name
        if part.is_dir():
            shutil.copytree(part, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(part, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", home, source, cwd=home)
    (wheel,) = home.glob("*.whl")
    venv.create(bare, with_pip=False)
    (site,) = bare.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = bare / "bin/python"
    call(*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    return python.parent


def test_the_first_command_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    words = "--data.limit 4 --calib.limit 4 --sim.record 4 --methods staged-4 --threads 1 --draw.images 1".split()
    told = call(installed / "msat-det", "run", "--cfg", "yolo_voc", *words, cwd=tmp_path)
    assert told.splitlines()[-1] == f"all files are in {tmp_path / 'runs/yolo_voc'}"
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["runs"]
    assert {"report.html", "summary.json", "curve.csv"} <= {
        path.name for path in (tmp_path / "runs/yolo_voc").iterdir()
    }
    where = call(installed / "python", "-c", "import msat_det; print(msat_det.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)  # not this checkout


def test_everything_comes_along(installed: Path, tmp_path: Path) -> None:
    names = call(installed / "msat-det", "list", "configs", cwd=tmp_path).split()
    assert {f"{name}.yaml" for name in names} == {
        file.relative_to(PROJECT / "configs").as_posix() for file in (PROJECT / "configs").glob("**/*.yaml")
    }
    assert call(installed / "msat-det", "train", "--help", cwd=tmp_path).startswith("usage: msat-det train")
    assert "coco_val128" in call(installed / "msat-det", "fetch", "--list", cwd=tmp_path)


def test_the_demo_networks_find_their_weights(installed: Path, tmp_path: Path) -> None:
    code = (
        "from msat_det.base.config import Model; from msat_det.models import build_detector as d; "
        "from msat_det.models.classifiers import build_classifier as c; "
        "print(*(len(f(Model(n)).classes) for f, n in ((d, 'yolo_demo'), (d, 'ssd_demo'), (c, 'vgg_demo'))))"
    )
    assert call(installed / "python", "-c", code, cwd=tmp_path) == "20 20 20\n"
