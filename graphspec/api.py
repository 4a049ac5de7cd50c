"""The Python API: what the command line does, as functions with typed results.

    import graphspec
    compiled = graphspec.compile("specs/digits.yaml")
    found = graphspec.search(compiled.run)

Every function takes a `RunDir` or a path to one (None: the latest). Errors are `graphspec.errors.GraphspecError`.
torch is imported by the functions that train, and by no other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compiler.elaborate import load as load_spec
from compiler.ir import Graph
from compiler.text import from_json, graph_hash, text, to_json
from compiler.verify import verify
from graphspec.advice import advise
from graphspec.cost_report import CostReport, cost_report
from graphspec.errors import RunError
from graphspec.spec import Spec
from runtime.rundir import Compiled as RunFiles
from runtime.rundir import RunDir

Target = RunDir | str | os.PathLike[str] | None


@dataclass(frozen=True)
class CompiledSpec:
    """A checked spec: its graph, its costs, doubts about its settings and (unless dry) its run directory."""

    spec: Spec
    graph: Graph
    costs: CostReport
    warnings: tuple[str, ...]
    run: RunDir | None


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> tuple[Spec, Graph]:
    """Parse and elaborate a spec file; SpecError with every mistake in it."""
    spec, graph = load_spec(path, overrides)
    verify(graph)
    return spec, graph


def compile(  # noqa: A001  (the verb of the command line)
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
) -> CompiledSpec:
    """Check a spec, count its costs and write a run directory; SpecError or RunError."""
    spec, graph = load(path, overrides)
    costs = cost_report(graph, spec.config.search.batch_size)
    warnings = tuple(advise(spec.config))
    run = None
    if not dry_run:
        files = RunFiles(
            name=spec.name,
            seed=spec.config.seed,
            spec=spec.text,
            resolved=yaml.safe_dump(spec.places.plain(), sort_keys=False, allow_unicode=True),
            config=spec.config.model_dump_json(indent=2) + "\n",
            graph_json=to_json(graph),
            graph_text=text(graph),
        )
        run = RunDir.create(files, Path(out) if out else None)
    return CompiledSpec(spec, graph, costs, warnings, run)


@dataclass(frozen=True)
class Opened:
    """A run directory with its spec, configuration (overrides applied) and search graph."""

    run: RunDir
    spec: Spec
    graph: Graph

    @property
    def spec_text(self) -> str:
        """The resolved spec: what its hash is taken of."""
        return self.run.resolved.read_text(encoding="utf-8")


def open_run(target: Target = None, overrides: Sequence[str] = ()) -> Opened:
    """Open a run directory, compile a spec file into a new one, or open the latest (None).

    Overrides may change settings, not the graph: RunError if they would.
    """
    if not isinstance(target, RunDir):
        path = None if target is None else Path(target)
        if path is not None and path.is_file() and path.suffix in (".yaml", ".yml"):
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


def search(target: Target = None, **options: Any) -> Any:
    """Search the space of a run; see `runtime.jobs.run_search` for options and result."""
    from runtime.jobs import run_search  # noqa: PLC0415  (imports torch)

    return run_search(_opened(target, options), **options)


def retrain(target: Target = None, **options: Any) -> Any:
    """Train the found network from scratch; see `runtime.jobs.run_retrain` for options and result."""
    from runtime.jobs import run_retrain  # noqa: PLC0415  (imports torch)

    return run_retrain(_opened(target, options), **options)


def export(target: Target = None, **options: Any) -> Any:
    """Emit the network as ONNX and check it; see `runtime.export.run_export` for options and result."""
    from runtime.export import run_export  # noqa: PLC0415  (imports torch)

    return run_export(_opened(target, options), **options)


def _opened(target: Target, options: dict[str, Any]) -> Opened:
    overrides = options.pop("overrides", ())
    return open_run(target, overrides)
