"""Memory that a training step frees stays with the process, for the next step to use.

glibc hands large free blocks back at once, and the kernel fills their pages with zeros anew: a sixth of a search step
on the CPU (`python -m benchmarks.memory`).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # the parameters of mallopt(3)
_NEVER, _NOTHING = -1, 0
_USUAL_BLOCKS = 65536  # glibc's default number of blocks with a mapping of their own
_LARGE_BLOCK = 32 * 2**20  # as far as glibc itself raises the size from which blocks get one; it trims at twice that
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this context the process gives no freed memory back; at its end it gives back what it can.

    Does nothing where memory does not come from glibc, or where the environment sets how glibc treats freed memory.
    The setting is one of the process: what other threads free is kept too.
    """
    if not _comes_from_glibc() or _is_set_by_user():
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, _NOTHING)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _USUAL_BLOCKS)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGE_BLOCK)
        give_back()


def give_back() -> None:
    """Hand all free pages back once: what comes next needs less than what was before, or pieces of other sizes."""
    if _comes_from_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _comes_from_glibc() -> bool:
    """Whether the allocator of this process is glibc's, and not one that LD_PRELOAD put before it."""
    if platform.libc_ver()[0] != "glibc":
        return False
    # torch calls it; `malloc` itself has an address of its own in some builds of Python
    called, own = (ctypes.CDLL(name).posix_memalign for name in (None, "libc.so.6"))
    return ctypes.cast(called, ctypes.c_void_p).value == ctypes.cast(own, ctypes.c_void_p).value


def _is_set_by_user() -> bool:
    return any(name in os.environ for name in _OWN_SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
