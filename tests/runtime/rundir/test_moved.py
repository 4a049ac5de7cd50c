"""A run that is moved or removed while a command works in it: one message, and no new folder in its old place."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import RunError
from graphspec import api
from runtime.rundir.directory import RunDir
from tests.tiny import write_spec


def test_a_run_that_goes_before_the_job_has_locked_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the command has compiled it itself and would take it away, because its job failed."""
    locked = RunDir.locked

    def moving(self: RunDir, *, is_new: bool = False) -> object:
        if not is_new:
            self.path.rename(tmp_path / "moved")
        return locked(self, is_new=is_new)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunDir, "locked", moving)
    with pytest.raises(RunError, match=r"^runs/tiny-001-s0: the run was moved or removed while"):
        api.search(write_spec(tmp_path), quiet=True)
    assert not (tmp_path / "runs" / "tiny-001-s0").exists()
    assert (tmp_path / "moved" / "run.json").exists()
