"""What is said of valid settings before anything is trained: warnings about doubtful ones, errors about hopeless ones.

`graphspec compile` and the jobs ask the same, `check_settings`. It imports no torch.
"""

from __future__ import annotations

import math

from compiler.analysis.costs import node_costs
from compiler.analysis.guards import smallest_closed
from compiler.analysis.limits import MEASURES, limits_of
from compiler.errors import Diagnostic, PassError, SpecError
from compiler.ir.graph import Graph
from compiler.language.config import BudgetConfig, Configuration, GateConfig, Schedule, SearchConfig
from compiler.language.spec import Spec
from compiler.ops import BYTES
from compiler.passes.prune_zero_edges import prune
from compiler.passes.widen import require_reachable
from runtime.training.schedules import learning_rate, period_ends

TOO_SOON = 0.1
"""A gate without gradient that is zero within this many epochs: too fast to tell useful edges from useless ones."""
SAMPLES = 20_000
MANY = 50_000  # classes


def check_settings(spec: Spec, graph: Graph, images: int | None, job: str = "search") -> tuple[str, ...]:
    """All that is doubtful about a `job` (search or retrain) and what follows it, with so many training images.

    Validation images count among them; None: not known. SpecError or PassError if a search is hopeless, or no trained
    network is there to learn from.
    """
    require_teacher(spec)
    config, searches = spec.config, job == "search"
    used = None if images is None else round(images * (1 - config.data.validation))
    if searches:
        refuse_hopeless(spec, graph, None if config.data.name == "fake" else used)
    init = spec.gate_init if searches and graph.gates() else None
    return (*class_warnings(spec, graph), *advise(config, used, init))


def gate_steps_per_epoch(search: SearchConfig, images: int) -> int:
    """Gate steps in an epoch over `images` training images (validation images left out), whole batches only.

    `weight_steps` weight steps, then a gate step, until the weight part or the gate part runs out; at least one.
    """
    if search.cycles_per_epoch:
        return search.cycles_per_epoch
    weight_images = round(images * search.weight_part)
    weight_batches = weight_images // search.batch_size
    gate_batches = (images - weight_images) // search.batch_size
    return max(1, min(weight_batches // search.weight_steps, gate_batches))


def death_steps(gates: GateConfig, init: float = 1.0) -> float:
    """Steps at the full rate until a gate without gradient is zero: init * (1 - momentum) / (lr * gamma).

    Equations 6 to 8 (docs/method.md) without a gradient: a step moves the gate by lr * gamma, and momentum adds all
    earlier steps, 1 / (1 - momentum) times as much once it has built up. Before that a gate is slower, by at most
    momentum^2 / (1 - momentum) steps: it never needs fewer.
    """
    push = gates.lr * gates.written_gamma
    return init * (1 - gates.momentum) / push if push > 0 else math.inf


def full_steps(gates: GateConfig, steps_per_epoch: int, epochs: int, enough: float = math.inf) -> tuple[float, int]:
    """The sum of the gates' rates over a search, in steps at the full rate, and the step at which it is `enough`.

    The sum takes at most `SAMPLES` rates, so that a long search is checked as fast as a short one.
    """
    travelled, total = 0.0, epochs * steps_per_epoch
    stride = max(1, math.ceil(total / SAMPLES))
    for step in range(0, total, stride):
        rate = learning_rate(gates.schedule, gates.lr, step, steps_per_epoch, epochs)
        travelled += rate / gates.lr * min(stride, total - step)
        if travelled >= enough:
            return travelled, min(step + stride, total)
    return travelled, total


def too_slow(search: SearchConfig, steps_per_epoch: int, init: float = 1.0) -> str:
    """What to change where the search is too short for a gate without gradient to become zero; empty if it is not."""
    gates, total = search.gates, search.epochs * steps_per_epoch
    needed = death_steps(gates, init)
    travelled, _ = full_steps(gates, steps_per_epoch, search.epochs, needed)
    if travelled >= needed:
        return ""
    gamma, epochs = (value * needed / travelled for value in (gates.written_gamma, search.epochs))
    return (
        f"too short to prune: with search.gates.gamma {gates.gamma:g} and lr {gates.lr:g}, the gate of an edge "
        f"of no use is zero after about {_steps(needed)} at the full learning rate, and the search has only "
        f"{total}; set search.gates.gamma to {1.05 * gamma:.2g} or more, or to auto, "
        f"which meets a budget, search.epochs to {math.ceil(epochs)} or more, or lower search.batch_size"
    )


def _steps(number: float) -> str:
    return f"{number:.0f} gate step" + "s" * (round(number) != 1)


def gate_warnings(search: SearchConfig, steps_per_epoch: int | None, init: float = 1.0) -> list[str]:
    """What is doubtful about init, gamma, rate and epochs of gates, for so many gate steps an epoch (None: unknown)."""
    gates = search.gates
    if search.strategy != "dso" or search.epochs == 0 or gates.gamma == "auto":
        return []
    if init == 0:
        return ["gates.init is 0: pretraining trains nothing behind a gate, and all gates may be pruned at once; try 1"]
    if gates.gamma == 0:
        return ["search.gates.gamma is 0: no gate is pushed to zero, so no edge will be pruned"]
    if steps_per_epoch is not None and (slow := too_slow(search, steps_per_epoch, init)):
        return [slow]
    needed, share = death_steps(gates, init), ""
    soon = needed <= 1
    if steps_per_epoch is not None:
        _, steps = full_steps(gates, steps_per_epoch, search.epochs, needed)
        soon = soon or steps < TOO_SOON * steps_per_epoch
        share = f", {steps / steps_per_epoch:.2g} of an epoch"
    return [
        f"with search.gates.gamma {gates.gamma:g} and lr {gates.lr:g}, a gate without gradient is zero after about "
        f"{_steps(max(needed, 1))}{share}: lower gamma or the gates' lr, or useful edges are pruned too"
    ] * soon


def class_warnings(spec: Spec, graph: Graph) -> list[str]:
    """What a great number of classes costs, where there is one."""
    if spec.classes <= MANY:
        return []
    costs = node_costs(graph).items()
    params = sum(cost.params for node_id, cost in costs if graph.node(node_id).shape[0] == spec.classes)
    return [
        f"classes {spec.classes:,}: the layers that give so many values have {params:,} parameters, "
        f"{params * BYTES / 2**30:.2g} GiB, and training keeps three numbers for each"
    ]


def refuse_hopeless(spec: Spec, graph: Graph, images: int | None) -> None:
    """SpecError where a gate goes less than half of its way in the search, PassError where no network meets the budget.

    `images` to train with, validation left out; None where they were not counted or mean nothing. An adaptive gamma is
    the written one at most.
    """
    search = spec.config.search
    pushes = search.strategy == "dso" and search.epochs > 0 and search.gates.written_gamma > 0
    steps = 0 if images is None else gate_steps_per_epoch(search, images)
    # half the way: a gate that the loss pushes down as hard as gamma does goes twice as far, and edges are pruned then
    if steps and pushes and graph.gates() and too_slow(search, steps, spec.gate_init / 2):
        slow = too_slow(search, steps, spec.gate_init)
        raise SpecError([Diagnostic(spec.place("search", "gates", "gamma"), slow)])
    refuse_budget(graph, spec.config.budget)


def require_teacher(spec: Spec) -> None:
    """SpecError where `retrain.distil` has no trained network to learn from."""
    if spec.config.retrain.distil.weight and not spec.weights:
        message = (
            "there is no trained network to learn from: the spec names no weights; write `weights: FILE`, or "
            "retrain.distil.weight: 0"
        )
        raise SpecError([Diagnostic(spec.place("retrain", "distil", "weight"), message)])


def refuse_budget(graph: Graph, budget: BudgetConfig) -> None:
    """PassError if the network of the space with the fewest parameters, and that with the fewest FLOPs, is over it."""
    problems: list[PassError] = []
    for measure in MEASURES if limits_of(budget) else ():
        try:
            require_reachable(prune(graph, smallest_closed(graph, measure.name)), budget)
        except PassError as error:
            problems.append(error)
    if len(problems) == len(MEASURES):
        raise problems[0]


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


def advise(configuration: Configuration, images: int | None, init: float | None = 1.0) -> list[str]:
    """All warnings, for gates that start at `init` (None: there are none, so nothing is searched).

    How long gates take to close is known only with the number of training images, without validation.
    """
    search, retrain, found = configuration.search, configuration.retrain, []
    if init is not None:
        found += gate_warnings(search, None if images is None else gate_steps_per_epoch(search, images), init)
        found += schedule_warnings("search.gates", search.gates.schedule, search.gates.lr, search.epochs)
        for epochs in sorted({search.pretrain_epochs, search.epochs}):
            found += schedule_warnings("search", search.schedule, search.lr, epochs)
    found += schedule_warnings("retrain", retrain.schedule, retrain.lr, retrain.epochs)
    return list(dict.fromkeys(found))
