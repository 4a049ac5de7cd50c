"""`graphspec lr`: the learning rate for a network, from a short training in which the rate grows step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch

from compiler.errors import RunError
from compiler.ir.graph import Model
from compiler.passes.pipeline import compacted
from runtime.data.dataset import load_dataset
from runtime.jobs.options import JobOptions
from runtime.jobs.run_retrain import found_network
from runtime.processes.launch import refuse_processes
from runtime.rundir.directory import Opened
from runtime.seeds import mix
from runtime.tasks.table import task_of
from runtime.training.retrain_job import RetrainJob
from runtime.training.stages import Position
from runtime.training.step import choose_device, require_statistics, set_rate

STEPS = 120
RANGES = {"sgd": (1e-4, 10.0), "adamw": (1e-6, 1.0)}  # by optimizer: the first and the last rate
MEMORY = 0.9  # share of the past in the mean of losses
DIVERGED = 2.0  # times the lowest loss: no larger rate is tried then
BELOW = 10  # the rate to set is so many times smaller than the one of the lowest loss: there it is about to diverge
ROWS, WIDTH = 24, 40  # of the plot


@dataclass(frozen=True)
class Rates:
    """Losses (means over some steps) by learning rate, and the rate to set."""

    rate: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]

    def lines(self) -> list[str]:
        """The plot and one sentence, for people."""
        pairs, highest = list(zip(self.rates, self.losses, strict=True)), max(self.losses)
        shown = islice(pairs, 0, None, -(-len(pairs) // ROWS))
        plot = [f"{rate:>9.2g}  {loss:<7.3f} {'#' * round(WIDTH * loss / highest)}" for rate, loss in shown]
        advice = f"the loss was lowest at {BELOW} times {self.rate:g}: set that one, --set retrain.lr={self.rate:g}"
        return [f"{'rate':>9}  loss", *plot, advice]


def run_rates(opened: Opened, options: JobOptions) -> Rates:
    """Train what `graphspec retrain` would train, or all of a network with gates that is not searched yet.

    Nothing is kept. RunError if the loss falls at no rate.
    """
    refuse_processes("lr", "it without torchrun")
    spec, config, device = opened.spec, opened.spec.config, choose_device(options.device)
    task = task_of(spec, opened.graph)
    dataset = load_dataset(config.data, spec.input, task, seed=config.seed, trust_code=options.trust_code)
    model = _network(opened)
    job = RetrainJob(model.graph, config, dataset, device, model.weights or None)
    require_statistics(job.trained, "retrain", job.config, 1)
    rates, losses = _swept(job, config.seed)
    lowest = min(range(len(losses)), key=losses.__getitem__)
    if lowest == 0:
        raise RunError(
            "the loss falls at no learning rate\n  try: graphspec data, to see whether images fit their labels"
        )
    return Rates(float(f"{rates[lowest] / BELOW:.1g}"), tuple(rates), tuple(losses))


def _network(opened: Opened) -> Model:
    graph = opened.graph
    if not graph.gates() or opened.run.search.arch.is_file():
        return found_network(opened).model
    return compacted(Model(graph, dict.fromkeys(graph.gates(), 1.0)), opened.spec.config.budget, inherit=False)[0]


def _swept(job: RetrainJob, seed: int) -> tuple[list[float], list[float]]:
    """Rates and the means of losses, each rate a constant factor above the one before, until training diverges."""
    first, last = RANGES[job.config.optimizer]
    rates, losses, mean = list[float](), list[float](), 0.0
    for step in range(STEPS):
        rate = first * (last / first) ** (step / (STEPS - 1))
        set_rate(job.optimizer, rate)
        torch.manual_seed(mix(seed, "lr", step))
        loss = float(job.weight_step(job.batch(Position(0, 0, step))))
        mean = MEMORY * mean + (1 - MEMORY) * loss
        smooth = mean / (1 - MEMORY ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > DIVERGED * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
    return rates, losses
