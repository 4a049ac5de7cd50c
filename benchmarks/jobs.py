"""A search job outside of `graphspec search`, and the halves of its steps: what benchmarks of searches begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from compiler.language.config import Configuration
from graphspec.api import load
from runtime.data.dataset import load_dataset
from runtime.jobs.logs import Console
from runtime.search.search_job import SearchJob
from runtime.search.supernet import Supernet
from runtime.strategies.apgnag import APGNAG
from runtime.strategies.base import Context
from runtime.strategies.dso import Dso, gate_optimizer
from runtime.tasks.classification import Classification
from runtime.tasks.table import task_of
from runtime.training.captured import Step
from runtime.training.step import Batch

Gradients = Callable[[Batch], Tensor]
TASK = Classification(10, Configuration())


def search_job(
    spec: str | Path, settings: Sequence[str], folder: Path, device: torch.device, console: Console
) -> tuple[SearchJob, Configuration]:
    """The search of a spec with `settings` (KEY=VALUE) and the configuration it runs with; GraphspecError if wrong."""
    parsed, graph = load(spec, settings)
    config, (channels, height, width) = parsed.config, parsed.input
    dataset = load_dataset(config.data, (channels, height, width), task_of(parsed, graph), seed=config.seed)
    context = Context(graph, config, dataset, device, parsed.gate_init, console, folder)
    return SearchJob(Dso(context)), config


def whole_steps(net: Supernet, gates: APGNAG) -> dict[str, Callable[[Batch], Tensor]]:
    """A weight step and a gate step as a search takes them: called, or captured and replayed."""

    def of_gates(batch: Batch) -> Tensor:
        loss = net.gate_gradients(batch)
        gates.step()
        return loss

    return {"weight": lambda batch: net.weight_step(batch, net.config.lr), "gate": Step(of_gates, net.capture)}


def halves(net: Supernet, gates: APGNAG | None = None) -> dict[str, tuple[Gradients, Optimizer]]:
    """A weight step and a gate step: what finds the gradients, and the optimizer that uses them."""
    return {"weight": (net.weight_gradients, net.weights), "gate": (net.gate_gradients, gates or gate_optimizer(net))}
