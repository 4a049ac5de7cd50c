"""Images in zip and tar files, read where they lie: nothing is unpacked, so no name can lead out. It must not import
torch.

Of a tar file that is compressed as a whole (.tar.gz) a copy without compression lies among the system's temporary files
as long as the process runs: every image would be read from its beginning otherwise. Its owner holds a lock on it, so
that the next one knows the copies of those that were killed, and removes them.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import io
import os
import shutil
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from compiler.errors import RunError, one_line
from runtime.data.folders import Passed

LARGEST = 2**28  # bytes of an image that is read; a damaged or hostile file can claim any size
_PREFIX = "graphspec-"  # of copies without compression
MOST = 5_000_000  # files in an archive
_LOCK = threading.Lock()


class Member(str):
    """The path of a file in an archive, as if that were a folder, and where its bytes lie."""

    name: str
    start: int  # in a tar file; -1 in a zip file
    size: int
    place: str  # the file that its bytes are in

    @classmethod
    def of(cls, archive: Path, name: str, start: int, size: int, place: str) -> Member:
        """The file of this name."""
        self = cls(f"{archive}/{name}")
        self.name, self.start, self.size, self.place = name, start, size, place
        return self

    def read(self) -> bytes:
        """Its bytes; OSError or ValueError if they cannot be read."""
        if self.start < 0:
            with _LOCK:
                return _zip(self.place).read(self.name)
        with open(self.place, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def source(path: str) -> Any:
    """What Pillow opens: the path, or the bytes of a file in an archive."""
    return io.BytesIO(path.read()) if isinstance(path, Member) else path


def size_of(path: str) -> int:
    """Bytes of a file, also of one in an archive; OSError if it has gone."""
    return path.size if isinstance(path, Member) else os.stat(path).st_size


def beginning(path: str, most: int) -> bytes:
    """The first bytes of a file, also of one in an archive."""
    if isinstance(path, Member):
        return path.read()[:most]
    with open(path, "rb") as file:
        return file.read(most)


def files_in(archive: Path, passed: Passed) -> Iterator[tuple[Member, str]]:
    """The files in a zip or tar file and their names below it; what is none of ours is counted.

    RunError if it is neither, is damaged or is compressed as a whole in another way than gzip's.
    """
    try:
        members = _in_zip(archive, passed) if zipfile.is_zipfile(archive) else _in_tar(archive, passed)
        for number, member in enumerate(members):
            if number >= MOST:
                raise RunError(f"{archive} holds more than {MOST:,} files\n  try: several smaller sets")
            path = PurePosixPath(member.name)
            if ".." in path.parts or path.is_absolute():
                passed.add("name that leads out", one_line(member.name))
            elif member.size > LARGEST:
                passed.add(f"file of more than {LARGEST // 2**20} MB", one_line(member.name))
            else:
                yield member, str(path)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise RunError(
            f"{archive} cannot be read as a zip or tar file: {error}\n"
            f"  try: a .zip, .tar or .tar.gz, or unpack it and set data.root to the folder"
        ) from error


@functools.lru_cache(maxsize=4)
def _zip(archive: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _in_zip(archive: Path, passed: Passed) -> Iterator[Member]:
    _zip.cache_clear()  # it may be another one now
    for info in _zip(str(archive)).infolist():
        if info.flag_bits & 1:
            passed.add("file that is encrypted")
        elif not info.is_dir():
            yield Member.of(archive, info.filename, -1, info.file_size, str(archive))


def _in_tar(archive: Path, passed: Passed) -> Iterator[Member]:
    with archive.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    place = _without_gzip(archive, archive.stat().st_mtime_ns).name if zipped else str(archive)
    with tarfile.open(place, "r:") as file:
        for info in file:
            if info.isreg() and not info.issparse():
                yield Member.of(archive, info.name, info.offset_data, info.size, place)
            elif not info.isdir():
                passed.add("link or device")


@functools.cache
def _without_gzip(archive: Path, _: int) -> Any:
    """A temporary file with the content, which goes when this process ends; OSError if there is no room for it."""
    remove_left()
    file = tempfile.NamedTemporaryFile(prefix=_PREFIX, suffix=".tar")  # noqa: SIM115  workers open it by its name
    fcntl.flock(file, fcntl.LOCK_EX)
    with gzip.open(archive) as packed:
        shutil.copyfileobj(packed, file, 2**20)
    file.flush()
    return file


def remove_left() -> None:
    """Remove the copies of processes that were killed; those of others, and of other users, stay."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*.tar"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
