"""A run from a stranger: nothing outside of it is read or written, and one place opens its files."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.layouts import find_parts
from runtime.inference.images import find_images
from runtime.inference.model import open_model
from runtime.rundir.directory import Compiled, RunDir
from runtime.rundir.files import (
    MARKER,
    append,
    read_bytes,
    read_json,
    read_lines,
    read_tensors,
    remove,
    sweep,
    sync,
    write_bytes,
    write_text,
)
from runtime.rundir.records import Epoch, Record

ROOT = Path(__file__).parents[3]
OPENING = re.compile(
    r"open|.*\.(open|read_text|read_bytes|write_text|write_bytes|iterdir|glob|touch|unlink|mkdir|rmdir|symlink_to|hardlink_to)"
    r"|os\.(replace|rename|remove|symlink|truncate)|json\.loads?|yaml\.\w*load\w*|shutil\.\w+|tempfile\.\w+"
    r"|safetensors\.\w+\.(load|load_file|save_file)|(torch|np|pickle)\.(load|save)"
)
"""Calls that open, make or remove files, or read what a file holds, as they are written."""
READERS = {
    "runtime/rundir/files.py": "it is the one place",
    "graphspec/starters.py": "files of the package",
    "runtime/reporting/templates.py": "files of the package",
    "runtime/inference/images.py": "names of image files",
    "runtime/inference/model.py": "an ONNX model, which may be anyone's",
    "runtime/processes/world.py": "messages of other processes",
    "runtime/processes/little_memory.py": "/dev/null",
    "runtime/training/free_memory.py": "/proc",
    "runtime/training/threads.py": "/sys",
    "runtime/strategies/latency.py": "/proc",
    "runtime/export/bench.py": "an ONNX model, which may be anyone's",
    "runtime/export/op_times.py": "what an ONNX model says of itself, and a folder for a trial",
    "runtime/export/on_files.py": "images in a folder that it has made",
    "runtime/export/run_export.py": "an empty folder that it has made",
    "graphspec/api.py": "a folder for a trial",
    "graphspec/rates.py": "a folder for a trial",
    "graphspec/trials.py": "a folder for a spec that it has made",
    "runtime/importing.py": "an ONNX model, which may be anyone's, and a folder for a trial",
    "runtime/rundir/start.py": "what a file of weights holds, after the one place has read it",
    "runtime/rundir/directory.py": "the folder of a new run, by its open parent",
}
OURS = re.compile(r"RunDir\.open|files\.\w+")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    compiled = Compiled("digits", 7, "graphspec: 1\n", "graphspec: 1\n", '{"seed": 7}\n', "{}\n", "graph @digits {}\n")
    made = RunDir.create(compiled, tmp_path / "run", tmp_path / "runs")
    write_text(made.search.metrics, "{}\n")
    return made


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("years")
    return folder


def opening_calls(path: Path) -> set[str]:
    """What a module calls that opens files."""
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    return {call for call in calls if OPENING.fullmatch(call) and not OURS.fullmatch(call)}


def test_one_place_opens_the_files_of_a_run() -> None:
    folders = ("graphspec", *(f"runtime/{part}" for part in os.listdir(ROOT / "runtime") if part != "data"))
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): calls for path in paths if (calls := opening_calls(path))}
    assert {name: calls for name, calls in found.items() if name not in READERS} == {}


@pytest.mark.parametrize("act", [
    lambda path: write_bytes(path, b"new"), lambda path: append(path, b"new"), read_bytes, sync, remove,
])  # fmt: skip
def test_no_folder_on_the_way_leads_out(run: RunDir, precious: Path, act: object) -> None:
    run.search.clear()
    run.search.path.symlink_to(precious)
    with pytest.raises(RunError, match=r"search/metrics.jsonl: cannot (read|write): it is reached through a link"):
        act(run.search.metrics)  # type: ignore[operator]
    assert (precious / "metrics.jsonl").read_text() == "years"
    assert [path.name for path in precious.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("act", [lambda path: append(path, b"new"), read_bytes, sync])
def test_no_file_is_read_or_grows_through_a_link(run: RunDir, precious: Path, act: object) -> None:
    remove(run.search.metrics)
    run.search.metrics.symlink_to(precious / "metrics.jsonl")
    with pytest.raises(RunError, match="it is reached through a link"):
        act(run.search.metrics)  # type: ignore[operator]
    write_text(run.search.metrics, "ours")
    assert (run.search.metrics.read_text(), (precious / "metrics.jsonl").read_text()) == ("ours", "years")


def test_a_linked_lock_empties_nothing(run: RunDir, precious: Path) -> None:
    remove(run.path / ".lock")
    (run.path / ".lock").symlink_to(precious / "metrics.jsonl")
    with pytest.raises(RunError, match=r"\.lock: cannot write: it is reached through a link"), run.locked():
        raise AssertionError("locked")
    assert (precious / "metrics.jsonl").read_text() == "years"


def test_clearing_a_job_that_is_a_link_removes_the_link(run: RunDir, precious: Path) -> None:
    run.search.clear()
    run.search.path.symlink_to(precious)
    run.search.clear()
    assert not os.path.lexists(run.search.path)
    assert (precious / "metrics.jsonl").read_text() == "years"


def test_runs_of_seeds_lie_in_their_study(run: RunDir, precious: Path) -> None:
    (run.path / "seeds").symlink_to(precious)
    with pytest.raises(RunError, match="it is reached through a link"):
        write_text(run.seed_run(1).search.metrics, "{}\n")
    assert [path.name for path in precious.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("act", [
    RunDir.open, open_model, lambda path: find_images([str(path)]),
    lambda path: find_parts(DataConfig(name="folder", root=str(path))),
])  # fmt: skip
def test_what_is_neither_file_nor_folder_is_called_what_it_is(tmp_path: Path, act: object) -> None:
    os.mkfifo(tmp_path / "given")
    for path, what in ((tmp_path / "given", "pipe"), (Path("/dev/zero"), "device")):
        with pytest.raises(RunError, match=f"^{path}: is a {what} and no regular file"):
            act(path)  # type: ignore[operator]


def test_a_pipe_is_no_file(run: RunDir) -> None:
    remove(run.search.metrics)
    os.mkfifo(run.search.metrics)
    for act in (read_bytes, sync, lambda path: append(path, b"x")):
        with pytest.raises(RunError, match=r"no regular file|No such device"):
            act(run.search.metrics)


def test_what_a_killed_writer_left_goes_and_what_is_in_use_stays(run: RunDir) -> None:
    left, held = run.search.path / ".arch.yaml.0123abcd.tmp", run.search.path / ".result.json.0123abcd.tmp"
    (run.search.path / ".old.tmp").mkdir()
    for path in (left, held):
        path.write_text("half of i")
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep(run.search.path)
    assert sorted(path.name for path in run.search.path.iterdir()) == [held.name, "metrics.jsonl"]
    with run.locked():
        assert not held.exists()


def test_compiling_into_a_run_in_use_is_refused(run: RunDir) -> None:
    run.search.clear()
    compiled = Compiled("other", 1, "", "", "{}", "{}", "")
    with run.locked(), pytest.raises(RunError, match="another graphspec process works in this run"):
        RunDir.create(compiled, run.path, run.path.parent / "runs")
    assert json.loads((run.path / "run.json").read_text())["name"] == "digits"


@given(st.binary(max_size=60) | st.sampled_from([b"[" * 200_000, b'{"a": 1e999}', b'{"a": NaN}', b'"\\ud800"', b"5"]))
def test_any_bytes_are_read_or_refused_with_the_file_and_what_to_do(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("any") / "file"
    (file.parent / MARKER).touch()
    file.write_bytes(content)
    for read in (
        lambda: read_json(file, Record),
        lambda: read_lines(file, Epoch),
        lambda: read_tensors(file, json.loads),
    ):
        try:
            read()
        except RunError as error:
            assert str(error).startswith(f"{file}: is damaged: ")  # noqa: PT017
            assert "\n  try: graphspec " in str(error)  # noqa: PT017


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # takes no space
    with pytest.raises(RunError, match=r"large: is damaged: it has 1,099,511,627,776 bytes"):
        read_json(tmp_path / "large", Record)
