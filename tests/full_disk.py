"""A disk without space."""

from __future__ import annotations

import errno
import itertools
import os

import pytest


def fill_disk(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Let all writes but the first `after` ones fail."""
    write, calls = os.write, itertools.count()

    def full(descriptor: int, content: bytes) -> int:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", full)
