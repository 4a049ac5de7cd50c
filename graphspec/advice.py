"""Warnings about valid settings that cannot give a useful search; `graphspec compile` prints them.

It belongs to the highest layer, with the API and the command line, and imports no torch.
"""

from __future__ import annotations

import math

from compiler.language.config import Configuration, DataConfig, GateConfig, Schedule, SearchConfig
from runtime.training.schedules import learning_rate, period_ends

TOO_SOON = 0.1
"""A gate without gradient that is zero within this many epochs: too fast to tell useful edges from useless ones."""
SAMPLES = 20_000
TRAINING_IMAGES = {
    "digits": 1437,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "fashion_mnist": 60_000,
    "mnist": 60_000,
    "svhn": 73_257,
    "imagenet": 1_281_167,
}
"""Training images of the data sets whose size is known without opening them, test images left out."""


def training_images(data: DataConfig) -> int | None:
    """Images to train weights and gates on, validation left out; None for a data set of unknown size."""
    images = data.fake_size if data.name == "fake" else TRAINING_IMAGES.get(data.name)
    return None if images is None else images - round(data.validation * images)


def gate_steps_per_epoch(search: SearchConfig, images: int) -> int:
    """Gate steps in an epoch over `images` training images (validation images left out), whole batches only.

    `weight_steps` weight steps, then a gate step, until the weight part or the gate part runs out; at least one.
    """
    weight_images = round(images * search.weight_part)
    weight_batches = weight_images // search.batch_size
    gate_batches = (images - weight_images) // search.batch_size
    return max(1, min(weight_batches // search.weight_steps, gate_batches))


def death_steps(gamma: float, lr: float, momentum: float) -> float:
    """Steps at a constant rate until a gate without gradient has gone from 1 to 0: (1 - momentum) / (lr * gamma)."""
    return (1 - momentum) / (lr * gamma) if lr * gamma > 0 else math.inf


def epochs_to_death(gates: GateConfig, steps_per_epoch: int, epochs: int, init: float = 1.0) -> float:
    """Epochs until a gate without gradient has gone from `init` to 0 by the gates' schedule; infinity if it does not.

    Under a varying rate a gate has gone `gamma / (1 - momentum)` times the sum of the rates so far; the sum takes at
    most `SAMPLES` rates, so that a long search is checked as fast as a short one.
    """
    travelled, needed = 0.0, init * death_steps(gates.gamma, 1.0, gates.momentum)
    total = epochs * steps_per_epoch
    stride = max(1, math.ceil(total / SAMPLES))
    for step in range(0, total, stride):
        rate = learning_rate(gates.schedule, gates.lr, step, steps_per_epoch, epochs)
        travelled += rate * min(stride, total - step)
        if travelled >= needed:
            return min(step + stride, total) / steps_per_epoch
    return math.inf


def gate_warnings(search: SearchConfig, steps_per_epoch: int | None, init: float = 1.0) -> list[str]:
    """What is doubtful about init, gamma, rate and epochs of gates, for so many gate steps an epoch (None: unknown)."""
    gates = search.gates
    if search.strategy != "dso" or search.epochs == 0:
        return []
    if init == 0:
        return ["gates.init is 0: pretraining trains nothing behind a gate, and all gates may be pruned at once; try 1"]
    if gates.gamma == 0:
        return ["search.gates.gamma is 0: no gate is pushed to zero, so no edge will be pruned"]
    steps = init * death_steps(gates.gamma, gates.lr, gates.momentum)
    pace = (
        f"with search.gates.gamma {gates.gamma:g} and lr {gates.lr:g}, a gate without gradient is zero after about "
        f"{max(steps, 1):.0f} gate steps at the full learning rate"
    )
    alive = math.inf if steps_per_epoch is None else epochs_to_death(gates, steps_per_epoch, search.epochs, init)
    if steps <= 1 or alive < TOO_SOON:
        share = "" if steps_per_epoch is None else f", {alive:.2g} of an epoch"
        return [f"{pace}{share}: lower gamma or the gates' lr, or useful edges are pruned too"]
    if steps_per_epoch is not None and math.isinf(alive):
        total = search.epochs * steps_per_epoch
        return [f"{pace}, but the search has only {total} gate steps: raise gamma, the gates' lr or search.epochs"]
    return []


def schedule_warnings(where: str, schedule: Schedule, base: float, epochs: int) -> list[str]:
    """What is doubtful about a schedule; `where` is the key of its section, e.g. `retrain`."""
    found = []
    if schedule.warmup >= epochs > 0:
        found.append(
            f"{where}.schedule.warmup is {schedule.warmup} of {epochs} epochs: training never leaves the warm-up"
        )
    if schedule.kind in ("cosine", "warm_restarts") and schedule.minimum > base:
        found.append(f"{where}.schedule.minimum {schedule.minimum:g} is above {where}.lr {base:g}: the rate will rise")
    if schedule.kind == "warm_restarts" and epochs > 0:
        ends = period_ends(schedule, epochs)
        if ends and ends[-1] != epochs:
            found.append(
                f"{where} stops after {epochs} epochs, in the middle of a warm-restart period: "
                f"periods end at epochs {', '.join(map(str, ends))}"
            )
    return found


def advise(configuration: Configuration, init: float | None = 1.0) -> list[str]:
    """All warnings, for gates that start at `init` (None: there are none, so nothing is searched)."""
    search, retrain, found = configuration.search, configuration.retrain, []
    if init is not None:
        images = training_images(configuration.data)
        found += gate_warnings(search, None if images is None else gate_steps_per_epoch(search, images), init)
        found += schedule_warnings("search.gates", search.gates.schedule, search.gates.lr, search.epochs)
        for epochs in sorted({search.pretrain_epochs, search.epochs}):
            found += schedule_warnings("search", search.schedule, search.lr, epochs)
    found += schedule_warnings("retrain", retrain.schedule, retrain.lr, retrain.epochs)
    return list(dict.fromkeys(found))
