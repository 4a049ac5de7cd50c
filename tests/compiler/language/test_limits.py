"""Files that are no text, too large, too deep or no files at all: one clear message, and little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.errors import SpecError
from compiler.language.overrides import overrides_of
from compiler.language.parse import parse_file
from compiler.language.source import MAX_BYTES
from tests.tiny import write_spec

GUARDED = """
import resource, sys
limit = 500 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from compiler.errors import SpecError
from compiler.language.parse import parse_file
try:
    parse_file(sys.argv[1])
except SpecError as error:
    print(error)
"""


def message(path: Path | str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse_file(path, overrides_of(overrides))
    assert all(d.place.line >= 1 and d.place.column >= 1 for d in caught.value.diagnostics)
    return str(caught.value)


@pytest.mark.parametrize("key", ["search.options", "symbols", "network", "nothing"])
@pytest.mark.parametrize("parts", [100, 1500, 50_000])
def test_keys_of_many_parts_are_refused(tmp_path: Path, key: str, parts: int) -> None:
    assert "the key has more than 40 parts" in message(write_spec(tmp_path), f"{key}{'.a' * parts}=1")


def guarded(path: Path) -> str:
    """What a process that may take 500 MB says about a file."""
    run = subprocess.run([sys.executable, "-c", GUARDED, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"graphspec: 1\nname: caf\xe9\n", "space.yaml:2:10: error: the file is not UTF-8 text: byte 0xe9"),
        ("graphspec: 1\n".encode("utf-16"), "space.yaml:1:1: error: the file is not UTF-8 text: byte 0xff"),
        (b"graphspec: 1\nname: a\x00b\n", "space.yaml:2:8: error: a spec may not hold the control character U+0000"),
        (b"graphspec: 1\nname: \x1b[31m\n", "space.yaml:2:7: error: a spec may not hold the control character U+001B"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "space.yaml").write_bytes(content)
    assert expected in message(tmp_path / "space.yaml")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_bytes(b"\xef\xbb\xbfgraphspec: 2\n")
    assert "language version 1, found 2" in message(tmp_path / "space.yaml")


def test_a_100_mb_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    assert "the file has 100.0 MB; a spec may have at most 8 MB" in guarded(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_BYTES,
        "- " * (MAX_BYTES // 2),
        "a: " + "x" * (MAX_BYTES - 100),
        "- a\n" * (MAX_BYTES // 4),
        "{" * 1000 + "}" * 1000,
        "a: &a " + "x" * 2**20 + "\nb: [" + "*a, " * 10_000 + "]\n",
        "graphspec: 1\n" + "".join(f"k{i}: 1\n" for i in range(100_000)),
        "graphspec: 1\nblocks:\n" + "".join(f" B{i}: 1\n" for i in range(100_000)),
    ],
    ids=["brackets", "dashes", "long text", "long list", "maps", "text bomb", "keys", "names"],
)
def test_large_and_odd_files_take_little_memory(tmp_path: Path, text: str) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(text[:MAX_BYTES])
    assert "large.yaml:" in guarded(path)


def test_missing_files_name_near_ones(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("graphspec: 1\n")
    assert "did you mean 'space.yaml'?" in message(tmp_path / "spcae.yaml")
    assert "No such file or directory" in message(tmp_path / "no" / "space.yaml")


def test_folders_and_devices_are_no_specs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a folder" in message(tmp_path)
    assert "not a regular file" in message(tmp_path / "pipe")
    assert "not a regular file" in message("/dev/zero")
    assert "cannot read" in message("zero\0byte.yaml")


@pytest.mark.parametrize("target", ["/dev/zero", ".", "pipe", "missing.yaml", "broken.yaml", "binary"])
def test_extends_of_something_else_points_at_the_extends_value(tmp_path: Path, target: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken.yaml").write_text("secret: [\n")
    (tmp_path / "binary").write_bytes(b"secret\xff\x00")
    (tmp_path / "space.yaml").write_text(f"graphspec: 1\nextends: {target}\n")
    found = message(tmp_path / "space.yaml")
    assert "space.yaml:2:10: error: " in found
    assert "secret" not in found


def test_a_chain_of_extends_is_bounded(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"s{i}.yaml").write_text(f"graphspec: 1\nextends: s{i + 1}.yaml\n")
    assert "more than 16 files extend each other" in message(tmp_path / "s0.yaml")


def test_a_long_line_is_shown_around_the_caret(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("graphspec: 1\nname: {" + "".join(f"a{i}: 1, " for i in range(2000)) + "b: .inf, c: 2}\n")
    lines = message(path).splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith(".inf is not a finite number"))
    excerpt, caret = lines[first + 1 : first + 3]
    assert len(excerpt) < 200
    assert excerpt[caret.index("^") :].startswith(".inf")


def test_overrides_must_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("graphspec: 1\n")
    assert "--set:1:1: error: an override must be UTF-8 text" in message(tmp_path / "space.yaml", "name=\udcff")
