"""Runs for tests of the report, made of files without training: compiled, in progress, finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.analysis.costs import total_cost
from compiler.elaborate.builder import elaborate
from compiler.ir.graph import Graph, Phase
from compiler.ir.text import text, to_json
from compiler.language.parse import parse_file
from compiler.passes.infer_types import infer_types
from compiler.passes.prune_zero_edges import prune
from runtime.rundir.directory import Compiled, RunDir
from runtime.rundir.study import make_seed_run

SPEC = """\
graphspec: 1
name: two-stages
input: [3, 8, 8]
classes: 4
gates: {share: none}
blocks:
  stem:
    type: "[3, H, W] -> [8, H, W]"
    nodes: {out: {op: conv, kernel: 3, from: in}}
  normal:
    type: "[C, H, W] -> [C, H, W]"
    levels: {count: 2, ops: [sep_conv_3x3, max_pool_3x3]}
    nodes:
      mix: {op: project, from: "levels.*", gated: true}
      out: {op: add, from: [mix, in]}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {op: global_avg_pool, from: in}
      out: {op: linear, from: pool}
network: [stem, {normal: 2}, head]
"""
PRETRAIN, SEARCH, RETRAIN = 2, 10, 3
CASES = [{"images": "test", "batch": batch, "max_rel": error} for batch, error in ((1, 1.1e-7), (64, 1.5e-7))]
PARITY = {
    "source": "retrain",
    "files": [{"kind": "fp32", "accuracy": 0.9287}],
    "parity": {"tolerance": 1e-4, "max_rel": 1.5e-7, "agreement": 1.0, "cases": CASES},
}
LATENCY = {
    "device": "a processor",
    "latencies": [
        {"network": network, "threads": threads, "batch": batch, "median_ms": milliseconds * batch / threads}
        for threads in (1, 2)
        for batch in (1, 64)
        for network, milliseconds in (("torch", 0.987), ("fp32", 0.321))
    ],
}


def new_run(folder: Path) -> tuple[RunDir, Graph]:
    """A compiled run."""
    file = folder / "two_stages.yaml"
    file.write_text(SPEC, encoding="utf-8")
    spec = parse_file(file)
    graph = infer_types(elaborate(spec), Phase.SEARCH)
    config = json.dumps(spec.config.model_dump(mode="json"))
    compiled = Compiled(spec.name, 5, SPEC, SPEC, config, to_json(graph), text(graph))
    return RunDir.create(compiled, folder / "run", root=folder / "runs"), graph


def values_at(graph: Graph, epoch: int) -> list[float]:
    """Gates 0, 3, 6, ... grow; the others fall and reach zero at different epochs."""
    rising = [1 + epoch * (1 + i / 100) / SEARCH for i in range(len(graph.gates()))]
    return [round(v if i % 3 == 0 else max(0.0, 1 - epoch / (2 + i % 7)), 4) for i, v in enumerate(rising)]


def append(file: Path, record: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def search_for(run: RunDir, graph: Graph, epochs: int) -> Graph:
    """Pretend to search: the logs of so many epochs; what is left of the graph."""
    run.search.path.mkdir()
    kept = graph
    for stage, count in (("pretrain", PRETRAIN), ("search", epochs)):
        for epoch in range(1, count + 1):
            gates = values_at(graph, epoch if stage == "search" else 0)
            if stage == "search":
                kept = prune(graph, [g for g, v in zip(graph.gates(), gates, strict=True) if v == 0])
            cost = total_cost(kept)
            record = {"stage": stage, "epoch": epoch, "train_loss": 2 / epoch, "loss": 2.5 / epoch}
            record |= {"accuracy": 1 - 0.5 / epoch, "zero_gates": gates.count(0.0), "gates": len(gates)}
            record |= {"edges": kept.edge_count(), "params": cost.params, "flops": cost.flops, "gate_values": gates}
            append(run.search.metrics, record)
            speed = 100.0 * (1 + epoch) if stage == "search" else 300.0
            append(run.search.timings, {"stage": stage, "epoch": epoch, "seconds": 30.0, "images_per_second": speed})
    return kept


def finished_run(folder: Path) -> tuple[RunDir, Graph]:
    """A run with search, retraining and export behind it."""
    run, graph = new_run(folder)
    finish(run, graph)
    return run, graph


def finished_study(folder: Path, accuracies: Mapping[int, float]) -> RunDir:
    """A study whose seeds reached these test accuracies."""
    run, graph = new_run(folder)
    for seed, accuracy in accuracies.items():
        finish(make_seed_run(run, seed), graph, accuracy)
    return run


def finish(run: RunDir, graph: Graph, accuracy: float = 0.9312) -> None:
    """Pretend to search, to retrain and to export."""
    kept = search_for(run, graph, SEARCH)
    run.search.graph_json.write_text(to_json(kept), encoding="utf-8")
    run.search.arch.write_text("kept: <some>\n", encoding="utf-8")
    costs = {name: asdict(total_cost(one)) for name, one in (("full", graph), ("found", kept))}
    result = {"accuracy": 0.95, "full_accuracy": 0.96, "kept_edges": kept.edge_count(), "kept_gates": 3, **costs}
    run.search.result.write_text(json.dumps(result), encoding="utf-8")
    run.retrain.path.mkdir()
    for epoch in range(1, RETRAIN + 1):
        append(
            run.retrain.metrics, {"stage": "retrain", "epoch": epoch, "train_loss": 1.0, "loss": None, "accuracy": 0.9}
        )
    result = {
        "accuracy": accuracy,
        "loss": 0.25,
        "validation_accuracy": 0.9,
        "test_images": 360,
        "width": 0.75,
        **costs,
    }
    run.retrain.result.write_text(json.dumps(result), encoding="utf-8")
    run.export.mkdir()
    (run.export / "parity.json").write_text(json.dumps(PARITY), encoding="utf-8")
    (run.export / "latency.json").write_text(json.dumps(LATENCY), encoding="utf-8")
