"""The Python API: what the command line does, as functions with typed results.

    import graphspec
    compiled = graphspec.compile("specs/digits.yaml")
    found = graphspec.search(compiled.run)

Every function takes a `RunDir` or a path to one (None: the latest). Errors are `graphspec.errors.GraphspecError`.
torch is imported by the functions that train, and by no other.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from compiler.architecture import Architecture
from compiler.derive import derive as derive_architecture
from compiler.elaborate import load as load_spec
from compiler.ir import Graph
from compiler.text import from_json, graph_hash, json_hash, text, to_json
from compiler.verify import verify
from graphspec.advice import advise
from graphspec.cost_report import CostReport, cost_report
from graphspec.errors import RunError
from graphspec.garbage import collector_paused
from graphspec.spec import Spec
from runtime.files import write_text
from runtime.opened import Opened
from runtime.rundir import RUNS, RunDir
from runtime.rundir import Compiled as RunFiles

if TYPE_CHECKING:
    from runtime.export import ExportResult
    from runtime.penalties import Penalty
    from runtime.run_retrain import RetrainResult
    from runtime.run_search import SearchResult

Target = RunDir | str | os.PathLike[str] | None
SUFFIXES = (".yaml", ".yml")  # of spec files


@dataclass(frozen=True)
class CompiledSpec:
    """A checked spec: its graph, its costs, doubts about its settings and (unless dry) its run directory."""

    spec: Spec
    graph: Graph
    costs: CostReport
    warnings: tuple[str, ...]
    run: RunDir | None


@collector_paused()
def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> tuple[Spec, Graph]:
    """Parse and elaborate a spec file; SpecError with every mistake in it."""
    spec, graph = load_spec(path, overrides)
    verify(graph)
    return spec, graph


@collector_paused()
def compile(  # noqa: A001  (the verb of the command line)
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    root: Path = RUNS,
) -> CompiledSpec:
    """Check a spec, count its costs and write a run directory under `root` (or at `out`); SpecError or RunError."""
    spec, graph = load(path, overrides)
    graph_json = to_json(graph)
    costs = cost_report(graph, spec.config.search.batch_size, json_hash(graph_json))
    warnings = tuple(advise(spec.config))
    run = None
    if not dry_run:
        files = RunFiles(
            name=spec.name,
            seed=spec.config.seed,
            spec=spec.text,
            resolved=yaml.safe_dump(spec.places.plain(), sort_keys=False, allow_unicode=True),
            config=spec.config.model_dump_json(indent=2) + "\n",
            graph_json=graph_json,
            graph_text=text(graph),
        )
        run = RunDir.create(files, Path(out) if out else None, root)
    return CompiledSpec(spec, graph, costs, warnings, run)


def open_run(target: Target = None, overrides: Sequence[str] = ()) -> Opened:
    """Open a run directory, compile a spec file into a new one, or open the latest (None).

    Overrides may change settings, not the graph: RunError if they would.
    """
    if not isinstance(target, RunDir):
        path = None if target is None else Path(target)
        if path is not None and _is_spec(path):
            compiled = compile(path, overrides=overrides)
            assert compiled.run is not None
            return Opened(compiled.run, compiled.spec, compiled.graph)
        target = RunDir.latest() if path is None else RunDir.open(path)
    spec, graph = load(target.resolved, overrides)
    compiled_graph = from_json(target.graph_json.read_text(encoding="utf-8"))
    if graph_hash(graph) != graph_hash(compiled_graph):
        raise RunError(
            f"{target.path}: the overrides {' '.join(overrides) or '(none)'} give another graph than the one compiled "
            f"there\n  try: graphspec compile SPEC with the same --set"
        )
    return Opened(target, spec, graph)


def search(
    target: Target = None,
    *,
    overrides: Sequence[str] = (),
    penalty_type: type[Penalty] | None = None,
    **options: Any,
) -> SearchResult:
    """Search the space of a run; `options` are those of `runtime.jobs.JobOptions`.

    `penalty_type`, a subclass of `runtime.penalties.Penalty`, decides the sparsity weight of every gate.
    """
    from runtime.jobs import JobOptions
    from runtime.penalties import Penalty
    from runtime.run_search import run_search

    return run_search(open_run(target, overrides), JobOptions(**options), penalty_type or Penalty)


def retrain(target: Target = None, *, overrides: Sequence[str] = (), **options: Any) -> RetrainResult:
    """Train the found network from scratch; `options` are those of `runtime.jobs.JobOptions`."""
    from runtime.jobs import JobOptions
    from runtime.run_retrain import run_retrain

    return run_retrain(open_run(target, overrides), JobOptions(**options))


SMOKE = {
    "data.name": "fake",
    "data.mean": "null",
    "data.std": "null",
    "search.batch_size": "4",
    "search.pretrain_epochs": "1",
    "search.epochs": "1",
    "search.prune.every": "1",
    "search.recalibrate_batches": "1",
    "search.schedule.warmup": "0",
    "search.gates.schedule.warmup": "0",
    "retrain.batch_size": "8",
    "retrain.epochs": "1",
    "retrain.schedule.warmup": "0",
}
"""Two steps of every stage on fake data: what `--smoke` sets."""


def smoke(target: Target = None, last: str = "search", *, overrides: Sequence[str] = (), **options: Any) -> None:
    """Run two steps of every stage up to `last` (search or retrain) on fake data, in a folder that is removed again."""
    opened = open_run(target, overrides) if not _is_spec(target) else None
    source = opened.run.resolved if opened else Path(str(target))
    spec = opened.spec if opened else load(source, overrides)[0]
    data, steps = spec.config.data, 2 * spec.config.search.weight_steps
    images = max(4 * steps / spec.config.search.weight_part, 8 / (1 - spec.config.search.weight_part))
    size = math.ceil((images + 1) / (1 - data.validation)) + spec.classes
    settings = [*overrides, *(f"{k}={v}" for k, v in SMOKE.items()), f"data.fake_size={size}"]
    options = {**options, "resume": False, "overwrite": False}
    with tempfile.TemporaryDirectory(prefix="graphspec-smoke-") as folder:
        compiled = compile(source, out=Path(folder) / "run", overrides=settings, root=Path(folder))
        if last == "search" or compiled.graph.gates():  # without gates there is nothing to search before retraining
            search(compiled.run, **options)
        if last == "retrain":
            retrain(compiled.run, **options)


def _is_spec(target: Target) -> bool:
    return (
        not isinstance(target, RunDir)
        and target is not None
        and Path(target).is_file()
        and Path(target).suffix in SUFFIXES
    )


def export(target: Target = None, *, overrides: Sequence[str] = (), **options: Any) -> ExportResult:
    """Emit the network as ONNX and check it; `options` are those of `runtime.export.ExportOptions`."""
    from runtime.export import ExportOptions, run_export

    return run_export(open_run(target, overrides), ExportOptions(**options))


@dataclass(frozen=True)
class Derived:
    """A found block re-stacked in another network: a run directory ready for retrain, and what was done."""

    run: RunDir
    notes: tuple[str, ...]


def derive(
    architecture: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    block: str | None = None,
    overrides: Sequence[str] = (),
) -> Derived:
    """Bring the blocks of an arch.yaml into the network of another spec; ArchitectureError if they do not fit."""
    path = Path(architecture)
    try:
        document = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}\n  try: the search/arch.yaml of a run") from error
    found = Architecture.from_yaml(document, str(path))
    _, graph = load(into, overrides)
    derive_architecture(found, graph, block)  # refuses before anything is written
    compiled = compile(into, overrides=overrides)
    assert compiled.run is not None
    spec_hash = hashlib.sha256(compiled.run.resolved.read_bytes()).hexdigest()
    derived = derive_architecture(found, compiled.graph, block, spec_hash=spec_hash)
    write_text(compiled.run.search.arch, derived.to_yaml())
    return Derived(compiled.run, derived.notes)
