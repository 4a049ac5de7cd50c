"""What installed packages offer as entry points."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoints, entry_points

_read = functools.cache(lambda: entry_points())  # looking through all packages takes as long as reading a spec


def offered(group: str) -> EntryPoints:
    """The entry points of a group."""
    return _read().select(group=group)
