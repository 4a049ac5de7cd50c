"""What rows of trainings say: against plain networks, and of a space before it is searched."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import RunError
from runtime.rundir.trials import (
    RANDOM,
    Row,
    Trials,
    figures_of,
    outlook,
    read_trials,
    standard_error,
    verdict,
    write_trials,
)
from runtime.tasks.base import Metric
from runtime.tasks.classification import Classification

ACCURACY = Classification.metrics[0]
ERROR = Metric("error", "error", "{:.2f}", higher_is_better=False)


def row(network: str, *values: float, images: int = 10_000) -> Row:
    runs = tuple(f"{network}-s{seed}" for seed in range(len(values)))
    return Row(network=network, runs=runs, values=values, images=images, params=1, flops=2, ms=None, cpu_seconds=None)


PLAIN = [row("inverted", 0.8, 0.81), row("residual", 0.7, 0.71)]


@pytest.mark.parametrize(("values", "begins"), [
    ((0.85, 0.86), "the found network is better than the best plain one, inverted: 85.50% against 80.50%, +5.0 points"),
    ((0.80, 0.82), "the found network is no better than the plain one inverted"),
    ((0.70, 0.72), "the found network is worse than the plain one inverted"),
])  # fmt: skip
def test_the_verdict_names_the_best_plain_network(values: tuple[float, ...], begins: str) -> None:
    said = verdict(ACCURACY, row("found", *values), PLAIN, Path("run/baseline"))
    assert said.startswith(begins)
    assert ("graphspec export run/baseline/inverted-s0" in said) != ("better than the best" in said)


def test_few_test_images_make_no_verdict() -> None:
    found = row("found", 0.85, images=100)
    plain = [row("inverted", 0.81, images=100)]
    assert "no better" in verdict(ACCURACY, found, plain, Path("b"))
    assert standard_error(ACCURACY, found, plain[0]) == pytest.approx((0.85 * 0.15 / 100 + 0.81 * 0.19 / 100) ** 0.5)


def test_of_what_is_no_share_only_seeds_tell_the_error() -> None:
    assert standard_error(ERROR, row("a", 1.0), row("b", 2.0)) is None
    assert standard_error(ERROR, row("a", 1.0, 2.0), row("b", 2.0)) == pytest.approx(0.5)
    plain = [row("inverted", 2.0, 2.02), row("residual", 3.0)]
    assert "better than the best plain one, inverted: 1.00 against 2.01" in verdict(
        ERROR, row("found", 1.0, 1.0), plain, Path("b")
    )
    assert "chance is not known" in verdict(ERROR, row("found", 1.0), plain[1:], Path("b"))


@pytest.mark.parametrize(("values", "says"), [
    ((0.75, 0.76, 0.74, 0.75), "the space's median is 5.5 points below a plain network (inverted): change the space"),
    ((0.800, 0.805, 0.803, 0.806), "its choices differ by 0.3 points, not more than a seed does (0.7)"),
    ((0.78, 0.84, 0.80, 0.83), "a search can pay"),
])  # fmt: skip
def test_the_outlook_is_one_sentence(values: tuple[float, ...], says: str) -> None:
    said, _ = outlook(ACCURACY, row(RANDOM, *values), PLAIN)
    assert says in said


def test_a_picture_gets_clear_with_more_networks() -> None:
    behind = [0.765, 0.785, 0.755, 0.79]
    assert [outlook(ACCURACY, row(RANDOM, *behind * n), PLAIN)[1] for n in (1, 16)] == [False, True]


def test_figures_of_a_probe() -> None:
    drawn = row(RANDOM, 0.7, 0.8, 0.9, 0.82)
    found = figures_of(ACCURACY, drawn, PLAIN)
    assert found["median"] == pytest.approx(0.81)
    assert (found["best"], found["better_than_plain"]) == (0.9, 0.5)
    assert figures_of(ERROR, drawn, PLAIN)["best"] == 0.7


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert read_trials(tmp_path) is None
    trials = Trials(what="test accuracy", form="{:.2%}", said="so", rows=PLAIN)
    write_trials(tmp_path, trials)
    assert read_trials(tmp_path) == trials
    (tmp_path / "trials.json").write_text('{"what": 1}')
    with pytest.raises(RunError, match=r"trials\.json"):
        read_trials(tmp_path)
