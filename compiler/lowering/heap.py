"""Where the pieces of memory lie that a step takes and gives back: what is in use, and how far a process grows.

A process grows by more than is in use at a time. glibc leaves slivers beside a piece that must begin at a multiple of
64 bytes, and where a small object takes a sliver, the free pieces on either side of it cannot join any more.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Protocol

SMALL, SLIVER, ALIGNMENT, HEADER = 1024, 96, 64, 16  # bytes; smaller pieces are small objects themselves
Piece = tuple[int, int]
"""Where it starts, and how long it is."""


class Memory(Protocol):
    """What hands out pieces; sizes in bytes."""

    now: int
    peak: int

    def take(self, size: int) -> Piece:
        """A piece of at least this size."""

    def give(self, piece: Piece) -> None:
        """It is free again."""


class Account:
    """Counts what is in use, as torch does."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def take(self, size: int) -> Piece:
        """Only the size matters."""
        self.now += size
        self.peak = max(self.peak, self.now)
        return 0, size

    def give(self, piece: Piece) -> None:
        """Less is in use."""
        self.now -= piece[1]


class Heap:
    """Takes the smallest free piece that is large enough, else grows; free neighbours join.

    `now` is where it ends. After every `pinned`-th piece lies a sliver that no piece can be made of any more.
    """

    def __init__(self, pinned: int) -> None:
        self.pinned, self.taken = pinned, 0
        self.now = self.peak = 0
        self.free: list[Piece] = []  # as (size, start), sorted
        self.size_at: dict[int, int] = {}  # of free pieces, by start
        self.start_of: dict[int, int] = {}  # by end

    def take(self, size: int) -> Piece:
        """Where something free has room, or at the end."""
        if size <= SMALL:
            return 0, 0
        self.taken += 1
        sliver = SLIVER if self.taken % self.pinned == 0 else 0
        size = -(-size // ALIGNMENT) * ALIGNMENT + HEADER
        index = bisect_left(self.free, (size, 0))
        if index == len(self.free):
            start, self.now = self.now, self.now + size + sliver
            self.peak = max(self.peak, self.now)
            return start, size
        room, start = self.free[index]
        self._forget(start, room)
        if room > size + sliver:
            self._remember(start + size + sliver, room - size - sliver)
        return start, size

    def give(self, piece: Piece) -> None:
        """Joins with what is free beside it; what lies at the end is no part of the heap any more."""
        start, size = piece
        if size == 0:
            return
        if start + size in self.size_at:
            size += self._forget(start + size, self.size_at[start + size])
        if start in self.start_of:
            below = self.start_of[start]
            size += self._forget(below, start - below)
            start = below
        if start + size == self.now:
            self.now = start
        else:
            self._remember(start, size)

    def _remember(self, start: int, size: int) -> None:
        insort(self.free, (size, start))
        self.size_at[start] = size
        self.start_of[start + size] = start

    def _forget(self, start: int, size: int) -> int:
        del self.free[bisect_left(self.free, (size, start))]
        del self.size_at[start]
        del self.start_of[start + size]
        return size
