"""The figures of an evaluation, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from runtime.inference.figures import BINS, Figures, figures_of, wilson

LABELS = ("a", "b", "c", "d")
CASES = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 3), st.floats(0.0, 1.0) | st.sampled_from([k / BINS for k in range(16)])
    ),
    min_size=1,
    max_size=60,
)  # class, answer, confidence


def figures(cases: list[tuple[int, int, float]]) -> Figures:
    truths, answers, confidences = zip(*cases, strict=True)
    return figures_of(np.array(truths), np.array(answers), np.array(confidences), LABELS)


@given(CASES)
@pytest.mark.filterwarnings("ignore:y_pred contains classes:UserWarning")
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
def test_counts_and_shares_are_those_of_scikit_learn(cases: list[tuple[int, int, float]]) -> None:
    found, (truths, answers, _) = figures(cases), zip(*cases, strict=True)
    assert [list(row) for row in found.confusion] == confusion_matrix(truths, answers, labels=range(4)).tolist()
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truths, answers))
    assert found.accuracy == np.mean(np.array(truths) == np.array(answers))
    wanted = precision_recall_fscore_support(truths, answers, labels=range(4), zero_division=np.nan)
    for each, precision, recall in zip(found.classes, *wanted[:2], strict=True):
        assert each.precision == (None if math.isnan(precision) else pytest.approx(precision))
        assert each.recall == (None if math.isnan(recall) else pytest.approx(recall))


@given(CASES)
def test_calibration_is_by_its_definition(cases: list[tuple[int, int, float]]) -> None:
    found = figures(cases)
    assert sum(each.images for each in found.calibration) == len(cases)
    error = 0.0
    for each in found.calibration:
        low = -1.0 if each.low == 0 else each.low
        inside = [(t == a, c) for t, a, c in cases if low < c <= each.high or math.isclose(c, each.high)]
        inside = [item for item in inside if not math.isclose(item[1], low)]
        assert each.images == len(inside)
        rights, confidences = zip(*inside, strict=True)
        assert (each.accuracy, each.confidence) == pytest.approx((np.mean(rights), np.mean(confidences)))
        error += len(inside) / len(cases) * abs(np.mean(rights) - np.mean(confidences))
    assert found.confidence == pytest.approx(np.mean([c for _, _, c in cases]))
    assert found.calibration_error == pytest.approx(error)


def test_wilson_intervals_are_those_of_the_tables() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                    (1, 29, 0.0061, 0.1718), (20, 20, 0.8389, 1.0)):  # fmt: skip
        assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_an_interval_holds_its_share(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    low, high = wilson(right, count)
    assert 0 <= low <= right / count + 1e-12
    assert right / count - 1e-12 <= high <= 1
    swapped = wilson(count - right, count)
    assert swapped == pytest.approx((1 - high, 1 - low))
