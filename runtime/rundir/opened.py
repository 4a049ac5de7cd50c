"""A run directory with what was compiled into it: what every job starts from."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.ir.graph import Graph
from compiler.language.spec import Spec
from runtime.rundir.directory import RunDir


@dataclass(frozen=True)
class Opened:
    """A run directory with its spec (overrides applied) and the graph of its whole search space."""

    run: RunDir
    spec: Spec
    graph: Graph
