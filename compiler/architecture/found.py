"""The found architecture: which gates a search kept, as a small readable document (`search/arch.yaml`).

    edges:
      normal:                       # a share scope: one architecture for all blocks that share these gates
        kind: normal
        gates: 124                  # of the search space
        kept:
          level1.sep_conv_3x3: {in: 0.83, level0.max_pool_3x3: 0.2}
          out: {'#0': 0.7, '#3': 0.2}                                   # channels

Together with the search graph it gives the compact graph; no weights and no data are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from compiler.analysis.costs import block_of
from compiler.errors import GraphspecError, did_you_mean
from compiler.ir.graph import Graph, Model, gate_scope
from compiler.ir.text import graph_hash
from compiler.language.findings import first_of
from compiler.language.values import StrategyName

VERSION = 1
ORIGIN = ("name", "strategy", "seed", "spec_hash", "graph_hash")
Number = float | int | None


class ArchitectureError(GraphspecError):
    """A file is no architecture, or it does not fit the graph."""


@dataclass(frozen=True)
class Scope:
    """What was found for the gates of one share scope.

    `kept` maps `<dst><<src>` (an edge) and `<node>#<number>` (a channel), named as in the block, to values.
    """

    id: str
    kind: str  # kind of the blocks that the gates stand in; empty outside of blocks
    gates: int  # gates of the scope in the search space
    kept: Mapping[str, float]


@dataclass(frozen=True)
class Architecture:
    """The gates that a search kept, with where they come from and what came of it."""

    name: str
    strategy: str
    seed: int
    spec_hash: str  # SHA-256 of the resolved spec
    graph_hash: str  # `compiler.ir.text.graph_hash` of the search graph
    scopes: tuple[Scope, ...]
    metrics: Mapping[str, Number] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # `full` and `found`
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph: Graph, gates: Mapping[str, float], *, notes: Iterable[str] = (), **origin: Any) -> Architecture:
        """What these gates of a search graph stand for; gates that are missing or zero are closed.

        `origin` are the fields `strategy`, `seed`, `spec_hash` and, where there are any, `metrics` and `costs`.
        """
        _check_gates(graph, gates, "these gates")
        kept = {gate: float(f"{value:.6g}") for gate, value in gates.items() if value != 0.0}
        kinds = _kinds(graph)
        scopes = tuple(
            Scope(scope, kinds[scope], len(ids), {gate.partition("/")[2]: kept[gate] for gate in ids if gate in kept})
            for scope, ids in graph.gate_scopes().items()
        )
        return cls(name=graph.name, graph_hash=graph_hash(graph), scopes=scopes, notes=tuple(notes), **origin)

    @property
    def kept(self) -> dict[str, float]:
        """The values of the kept gates by gate id."""
        return {f"{scope.id}/{local}": value for scope in self.scopes for local, value in scope.kept.items()}

    @property
    def encoding(self) -> str:
        """The kept edges on one line: `normal:level1.sep<in,level0.pool;mix<level1.sep reduce:out<a`."""
        return " ".join(f"{scope.id}:{';'.join(_destinations(scope))}" for scope in self.scopes)

    @property
    def hash(self) -> str:
        """SHA-256 of the encoding: equal for equal architectures, whatever the values of their gates."""
        return hashlib.sha256(self.encoding.encode()).hexdigest()

    def model(self, graph: Graph) -> Model:
        """The search graph with the values of its gates, zero for those that are not kept.

        ArchitectureError if the graph is not the one that was searched.
        """
        kept = self.kept
        _check_gates(graph, kept, f"the architecture {self.name!r}")
        if graph_hash(graph) != self.graph_hash:
            raise ArchitectureError(
                f"the architecture {self.name!r} was found in another graph than {graph.name!r} "
                f"({self.graph_hash[:12]}, not {graph_hash(graph)[:12]})\n"
                f"  try: the spec it was found with, or graphspec derive ARCH.yaml --into SPEC to carry it over"
            )
        return Model(graph, {gate: kept.get(gate, 0.0) for gate in graph.gates()})

    def to_yaml(self) -> str:
        """The document; equal architectures give equal texts."""
        record = {
            "graphspec_architecture": VERSION,
            **{name: getattr(self, name) for name in ORIGIN},
            "metrics": dict(self.metrics),
            "costs": {name: dict(cost) for name, cost in self.costs.items()},
            "notes": list(self.notes),
            "edges": {s.id: {"kind": s.kind, "gates": s.gates, "kept": _by_destination(s)} for s in self.scopes},
        }
        written = yaml.safe_dump(record, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
        gates = sum(scope.gates for scope in self.scopes)
        return f"# {len(self.kept)} of {gates} gates kept; architecture {self.hash[:12]}\n{written}"

    @classmethod
    def from_yaml(cls, text: str, where: str) -> Architecture:
        """The architecture of a document; ArchitectureError naming `where` if it is none or is damaged."""
        document = _read_document(text, where)
        scopes = []
        for scope_id, scope in document.edges.items():
            found = {_local(dst, of): value for dst, kept in scope.kept.items() for of, value in kept.items()}
            kept = {local: value for local, value in found.items() if value != 0.0}
            if len(kept) > scope.gates:
                raise _damaged(where, f"edges.{scope_id}: {len(kept)} gates are kept of {scope.gates}")
            scopes.append(Scope(scope_id, scope.kind, scope.gates, kept))
        values = {name: getattr(document, name) for name in (*ORIGIN, "metrics", "costs")}
        return cls(**values, scopes=tuple(scopes), notes=tuple(document.notes))


def _destinations(scope: Scope) -> list[str]:
    return [f"{dst}<{','.join(sources)}" for dst, sources in _by_destination(scope).items()]


def _by_destination(scope: Scope) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for local, value in scope.kept.items():
        dst, of = local.partition("<")[::2] if "<" in local else (local[: local.index("#")], local[local.index("#") :])
        found.setdefault(dst, {})[of] = value
    return found


def _local(dst: str, of: str) -> str:
    """The gate of an edge from a node, or of a channel `#<number>`, without its scope."""
    return f"{dst}{of}" if of.startswith("#") else f"{dst}<{of}"


def _kinds(graph: Graph) -> dict[str, str]:
    """The kind of block that each share scope stands in."""
    home = block_of(graph)
    kinds: dict[str, str] = {}
    for edge in graph.edges():
        if edge.gate is not None:
            kinds.setdefault(gate_scope(edge.gate), home[edge.dst].kind if edge.dst in home else "")
    for node_id, ids in graph.channel_gates.items():
        for gate in filter(None, ids):
            kinds.setdefault(gate_scope(gate), home[node_id].kind if node_id in home else "")
    return kinds


def _check_gates(graph: Graph, gates: Collection[str], whose: str) -> None:
    known = set(graph.gates())
    unknown = [gate for gate in gates if gate not in known]
    if unknown:
        raise ArchitectureError(
            f"{graph.name}: the graph has no gate {unknown[0]!r}{did_you_mean(unknown[0], known)}; {whose} and the "
            f"graph do not belong together ({len(unknown)} of {len(gates)} gates are unknown)\n"
            f"  try: the spec it was found with"
        )


class _ScopeDocument(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    kind: str
    gates: Annotated[int, Field(ge=0)]
    kept: dict[str, dict[str, float]]


class _Document(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    graphspec_architecture: Literal[1]
    name: str
    strategy: StrategyName
    seed: Annotated[int, Field(ge=0)]
    spec_hash: str
    graph_hash: str
    metrics: dict[str, Number] = {}
    costs: dict[str, dict[str, int]] = {}
    notes: list[str] = []
    edges: dict[str, _ScopeDocument]


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys (of two values for one edge, neither is to be believed) and without aliases, which
    can stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next value; ComposerError if it is an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias stands for a value", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The map; ConstructorError at a second key of the same name."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_document(text: str, where: str) -> _Document:
    try:
        record = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(where, f"it is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(record, dict) or "graphspec_architecture" not in record:
        raise ArchitectureError(
            f"{where}: this is no architecture (it lacks `graphspec_architecture`)\n"
            f"  try: the arch.yaml that graphspec search has written"
        )
    version = record["graphspec_architecture"]
    if version != VERSION or isinstance(version, bool):
        raise ArchitectureError(
            f"{where}: the architecture has format version {version!r}, this graphspec reads {VERSION}\n"
            f"  try: the graphspec that has written it, or search again"
        )
    try:
        return _Document.model_validate(record)
    except ValidationError as error:
        raise _damaged(where, first_of(error)) from error


def _damaged(where: str, what: str) -> ArchitectureError:
    return ArchitectureError(f"{where}: the architecture is damaged: {what}\n  try: mend it, or search again")
