"""A sample of all faults; `make faults` tries them all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_sample_of_faults_loses_nothing_and_ends_in_one_message() -> None:
    """In a process of its own: it forks, and must have no threads."""
    command = [sys.executable, "-m", "tests.faults", "15"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"(\d+) trials, (\d+) broken", done.stdout) == [("15", "0")] * 2
