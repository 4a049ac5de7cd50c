"""Which process of a job this is."""

from __future__ import annotations

import pytest

from compiler.errors import RunError
from runtime.processes.launch import Launch, refuse_processes


def test_a_program_started_by_itself_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Launch.here() == Launch(0, 1, 0, 1)
    assert Launch.here().prefix == ()
    refuse_processes("anything", "nothing")


def test_torchrun_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}
    for name, value in said.items():
        monkeypatch.setenv(name, str(value))
    here = Launch.here()
    assert (here, here.is_main) == (Launch(5, 8, 1, 4), False)
    assert here.prefix == ("torchrun", "--nproc-per-node", "4", "-m")
    with pytest.raises(RunError, match=r"--smoke runs in one process, and torchrun has started 8\n  try: it alone"):
        refuse_processes("--smoke", "it alone")
