"""Run directories: names, the latest, what is refused, and what a kill leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compiler.errors import RunError
from runtime.rundir.directory import Compiled, RunDir
from runtime.rundir.files import write_text
from tests.dying import DYING

COMPILED = Compiled("digits", 7, "graphspec: 1\n# λ\n", "graphspec: 1\n", '{"seed": 7}\n', "{}\n", "graph @digits {}\n")

DIE_AT_CALL = (
    DYING
    + """
from pathlib import Path
from runtime.rundir.directory import Compiled, RunDir

os.replace, os.symlink = map(dying, (os.replace, os.symlink))
RunDir.create(Compiled("digits", 7, "new", "new", "new", "new", "new"), Path("out"))
print(calls)
"""
)


@pytest.fixture(autouse=True)
def _inside_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_directory_holds_what_was_compiled() -> None:
    run = RunDir.create(COMPILED)
    assert run.path == Path("runs/digits-001-s7")
    assert run.spec.read_bytes() == COMPILED.spec.encode()
    assert run.resolved.read_text() == COMPILED.resolved
    assert (run.config.read_text(), run.graph_json.read_text()) == (COMPILED.config, COMPILED.graph_json)
    assert run.graph_text.read_text() == COMPILED.graph_text
    environment = json.loads(run.environment.read_text())
    assert environment["seed"] == 7
    assert environment["packages"]["torch"].startswith("2.")


def test_numbers_count_up_over_all_seeds_of_a_name() -> None:
    names = [
        RunDir.create(replace(COMPILED, name=n, seed=s)).path.name for n, s in (("a", 0), ("a", 1), ("b", 0), ("a", 0))
    ]
    assert names == ["a-001-s0", "a-002-s1", "b-001-s0", "a-003-s0"]


def test_two_runs_of_one_spec_are_the_same_but_for_their_name() -> None:
    first, second = RunDir.create(COMPILED), RunDir.create(COMPILED)
    for path in first.path.iterdir():
        assert path.read_bytes() == (second.path / path.name).read_bytes()


def test_latest_names_the_newest_run_by_a_relative_link() -> None:
    RunDir.create(COMPILED)
    newest = RunDir.create(COMPILED)
    assert os.readlink("runs/latest") == "digits-002-s7"
    assert RunDir.latest() == newest
    assert RunDir.open(Path("runs/latest")) == newest
    assert not [p for p in Path("runs").iterdir() if p.name.endswith(".tmp")]


def test_latest_names_a_run_elsewhere_also_when_runs_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    Path("runs").symlink_to("disk/deep")
    RunDir.create(COMPILED, Path("elsewhere"))
    assert RunDir.latest().path == Path("elsewhere")


def test_latest_is_a_text_file_where_links_are_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    RunDir.create(COMPILED)
    newest = RunDir.create(COMPILED)
    assert Path("runs/latest").read_text() == "digits-002-s7\n"
    assert RunDir.latest() == newest
    assert RunDir.open(Path("runs/latest")) == newest


def test_no_run_yet_says_to_compile_first() -> None:
    with pytest.raises(RunError, match=r"no run yet: .*\n  try: graphspec compile SPEC first"):
        RunDir.latest()


def test_a_latest_that_is_gone_is_named() -> None:
    run = RunDir.create(COMPILED)
    run.path.rename("moved")
    with pytest.raises(RunError, match="runs/latest names digits-001-s7, which is gone"):
        RunDir.latest()
    assert RunDir.open(Path("moved")).path == Path("moved")


def test_a_full_folder_that_graphspec_did_not_make_is_refused_and_untouched() -> None:
    write_text(Path("mine/thesis.txt"), "years")
    with pytest.raises(RunError, match="mine: is not empty, and graphspec did not make it"):
        RunDir.create(COMPILED, Path("mine"))
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]
    assert not Path("runs").exists()


def test_compiling_again_into_a_run_directory_replaces_it_until_it_holds_results() -> None:
    Path("out").mkdir()
    run = RunDir.create(COMPILED, Path("out"))
    RunDir.create(replace(COMPILED, config="other"), Path("out"))
    assert run.config.read_text() == "other"
    write_text(run.search.metrics, "{}\n")
    with pytest.raises(RunError, match="out: holds the results of an earlier job"):
        RunDir.create(COMPILED, Path("out"))
    assert run.config.read_text() == "other"


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (None, "is no run directory: it has no run.json"),
        ('{"format": 1', "run.json: is damaged"),
        ("[]", "run.json: is damaged"),
        ('{"format": "1"}', "run.json: is damaged: format: expected a whole number"),
        ('{"format": 99}', "a newer graphspec made it"),
        ('{"format": 1}', "its compilation did not finish"),
    ],
)
def test_what_is_no_whole_run_directory_is_not_opened(marker: str | None, message: str) -> None:
    Path("it").mkdir()
    if marker is not None:
        Path("it/run.json").write_text(marker)
    with pytest.raises(RunError, match=message):
        RunDir.open(Path("it"))


def test_a_missing_path_and_a_file_are_not_opened() -> None:
    Path("file").write_text("")
    with pytest.raises(RunError, match="nowhere: no such run directory"):
        RunDir.open(Path("nowhere"))
    with pytest.raises(RunError, match="file: is a file, not a run directory"):
        RunDir.open(Path("file"))


def test_a_file_in_the_place_of_the_runs_is_a_clear_error() -> None:
    Path("runs").write_text("")
    with pytest.raises(RunError, match="runs: cannot write: File exists"):
        RunDir.create(COMPILED)


def test_a_folder_in_the_place_of_latest_is_a_clear_error_that_leaves_nothing_else() -> None:
    Path("runs/latest").mkdir(parents=True)
    with pytest.raises(RunError, match="runs/latest: cannot write: Is a directory"):
        RunDir.create(COMPILED)
    assert sorted(p.name for p in Path("runs").iterdir()) == ["digits-001-s7", "latest"]


def test_a_job_is_started_by_its_first_file_and_finished_by_its_result() -> None:
    search = RunDir.create(COMPILED).search
    assert (search.is_started, search.is_finished) == (False, False)
    write_text(search.checkpoints / "x", "")
    assert (search.is_started, search.is_finished) == (True, False)
    write_text(search.result, "{}")
    assert search.is_finished
    search.clear()
    assert (search.is_started, search.is_finished) == (False, False)
    search.clear()


def test_a_run_in_use_is_locked_against_other_processes() -> None:
    run = RunDir.create(COMPILED)
    try_it = "from runtime.rundir.directory import RunDir\nwith RunDir.latest().locked(): print('mine')"

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", try_it], capture_output=True, text=True, timeout=60)

    with run.locked():
        refused = other()
    assert refused.returncode == 1
    assert "another graphspec process works in this run" in refused.stderr
    assert other().stdout == "mine\n"


def test_a_kill_at_any_rename_leaves_the_former_latest_or_a_whole_run() -> None:
    former = RunDir.create(COMPILED)
    for die_at in range(20):
        done = subprocess.run(
            [sys.executable, "-c", DIE_AT_CALL, str(die_at)], capture_output=True, text=True, timeout=60
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        assert RunDir.latest() == former
        if die_at % 2:  # whatever was left is no hindrance to the next attempt
            RunDir.create(COMPILED, Path("out"))
            (former.path.parent / "latest").unlink()
            (former.path.parent / "latest").symlink_to(former.path.name)
    assert int(done.stdout) == die_at == 9  # seven files, the link, the link's renaming
    assert RunDir.latest().config.read_text() == "new"


def test_making_a_run_directory_imports_no_torch() -> None:
    heavy = ("torch", "onnx", "networkx", "numpy")
    code = f"import sys, runtime.rundir.directory; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
