"""A division keeps groups whole, classes in proportion, and depends on nothing but what it is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.divide import PARTS, divide

SHARES = st.sampled_from([0.1, 0.2, 0.3, 0.5])


@given(
    counts=st.lists(st.integers(12, 60), min_size=1, max_size=5), test=SHARES, validation=SHARES, seed=st.integers(0, 9)
)
def test_every_class_is_divided_in_proportion(counts: list[int], test: float, validation: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    config = DataConfig(test=test, validation=validation, split_seed=seed)
    division = divide(labels, np.arange(len(labels)), config)
    shares = dict(zip(PARTS, ((1 - test) * (1 - validation), (1 - test) * validation, test), strict=True))
    for part, share in shares.items():
        found = np.bincount(labels[division.rows[part]], minlength=len(counts))
        assert np.all(np.abs(found - np.array(counts) * share) < 1)
    assert sorted(np.concatenate([*division.rows.values()])) == list(range(len(labels)))
    again = divide(labels, np.arange(len(labels)), config)
    assert all(np.array_equal(division.rows[part], again.rows[part]) for part in PARTS)
    assert not division.alike


@given(sizes=st.lists(st.integers(1, 9), min_size=20, max_size=60), seed=st.integers(0, 2**31))
def test_groups_stay_whole_whatever_their_classes(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    same = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels = rng.integers(0, 3, len(same))
    division = divide(labels, same, DataConfig(test=0.3, validation=0.3))
    for number in range(len(sizes)):
        assert sum(bool((same[rows] == number).any()) for rows in division.rows.values()) == 1
    assert sorted(map(len, division.alike)) == sorted(size for size in sizes if size > 1)
    assert division.facts.near_duplicates == sum(size for size in sizes if size > 1)
    found = np.array([len(division.rows[part]) for part in PARTS]) / len(same)
    assert np.abs(found - [0.49, 0.21, 0.3]).max() < 9 / len(same) + 0.1


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_are_refused(count: int) -> None:
    with pytest.raises(RunError, match=rf"of {count} images none is left for (validation|test)"):
        divide(np.zeros(count, np.int64), np.arange(count), DataConfig())
