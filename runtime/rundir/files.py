"""The one place that opens files of a run: written whole or not at all, checked when they are read.

A run may come from a stranger, so nothing in it is read or written through a link, and what is read is a regular file
of limited size. Other files (`-o model.onnx`) are written in the same way. It must not import torch.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from compiler.errors import GraphspecError, RunError, advice_on, one_line
from compiler.language.findings import first_of

MARKER = "run.json"  # says that a folder is a run
MOST_TEXT = 2**27  # bytes; the largest network that compiles has a graph of a quarter of it
MOST_TENSORS = 2**36
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # not through a link, and no wait for a pipe's other end
SPECIAL = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
_LEFT_OVER = re.compile(r"\..+\.tmp")  # of any version

_OPTIONAL = {
    "given.json": "remove it, and give the options again",
    "data.json": "remove it, to take the data as it is",
    "evaluation.json": "graphspec evaluate with this run, which writes it anew, or remove it",
    "samples.safetensors": "--set data.root=FOLDER, where the data lies now",
}  # files that a run can do without

T = TypeVar("T")


class MissingFileError(RunError):
    """There is no such file."""


@contextmanager
def guarded(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an OSError inside the block into a RunError that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        kind = MissingFileError if isinstance(error, FileNotFoundError) else RunError
        why = "it is reached through a link" if error.errno == errno.ELOOP else error.strerror or error
        advice = advice_on(error.errno) or "another path, or remove what stands in the way"
        advice = _anew(path) if kind is MissingFileError and verb == "read" else advice
        raise kind(f"{one_line(path)}: cannot {verb}: {why}\n  try: {advice}") from error


_IN_USE: list[Path] = []  # runs that this process works in


@contextmanager
def in_use(run: Path) -> Iterator[None]:
    """Within, the folder of this run is not made anew where somebody moves it away."""
    before = list(_IN_USE)
    _IN_USE.append(run.absolute())
    try:
        yield
    finally:
        _IN_USE[:] = before


def run_of(path: Path) -> Path | None:
    """The run that a path lies in: the outermost folder with a marker, since a study holds runs.

    RunError if it is in use and has gone.
    """
    above = path.absolute().parents
    found = next((folder for folder in reversed(above) if os.path.lexists(folder / MARKER)), None)
    if found is None and (lost := set(_IN_USE).intersection(above)):
        raise RunError(
            f"{one_line(shown(min(lost)))}: the run was moved or removed while this command worked in it\n"
            f"  try: the command again where the run is now (search, retrain: with --resume)"
        )
    return found


@contextmanager
def folder_of(path: Path, *, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder that `path` lies in, made if missing with `make`; OSError at a link in a run."""
    run = run_of(path)
    if make and run is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run or path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.absolute().parent.relative_to(run).parts if run else ():
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
            inner = os.open(part, os.O_RDONLY | _SAFE, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of the regular file at `path`; OSError if there is none, RunError if it is something else."""
    linked = flags == os.O_RDONLY and run_of(path) is None  # a user's own link to a file to read
    with folder_of(path, make=bool(flags & os.O_CREAT)) as folder:
        descriptor = os.open(path.name, flags | (_SAFE & ~os.O_NOFOLLOW if linked else _SAFE), 0o666, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            what = SPECIAL.get(stat.S_IFMT(os.fstat(descriptor).st_mode), "folder")
            raise RunError(f"{path}: is a {what} and no regular file, so it cannot be opened\n  try: another path")
        yield descriptor
    finally:
        os.close(descriptor)


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """What a regular file of at most `most` bytes holds; MissingFileError or RunError if it cannot be read."""
    with guarded(path, "read"), opened(path, os.O_RDONLY) as descriptor, open(descriptor, "rb", closefd=False) as file:
        size = os.fstat(descriptor).st_size
        if size > most:
            raise damaged(path, f"it has {size:,} bytes, and such a file has at most {most:,}")
        return file.read(size)


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder; none if it is not there."""
    with guarded(folder, "read"), suppress(FileNotFoundError), folder_of(folder / MARKER) as descriptor:
        return sorted(os.listdir(descriptor))
    return []


def checked(path: Path) -> Path:
    """`path` if it is a regular file that may be read, for readers of their own (specs); RunError otherwise."""
    with guarded(path, "read"), opened(path, os.O_RDONLY):
        return path


def refuse_pipe(path: Path) -> None:
    """RunError that says what is at `path` if that is neither a file nor a folder, nor nothing."""
    if path.exists() and not path.is_dir():
        checked(path)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; RunError if it cannot be read or is no such text."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise damaged(path, f"it is no UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: Path, model: type[T]) -> dict[str, Any]:
    """The JSON object of a file, its keys in their order; RunError unless `model` (pydantic's) accepts it."""
    return _parsed(path, read_bytes(path), model)


def read_lines(path: Path, model: type[T]) -> list[dict[str, Any]]:
    """The JSON objects of a log, one a line, as `read_json`; an unfinished last line is left out."""
    lines = read_bytes(path).split(b"\n")[:-1]
    return [_parsed(path, line, model, f"line {n}: ") for n, line in enumerate(lines, start=1) if line.strip()]


def _parsed(path: Path, content: bytes, model: type[T], where: str = "") -> dict[str, Any]:
    try:
        _adapter(model).validate_json(content)
        found = from_json(content, allow_inf_nan=False)
        json.dumps(found, allow_nan=False)  # 1e999 is read as infinity
    except ValueError as error:
        raise damaged(path, f"{where}{first_of(error) if isinstance(error, ValidationError) else error}") from error
    return dict(found)


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def read_tensors(path: Path, load: Callable[[bytes], dict[str, Any]]) -> tuple[dict[str, Any], bytes]:
    """What a safetensors file holds, as `load` of safetensors gives it, and the file's bytes; RunError if damaged."""
    content = read_bytes(path, MOST_TENSORS)
    try:
        return load(content), content
    except Exception as error:  # of safetensors, numpy or torch, which do not say which
        raise damaged(path, f"it holds no tensors that can be read: {error}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error about what a file holds name the file."""
    try:
        yield
    except GraphspecError as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, what: str) -> RunError:
    """The error for a file that does not hold what was written, with the command that writes it again."""
    return RunError(f"{one_line(path)}: is damaged: {what}\n  try: {_anew(path)}")


def _anew(path: Path) -> str:
    run = run_of(path)
    if run is None:
        return "another path"
    if path.name in _OPTIONAL:
        return _OPTIONAL[path.name]
    parts = path.absolute().relative_to(run).parts
    if parts[:1] == ("seeds",):
        run, parts = Path(run, *parts[:2]), parts[2:]
    command = {"search": "search {} --overwrite", "retrain": "retrain {} --overwrite", "export": "export {}"}
    again = command.get(parts[0], "").format(shown(run)) if len(parts) > 1 else ""
    return f"graphspec {again or 'compile SPEC'}, which writes it anew"


def shown(path: Path) -> Path:
    """`path` (absolute) as people like to read it: relative where it lies under the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path`; folders that are missing are made. RunError if the disk refuses.

    At every moment, also under SIGKILL or a power cut, `path` holds its former content or all of the new one. After an
    error the temporary file is gone and the former content intact. What a killed writer of this path left is removed.
    """
    with guarded(path), folder_of(path, make=True) as folder:
        refuse_special(path, folder)
        with temporary(path.name, folder) as (made, descriptor):
            _write(descriptor, content)
            os.fsync(descriptor)
            os.replace(made, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def refuse_special(path: Path, folder: int) -> None:
    """RunError if something else than a file is there: renaming over /dev/null would replace it."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path.name, dir_fd=folder).st_mode):
            raise RunError(f"{path}: is no regular file, so it cannot be written\n  try: another path")


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


@contextmanager
def temporary(name: str, folder: int, *, is_folder: bool = False) -> Iterator[tuple[str, int]]:
    """Name and descriptor of a new file or folder for `name`, gone afterwards unless it was renamed.

    It is locked while it is in use, by which those that a killed process left are known.
    """
    _sweep(folder, re.compile(rf"\.{re.escape(name)}(\.[0-9a-f]{{8}})?\.tmp"))
    while True:
        made = f".{name}.{secrets.token_hex(4)}.tmp"
        if is_folder:
            os.mkdir(made, dir_fd=folder)
        flags = os.O_RDONLY if is_folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(made, flags | _SAFE, 0o666, dir_fd=folder)
        try:
            with suppress(OSError):  # some network disks have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else another process has swept it before it was locked
                yield made, descriptor
                return
        finally:
            os.close(descriptor)
            with suppress(OSError):
                _remove(made, folder)


def _sweep(folder: int, pattern: re.Pattern[str]) -> None:
    """Remove the temporaries of these names that no process holds."""
    for name in filter(pattern.fullmatch, os.listdir(folder)):
        with suppress(OSError):
            descriptor = os.open(name, os.O_RDONLY | _SAFE, dir_fd=folder)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(name, folder)
            finally:
                os.close(descriptor)


def sweep(*folders: Path) -> None:
    """Remove what killed processes left in these folders of a run."""
    for path in folders:
        with suppress(OSError), folder_of(path / MARKER) as folder:
            _sweep(folder, _LEFT_OVER)


def _remove(name: str, folder: int) -> None:
    if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if there is one; RunError if the disk refuses."""
    with guarded(path), suppress(FileNotFoundError), folder_of(path) as folder:
        _remove(path.name, folder)


def move(source: Path, target: Path) -> None:
    """Put something in another's place, in one step; it is on the disk for good then."""
    with guarded(target), folder_of(source) as start, folder_of(target) as folder:
        os.replace(source.name, target.name, src_dir_fd=start, dst_dir_fd=folder)
        os.fsync(folder)


def append(path: Path, content: bytes) -> None:
    """Add to a file that is there; after an error a part of it may be written. RunError if the disk refuses."""
    with guarded(path), opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        _write(descriptor, content)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with guarded(path), opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of `as_utf8`, line ends as they are."""
    write_bytes(path, as_utf8(content))


def as_utf8(text: str) -> bytes:
    """What is written of a text; RunError, which shows the line, if a name in it is of other bytes than UTF-8's."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        line = text[text.rfind("\n", 0, error.start) + 1 :].partition("\n")[0].strip()
        raise RunError(
            f"{one_line(line)}: is no UTF-8 text, and is written down\n  try: rename that file or folder"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of `value` as indented JSON, keys in the order given; RunError if a number is not finite."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RunError(
            f"{path}: is not written, because a figure is not finite: the network gives no numbers\n"
            f"  try: a lower learning rate, and start anew with --overwrite"
        ) from error
    write_text(path, text + "\n")
