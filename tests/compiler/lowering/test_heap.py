"""The heap that a training is played on: pieces never overlap, and only what is pinned is lost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from compiler.lowering.heap import ALIGNMENT, HEADER, SLIVER, SMALL, Account, Heap, Piece
from compiler.lowering.memory import MemoryModel, Training
from tests.compiler.lowering.test_memory import chain_of_blocks

NONE = 10**9  # pinned so rarely that nothing is lost
KIB = 1024

moves = st.lists(st.one_of(st.integers(0, 10**6), st.floats(0, 0.999)), max_size=60)
"""A size to take, or which of the pieces in use to give back, as a share of their number."""


def play(heap: Heap, moves: list[int | float]) -> tuple[list[Piece], Account]:
    """The pieces that are in use at the end, and the same on an account."""
    account, used = Account(), list[tuple[Piece, Piece]]()
    for move in moves:
        if isinstance(move, int):
            used.append((heap.take(move), account.take(move)))
            check(heap, [piece for piece, _ in used])
        elif used:
            piece, counted = used.pop(int(move * len(used)))
            heap.give(piece)
            account.give(counted)
    return [piece for piece, _ in used], account


def check(heap: Heap, used: list[Piece]) -> None:
    """Pieces in use and free ones lie side by side within the heap; free neighbours have joined."""
    free = [(start, size) for size, start in heap.free]
    places = sorted(piece for piece in (*used, *free) if piece[1])
    for (start, size), (after, _) in pairwise(places):
        assert start + size <= after
    assert all(start + size <= heap.now <= heap.peak for start, size in places)
    ends = {start + size for start, size in free}
    assert not ends & {start for start, _ in free}


@given(moves=moves, pinned=st.sampled_from([1, 2, 4, NONE]))
def test_pieces_do_not_overlap(moves: list[int | float], pinned: int) -> None:
    heap = Heap(pinned)
    used, account = play(heap, moves)
    check(heap, used)
    large = sum(size for _, size in used)
    assert heap.now >= large
    assert account.peak >= account.now


@given(moves=moves)
def test_without_pins_all_that_is_given_back_joins(moves: list[int | float]) -> None:
    heap = Heap(NONE)
    used, _ = play(heap, moves)
    for piece in used:
        heap.give(piece)
    assert heap.now == 0
    assert heap.free == []


def test_the_smallest_piece_that_is_large_enough_is_taken() -> None:
    heap = Heap(NONE)
    pieces = [heap.take(size * KIB) for size in (64, 2, 32, 2, 128, 2)]
    for index in (0, 2, 4):
        heap.give(pieces[index])
    assert heap.take(20 * KIB)[0] == pieces[2][0]
    assert heap.take(33 * KIB)[0] == pieces[0][0]
    assert heap.take(100 * KIB)[0] == pieces[4][0]


def test_a_pinned_sliver_keeps_neighbours_apart() -> None:
    for pinned, grows in ((NONE, False), (1, True)):
        heap = Heap(pinned)
        first, second, _last = (heap.take(8 * KIB) for _ in range(3))
        heap.give(first)
        heap.give(second)
        before = heap.now
        heap.take(16 * KIB)
        assert (heap.now > before) == grows


def test_sizes() -> None:
    heap = Heap(1)
    assert heap.take(SMALL) == (0, 0)
    start, size = heap.take(SMALL + 1)
    assert (start, size) == (0, SMALL + ALIGNMENT + HEADER)
    assert heap.now == size + SLIVER


def test_a_process_grows_by_more_than_is_in_use_and_most_where_everything_is_pinned() -> None:
    searches = [(6, Training()), (6, Training(recompute=True)), (6, Training(accumulate=4))]
    for blocks, training in (*searches, (2, Training(searching=False))):  # weight steps alone leave few holes in six
        model = MemoryModel(chain_of_blocks(blocks), training)
        least, some, most = (model.growth(Heap(pinned), 64) for pinned in (NONE, 4, 1))
        peak = model.at(64).peak
        assert peak * 0.98 < least < 1.25 * peak
        assert least < some * 1.02
        assert 1.1 * peak < most < 3 * peak


def test_validation_takes_the_place_of_steps() -> None:
    model = MemoryModel(chain_of_blocks(6))
    steps, validation = model.growth(Heap(1), 64, 1), model.growth(Heap(1), 1, 256)
    assert steps > validation > model.growth(Heap(1), 1, 1)
    assert model.growth(Heap(1), 64, 256) == max(steps, validation)
