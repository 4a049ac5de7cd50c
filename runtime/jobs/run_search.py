"""`graphspec search`: run the search job of a run directory and write what it found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch

from compiler.analysis.costs import total_cost
from compiler.analysis.guards import smallest_closed
from compiler.analysis.limits import compared, listed
from compiler.architecture.found import Architecture
from compiler.architecture.random_network import random_closed
from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.ops import Cost
from compiler.passes.prune_zero_edges import prune
from runtime.data.split import Split
from runtime.jobs.logs import Console
from runtime.jobs.runner import JobOptions, Workplace, run_drawing, run_job, write_network
from runtime.rundir.directory import JobDir
from runtime.rundir.files import write_bytes, write_json, write_text
from runtime.rundir.opened import Opened
from runtime.search.search_job import SearchJob
from runtime.search.supernet import MODEL
from runtime.strategies.penalties import Penalty
from runtime.training.memory import require_memory


@dataclass(frozen=True)
class SearchResult:
    """What a search found; `search/result.json` holds the same."""

    run: str  # the run directory
    architecture: str  # path of arch.yaml
    accuracy: float | None  # validation accuracy of the pruned supernet; None for a random network, which is untrained
    full_accuracy: float | None  # of the full supernet at the end of pretraining
    gates: int
    kept_gates: int
    edges: int
    kept_edges: int
    full: Cost
    found: Cost

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> SearchResult:
        """From the JSON record."""
        return cls(**{**record, "full": Cost(**record["full"]), "found": Cost(**record["found"])})


def run_search(
    opened: Opened, options: JobOptions | None = None, penalty_type: type[Penalty] = Penalty
) -> SearchResult:
    """Search the space of a run; RunError, PassError or Interrupted if it cannot be finished.

    `penalty_type` decides the sparsity weight of every gate; it is not recorded, so resuming needs the same one.
    """

    def make(place: Workplace) -> SearchJob:
        if not opened.graph.gates():
            raise RunError(
                "the network has no gates: there is nothing to search; put `gated: true` on edges, or retrain it"
            )
        require_memory(opened.graph, place.config.search, place)
        latencies = place.folder.path / "latencies.json"
        job = SearchJob(
            opened.graph,
            place.config,
            place.dataset,
            place.device,
            opened.spec.gate_init,
            place.console,
            latencies,
            penalty_type,
            place.world,
        )
        if place.world.is_main:
            _record_split(place.folder, job.split)
        return job

    options = options or JobOptions()
    if opened.spec.config.search.strategy == "random":
        return SearchResult.of(run_drawing("search", opened, options, _draw))
    return SearchResult.of(run_job("search", opened, options, make, _finish))


def _record_split(folder: JobDir, split: Split) -> None:
    """Write down which training images went to which part: sizes and digest to read, row numbers to check."""
    parts = split.tensors()
    write_json(folder.path / "split.json", {name: len(rows) for name, rows in parts.items()} | {"digest": split.digest})
    write_bytes(folder.path / "split.safetensors", safetensors.torch.save(parts))


def _finish(place: Workplace, job: SearchJob) -> dict[str, Any]:
    """Write the pruned graph, its weights and gates, and arch.yaml; the result."""
    net, scores = job.supernet, job.validate()
    metrics = {"accuracy": scores.accuracy, "full_accuracy": job.full_accuracy, "validation_images": scores.count}

    def write() -> dict[str, Any]:
        tensors = {n.removeprefix(f"{MODEL}/"): t for n, t in net.tensors().items() if n.startswith(f"{MODEL}/")}
        write_network(place.folder, net.graph, tensors)
        result = _write(place.opened, place.folder, net.graph, net.gate_values(), metrics)
        _tell(result, place.opened.graph, place.console)
        return asdict(result)

    return place.world.decided(write)


def _draw(opened: Opened, folder: JobDir, console: Console) -> dict[str, Any]:
    """The control experiment: a random network of the parameter count asked for, nothing trained."""
    config = opened.spec.config
    if config.search.random_params is None:
        raise RunError(
            "search.strategy random needs a size to draw at\n"
            "  try: --match RUN (what RUN found) or --set search.random_params=N"
        )
    graph = prune(opened.graph, random_closed(opened.graph, config.search.random_params, config.seed))
    result = _write(opened, folder, graph, dict.fromkeys(graph.gates(), 1.0), {})
    console.line(
        f"drew a random network: {listed(asdict(result.found))}\n"
        f"wrote {result.architecture}; next: graphspec retrain {result.run}"
    )
    return asdict(result)


def _write(
    opened: Opened, folder: JobDir, found: Graph, gates: Mapping[str, float], metrics: Mapping[str, float | None]
) -> SearchResult:
    """Write arch.yaml; the result."""
    costs = {"full": total_cost(opened.graph), "found": total_cost(found)}
    architecture = Architecture.of(
        opened.graph,
        gates,
        strategy=opened.spec.config.search.strategy,
        seed=opened.spec.config.seed,
        spec_hash=hashlib.sha256(opened.run.resolved.read_bytes()).hexdigest(),
        metrics=metrics,
        costs={name: asdict(cost) for name, cost in costs.items()},
    )
    write_text(folder.arch, architecture.to_yaml())
    return SearchResult(
        run=str(opened.run.path),
        architecture=str(folder.arch),
        accuracy=metrics.get("accuracy"),
        full_accuracy=metrics.get("full_accuracy"),
        gates=len(opened.graph.gates()),
        kept_gates=len(found.gates()),
        edges=opened.graph.edge_count(),
        kept_edges=found.edge_count(),
        full=costs["full"],
        found=costs["found"],
    )


def _tell(result: SearchResult, full_graph: Graph, console: Console) -> None:
    if result.kept_gates == result.gates:
        console.warn(
            "no gate became zero, so nothing was pruned; raise search.gates.gamma, search.gates.lr or search.epochs"
        )
    elif result.kept_gates <= result.gates - len(smallest_closed(full_graph)):
        console.warn(
            f"every edge that may go was pruned, {result.kept_gates} of {result.gates} gates are left; "
            f"lower search.gates.gamma, search.gates.lr or search.epochs"
        )
    full = "" if result.full_accuracy is None else f" (full supernet {result.full_accuracy:.2%})"
    console.line(
        f"kept {result.kept_edges} of {result.edges} edges, {result.kept_gates} of {result.gates} gates; "
        f"{compared(asdict(result.full), asdict(result.found))}\n"
        f"validation accuracy of the pruned supernet {result.accuracy:.2%}{full}\n"
        f"wrote {result.architecture}; next: graphspec retrain {result.run}"
    )
