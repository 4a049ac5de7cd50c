"""Learning-rate curves, and the warnings about settings that cannot work."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.language.config import Configuration, GateConfig, RetrainConfig, Schedule, SearchConfig
from runtime.jobs.advice import (
    advise,
    death_steps,
    full_steps,
    gate_steps_per_epoch,
    gate_warnings,
    schedule_warnings,
)
from runtime.strategies.apgnag import APGNAG
from runtime.training.schedules import learning_rate, period_ends

RESTARTS = Schedule(kind="warm_restarts", first_period=10, period_factor=2, minimum=1e-4)


def curve(schedule: Schedule, base: float, steps_per_epoch: int, epochs: int) -> list[float]:
    return [learning_rate(schedule, base, s, steps_per_epoch, epochs) for s in range(epochs * steps_per_epoch)]


def test_constant() -> None:
    assert set(curve(Schedule(kind="constant"), 0.1, 3, 4)) == {0.1}


def test_step_multiplies_at_its_milestones() -> None:
    rates = curve(Schedule(kind="step", milestones=(0.25, 0.5), factor=0.1), 1.0, 2, 4)
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])


def torch_curve(make: type[torch.optim.lr_scheduler.LRScheduler], steps: int, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler = make(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs() -> None:
    expected = torch_curve(torch.optim.lr_scheduler.CosineAnnealingLR, 35, T_max=35, eta_min=1e-3)
    assert curve(Schedule(kind="cosine", minimum=1e-3), 0.05, 7, 5) == pytest.approx(expected, rel=1e-9)


def test_warm_restarts_are_torchs() -> None:
    expected = torch_curve(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, 210, T_0=30, T_mult=2, eta_min=1e-4)
    assert curve(RESTARTS, 0.05, 3, 70) == pytest.approx(expected, rel=1e-9)


def test_six_periods_fill_630_epochs() -> None:
    assert period_ends(RESTARTS, 630) == [10, 30, 70, 150, 310, 630]
    rates = curve(RESTARTS, 0.05, 10, 630)
    starts = [step for step, rate in enumerate(rates) if rate == 0.05]
    assert starts == [0, 100, 300, 700, 1500, 3100]
    assert min(rates) >= 1e-4
    assert rates[-1] == pytest.approx(1e-4, abs=1e-6)


def test_warm_up_is_linear_and_the_curve_starts_after_it() -> None:
    schedule = RESTARTS.model_copy(update={"warmup": 2})
    rates = curve(schedule, 0.05, 4, 20)
    assert rates[:9] == pytest.approx([0.05 * k / 9 for k in range(1, 10)])
    assert rates[8:48] == pytest.approx(curve(RESTARTS, 0.05, 4, 10))
    assert rates[48] == 0.05  # the first restart comes after warm-up and ten epochs
    assert period_ends(schedule, 20) == [12, 32]


def test_equal_periods_repeat() -> None:
    schedule = Schedule(kind="warm_restarts", first_period=2, period_factor=1)
    rates = curve(schedule, 1.0, 3, 6)
    assert rates[:6] == rates[6:12] == rates[12:]


@given(
    kind=st.sampled_from(["constant", "step", "cosine", "warm_restarts"]),
    warmup=st.integers(0, 5),
    minimum=st.floats(0, 0.05),
    steps_per_epoch=st.integers(1, 7),
    epochs=st.integers(0, 12),
    step=st.integers(0, 100),
)
@settings(max_examples=100)
def test_rates_stay_in_range(
    kind: str, warmup: int, minimum: float, steps_per_epoch: int, epochs: int, step: int
) -> None:
    schedule = Schedule.model_validate({"kind": kind, "warmup": warmup, "minimum": minimum})
    assert 0 <= learning_rate(schedule, 0.1, step, steps_per_epoch, epochs) <= 0.1 + 1e-15


# -- advice ---------------------------------------------------------------------------------------------------------


def search(gamma: float, lr: float = 0.1, epochs: int = 20, schedule: str = "constant") -> SearchConfig:
    return SearchConfig(
        gates=GateConfig(gamma=gamma, lr=lr, schedule=Schedule.model_validate({"kind": schedule})), epochs=epochs
    )


def test_published_rule_of_thumb() -> None:
    assert death_steps(search(1e-3).gates) == pytest.approx(1000)
    assert death_steps(search(1e-3).gates, init=0.5) == pytest.approx(500)
    assert death_steps(search(0.0).gates) == math.inf


@pytest.mark.parametrize(("gamma", "momentum"), [(1e-2, 0.9), (1e-3, 0.0), (2e-3, 0.5), (5e-2, 0.95)])
def test_the_rule_is_the_optimizers(gamma: float, momentum: float) -> None:
    """A gate without gradient is zero no sooner than the rule says, and at most mu^2 / (1 - mu) steps later."""
    gate = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer, steps = APGNAG([gate], lr=0.1, gamma=gamma, momentum=momentum), 0
    while gate.item() > 0:
        gate.grad = torch.zeros_like(gate)
        optimizer.step()
        steps += 1
    rule = death_steps(GateConfig(gamma=gamma, lr=0.1, momentum=momentum))
    assert rule - 1e-6 <= steps <= rule + momentum**2 / (1 - momentum) + 1


def test_varying_rates_count_by_their_sum() -> None:
    assert full_steps(search(1e-3).gates, 195, 120, 1000) == (pytest.approx(1000, abs=2), pytest.approx(1000, abs=2))
    # x + sin(pi * x) / pi = 0.9995, solved for the share x of 20 epochs: 2000 rates add up to 1000.5 full ones
    cosine = search(1e-3, schedule="cosine").gates
    assert full_steps(cosine, 100, 20, 1000)[1] == pytest.approx(1866, abs=2)
    assert full_steps(cosine, 100, 19, 1000) == (pytest.approx(950, abs=1), 1900)
    assert full_steps(search(1e-3).gates, 10_000_000, 120)[0] == pytest.approx(1.2e9)


def test_gate_steps_follow_the_split() -> None:
    even = SearchConfig(batch_size=64, weight_part=0.5, weight_steps=1)
    assert gate_steps_per_epoch(even, 50_000) == 390
    assert gate_steps_per_epoch(even.model_copy(update={"weight_part": 0.8, "weight_steps": 4}), 50_000) == 156
    assert gate_steps_per_epoch(even, 100) == 1


def test_good_settings_are_not_warned_about() -> None:
    assert gate_warnings(search(1e-3, epochs=120), 195) == []
    assert advise(Configuration(), 45_000) == []
    assert advise(Configuration(), None) == []


@pytest.mark.parametrize("steps", [None, 1, 195])
def test_gates_that_close_at_once_are_warned_about_whatever_the_data(steps: int | None) -> None:
    for gamma, init in ((1e6, 1.0), (1.0, 0.5), (1e6, 1e3)):
        (warning,) = gate_warnings(search(gamma), steps, init)
        assert re.search(r"after about 1 gate step\b", warning)
        assert "lower gamma" in warning
    (warning,) = gate_warnings(search(1e-3), steps, 0.0)
    assert warning.startswith("gates.init is 0")
    (warning,) = gate_warnings(search(0.0), steps)
    assert "no edge will be pruned" in warning


def test_gates_that_start_higher_take_longer() -> None:
    assert gate_warnings(search(1e-3, epochs=10), 195) == []
    assert "has only 1950" in gate_warnings(search(1e-3, epochs=10), 195, 3.0)[0]


def test_advice_names_the_settings() -> None:
    slow = Configuration(search=search(1e-6), retrain=RetrainConfig(schedule=RESTARTS, epochs=40))
    gates, restarts = advise(slow, 45_000)
    assert "search.gates.gamma 1e-06" in gates
    assert "retrain stops after 40 epochs" in restarts


@pytest.mark.parametrize(
    ("settings_", "steps", "said"),
    [
        (search(1e-5), 195, "about 100000 gate steps .* has only 3900; set search.gates.gamma to 0.00027 or more"),
        (search(1.0), 195, "about 1 gate step, .* of an epoch: lower gamma"),
        (search(0.0), 195, "gamma is 0"),
    ],
)
def test_hopeless_gate_settings(settings_: SearchConfig, steps: int, said: str) -> None:
    (warning,) = gate_warnings(settings_, steps)
    assert re.search(said, warning)


def test_random_search_has_no_gate_steps() -> None:
    assert gate_warnings(SearchConfig(strategy="random"), 1) == []


def test_schedule_warnings_name_the_key() -> None:
    assert schedule_warnings("retrain", RESTARTS, 0.05, 630) == []
    (cut,) = schedule_warnings("retrain", RESTARTS, 0.05, 60)
    assert "retrain stops after 60 epochs" in cut
    assert "10, 30, 70" in cut
    (rising,) = schedule_warnings("search", Schedule(minimum=0.2), 0.1, 10)
    assert "search.schedule.minimum" in rising
    (warm,) = schedule_warnings("search", Schedule(warmup=10), 0.1, 10)
    assert "training never leaves the warm-up" in warm


def test_advice_needs_no_torch() -> None:
    code = "import sys, runtime.jobs.advice; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=__file__.partition("/tests/")[0])
