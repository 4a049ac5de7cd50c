"""What a command's argument stands for: a spec file, a run directory, a graph file or nothing (the latest run)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import GraphspecError
from compiler.ir.graph import Graph
from compiler.language.overrides import Override
from runtime.data.filled import load_filled
from runtime.rundir.directory import RunDir
from runtime.rundir.network import read_architecture, read_graph


@dataclass(frozen=True)
class Picture:
    """What `show` draws: a graph and, where it was searched, gate values and what is left of it."""

    graph: Graph
    gates: Mapping[str, float] | None = None
    kept: Graph | None = None

    def only_kept(self) -> Picture:
        """What is left, without what was pruned; GraphspecError if nothing was searched."""
        if self.kept is None:
            raise GraphspecError("--kept: there is nothing that a search has kept\n  try: a run after graphspec search")
        return Picture(self.kept, self.gates)


def graph_of(target: Path, overrides: Sequence[Override] = ()) -> Graph:
    """The graph of a spec or graph file, or of a run: the found one where it was searched, else the whole space."""
    picture = picture_of(target, overrides)
    return picture.kept or picture.graph


def picture_of(target: Path | None, overrides: Sequence[Override] = ()) -> Picture:
    """What there is to see of a spec, a graph file or a run."""
    if target is not None and not target.is_dir() and target.name != "latest":
        is_graph = target.suffix == ".json" and target.is_file()
        return Picture(read_graph(target) if is_graph else load_filled(target, overrides)[1])
    if overrides:
        raise GraphspecError("--set changes a spec, not a run that is compiled already; give the spec file")
    run = RunDir.latest() if target is None else RunDir.open(target)
    graph = read_graph(run.graph_json)
    if not run.search.arch.is_file():
        return Picture(graph)
    from compiler.passes.pipeline import PRUNED  # and with it numpy

    model = read_architecture(run.search.arch).model(graph)
    return Picture(graph, model.gates, PRUNED.run(model).graph)
