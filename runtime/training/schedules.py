"""Learning-rate schedules as functions of the step, so that a resumed job needs no scheduler state. Without torch."""

from __future__ import annotations

import math

from compiler.language.config import Schedule


def learning_rate(schedule: Schedule, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step number `step` (from 0) of a stage of `epochs` epochs; a fixed function of its arguments.

    Warm-up climbs linearly over its epochs, and the curve starts at `base` on the first step after it. `cosine` reaches
    `minimum` at the end of the stage, `warm_restarts` at the end of each period and then jumps back to `base`;
    `step` counts its milestones from the start of the stage, warm-up included.
    """
    warmup = schedule.warmup * steps_per_epoch
    if step < warmup:
        return base * (step + 1) / (warmup + 1)
    match schedule.kind:
        case "constant":
            return base
        case "step":
            passed = sum(step >= milestone * epochs * steps_per_epoch for milestone in schedule.milestones)
            return float(base * schedule.factor**passed)
        case "cosine":
            return _cosine(base, schedule.minimum, (step - warmup) / max(1, epochs * steps_per_epoch - warmup))
        case "warm_restarts":
            return _cosine(base, schedule.minimum, _place_in_period(schedule, step - warmup, steps_per_epoch))


def _cosine(base: float, minimum: float, done: float) -> float:
    """Half a cosine from `base` to `minimum`; `done` is the share of the way, held at 1 past the end."""
    return minimum + (base - minimum) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _place_in_period(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Share of the running period that is over, in [0, 1)."""
    period = schedule.first_period * steps_per_epoch
    while step >= period:
        step -= period
        period *= schedule.period_factor
    return step / period


def period_ends(schedule: Schedule, epochs: int) -> list[int]:
    """`warm_restarts`: the epochs at which periods end, warm-up included; the last one is at or after `epochs`."""
    end, period, ends = schedule.warmup, schedule.first_period, []
    while end < epochs:
        end += period
        period *= schedule.period_factor
        ends.append(end)
    return ends
