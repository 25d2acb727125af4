"""Which code computed a run."""

import subprocess
from pathlib import Path

import pytest

from msat_det.base import provenance
from msat_det.base.provenance import commit_id


def test_commit_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the checkout that the code lies in: its commit, -dirty once a file differs; None where there is none."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)
        return done.stdout.decode().strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert commit_id() is None
    git("init", "-q")
    git("commit", "--allow-empty", "-qm", "none")
    assert commit_id() is None  # somebody else's checkout, whose .venv holds the package
    (tmp_path / "provenance.py").write_text("pass")
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "-am", "one", "v1")  # a tag is no commit's name
    head = git("rev-parse", "HEAD")
    assert len(head) == 40
    assert commit_id() == head
    (tmp_path / "provenance.py").write_text("...")
    assert commit_id() == f"{head}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert commit_id() is None
