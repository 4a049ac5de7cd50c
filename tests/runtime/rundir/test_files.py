"""Atomic writes: old content or new content, whatever goes wrong in between."""

from __future__ import annotations

import errno
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.errors import RunError
from runtime.rundir.files import guarded, write_bytes, write_json, write_text
from tests.dying import DYING
from tests.full_disk import fill_disk

DIE_AT_CALL = (
    DYING
    + """
import runtime.rundir.files

os.open, os.fsync, os.replace = map(dying, (os.open, os.fsync, os.replace))
runtime.rundir.files.write_text(runtime.rundir.files.Path(sys.argv[2]), "new" * 1000)
"""
)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "λ\r\nb")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "λ\r\nb".encode()


def test_json_keeps_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": [\n    0.1\n  ]\n}\n'


def test_figures_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": 0.5})
    with pytest.raises(RunError, match=r"a\.json: is not written, because a figure is not finite: .*\n  try: "):
        write_json(tmp_path / "a.json", {"loss": math.nan})
    assert files_of(tmp_path) == {"a.json": b'{\n  "loss": 0.5\n}\n'}


def test_an_interrupted_write_leaves_the_former_content_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(descriptor: int, content: bytes) -> int:
        write(descriptor, b"half of i")
        raise KeyboardInterrupt

    write = os.write
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "write", half)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a", "new")
    assert files_of(tmp_path) == {"a": b"old"}


def test_a_full_disk_is_a_clear_error_and_the_former_content_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a", "old")
    fill_disk(monkeypatch)
    with pytest.raises(RunError, match=r"/a: cannot write: No space left on device\n  try: free some space"):
        write_bytes(tmp_path / "a", b"new" * 100_000)
    assert files_of(tmp_path) == {"a": b"old"}


def test_a_limit_on_file_sizes_is_a_clear_error(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(RunError, match=r"File too large\n  try: .* `ulimit -f` allows 1,000 bytes"):
            write_bytes(tmp_path / "a", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_of(tmp_path) == {"a": b"old"}


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(RunError, match="/dev/null: is no regular file"):
        write_text(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(("code", "advice"), [(errno.EROFS, "a folder that is yours"), (errno.ENOTDIR, "another path")])
def test_the_advice_fits_the_cause(tmp_path: Path, code: int, advice: str) -> None:
    with pytest.raises(RunError, match=f"cannot read: {os.strerror(code)}\n  try: {advice}"), guarded(tmp_path, "read"):
        raise OSError(code, os.strerror(code))


def test_a_kill_at_any_call_leaves_the_old_or_the_new_content(tmp_path: Path) -> None:
    """`open` of the folder and the file, `fsync`, `replace`, `fsync` of the folder: five calls; then it is done."""
    contents = []
    for die_at in range(6):
        path = tmp_path / str(die_at) / "a"
        write_text(path, "old")
        done = subprocess.run([sys.executable, "-c", DIE_AT_CALL, str(die_at), str(path)], timeout=60)
        assert done.returncode == (-9 if die_at < 5 else 0)
        contents.append(path.read_text()[:3])
        write_text(path, "next")  # what the killed process left is no hindrance and does not stay
        assert files_of(path.parent) == {"a": b"next"}
    assert contents == ["old", "old", "old", "old", "new", "new"]
