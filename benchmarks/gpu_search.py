"""A whole search, projected: epochs of `graphspec search` are run for a while, and the time of a step multiplied."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import wait_for
from compiler.ir.graph import Graph
from compiler.language.config import Configuration, DataConfig
from compiler.language.spec import Spec
from runtime.data.dataset import load_dataset
from runtime.jobs.logs import Console
from runtime.search.search_job import SearchJob
from runtime.strategies.base import Context
from runtime.strategies.dso import Dso
from runtime.training.stages import Position, Stage

CIFAR10_IMAGES = 50_000


def projected(spec: Spec, graph: Graph, device: torch.device, tiny: bool, seconds: float) -> dict[str, Any]:
    """Hours of the search as the spec has it, in bf16, from up to one epoch of each stage within so many seconds.

    The images are random ones of CIFAR-10's number and size, since only their handling takes time. Nothing is pruned
    while measuring, so a search, which shrinks the network, is faster; and a gate becomes zero or is no longer zero in
    every step, so that all penalties are found anew, which they seldom are. Checkpoints are left out.
    """
    job = _job(spec, graph, device, tiny)
    stages, total, lines = {}, 0.0, []
    for number, stage in enumerate(job.stages):
        found = _epoch(job, number, stage, device, seconds / 2, 2 if tiny else 10)
        whole = stage.epochs * (stage.steps_per_epoch * found["step"] + found["end"])
        stages[stage.name] = found | {"epochs": stage.epochs, "steps_per_epoch": stage.steps_per_epoch, "whole": whole}
        total += whole
        lines.append(
            f"{stage.name}: {stage.epochs} epochs of {stage.steps_per_epoch} steps of {1000 * found['step']:.1f} ms "
            f"({found['measured']} measured) and {found['end']:.2f} s of validation: {whole / 3600:.2f} h"
        )
    text = "\n".join([f"search of {graph.name} in bf16, nothing pruned: {total / 3600:.2f} GPU hours", *lines])
    return {"hours": total / 3600, "stages": stages, "text": text}


def _job(spec: Spec, graph: Graph, device: torch.device, tiny: bool) -> SearchJob:
    data = DataConfig(name="fake", fake_size=64 if tiny else CIFAR10_IMAGES, crop_padding=4, flip=True)
    search = spec.config.search.model_copy(update={"precision": "bf16"} | ({"batch_size": 8} if tiny else {}))
    config = Configuration(data=data, search=search)
    dataset = load_dataset(data, graph.node("input").shape, spec.classes, seed=0)
    with tempfile.TemporaryDirectory() as folder:  # latencies are measured for another penalty only
        console = Console(quiet=True)
        return SearchJob(Dso(Context.of(graph, config, dataset, device, spec.gate_init, console, Path(folder))))


def _epoch(
    job: SearchJob, number: int, stage: Stage, device: torch.device, seconds: float, least: int
) -> dict[str, float]:
    """Seconds of a step, read back as the training loop does, and of what an epoch ends with."""
    for step in range(2):  # warm up
        job.step(stage, Position(number, 0, step))
    wait_for(device)
    gate = next(iter(job.net.gate_vectors.values())).detach()[:1]
    start, steps, means = time.perf_counter(), 0, {}
    while steps < max(least, stage.steps_per_epoch) and (steps < least or time.perf_counter() - start < seconds):
        gate.fill_(steps % 2)
        losses = job.step(stage, Position(number, 0, steps % stage.steps_per_epoch))
        means = {key: float(value) for key, value in losses.items()}
        steps += 1
    taken = (time.perf_counter() - start) / steps
    start = time.perf_counter()
    job.end_epoch(stage, Position(number, 0, stage.steps_per_epoch), means, taken)
    wait_for(device)
    return {"step": taken, "measured": steps, "end": time.perf_counter() - start}
