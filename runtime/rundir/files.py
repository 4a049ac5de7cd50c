"""Files that are written whole or not at all: every result of a job goes through here.

Owns the atomic write and what is said when a disk refuses it. It must not import torch: `graphspec compile` uses it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compiler.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def guarded(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an OSError inside the block into a RunError that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot {verb}: {error.strerror or error}\n  try: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno in _FULL:
        return "free some space there, then give the same command again (search, retrain: with --resume)"
    if error.errno in _FORBIDDEN:
        return "a folder that is yours to read and write"
    return "another path, or remove what stands in the way"


def read_json(path: Path) -> Any:
    """What a JSON file holds; RunError if it is missing or damaged."""
    try:
        with guarded(path, "read"):
            return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: is damaged: {error}\n  try: run the command that writes it again") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path`; folders that are missing are made. RunError if the disk refuses.

    At every moment, also under SIGKILL or a power cut, `path` holds its former content or all of the new one. After an
    error the temporary file is gone and the former content intact. The temporary name depends on `path` alone, so that
    the next write replaces what a killed one left; two processes must not write one path at a time.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with guarded(path):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # renaming over /dev/null would replace it
            raise RunError(f"{path}: is no regular file, so it cannot be written\n  try: another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the file at `path`, or the entries of the folder at `path`, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of `content` as UTF-8, line ends as they are."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of `value` as indented JSON, keys in the order given; ValueError if a number is not finite."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
