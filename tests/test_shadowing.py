from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tiny import command, environment


@pytest.mark.parametrize("name", ["compiler", "runtime"])
def test_a_users_package_of_our_name_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = subprocess.run(command("ops"), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert str(tmp_path / name) in done.stderr
    assert "python -m graphspec" in done.stderr
    assert "Traceback" not in done.stderr
