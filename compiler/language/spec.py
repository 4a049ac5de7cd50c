"""The parsed spec: plain immutable data, one class per construct of the language (tuples where there are many).

`parse` makes these from YAML, elaboration reads them. Every value remembers where it was written
through `Spec.place(*path)`, where `path` is the way from the root of the file, e.g. `("blocks", "stem", "nodes",
"out", "kernel")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from compiler.errors import Place
from compiler.language.config import Configuration
from compiler.language.dims import BlockType
from compiler.language.source import Path, Tree

LANGUAGE_VERSION = 1
Share = Literal["none", "block", "stage"]
Gated = Literal["channels", "groups"]  # what has gates behind a node


class EdgeSpec(NamedTuple):
    """One entry of a node's `from`: a node of the block, `in`/`in0`/`in1`..., or a pattern such as `levels.*`."""

    source: str
    gated: bool
    path: Path


class OpSpec(NamedTuple):
    """An op as written: a catalogue name, a name from the `ops` section or a name with a size (`sep_conv_3x3`).

    `label` is the node id segment it gives in levels and choices (the name, unless written as `{name: ..., op: ...}`).
    """

    label: str
    op: str
    attrs: Mapping[str, Any]
    path: Path


class NodeSpec(NamedTuple):
    """A node of a block. With `choose`, every edge passes through each of these ops, gated, and `op` merges them."""

    op: OpSpec
    inputs: tuple[EdgeSpec, ...]
    choose: tuple[OpSpec, ...]
    gate: Gated | None  # behind the node
    path: Path


@dataclass(frozen=True)
class LevelsSpec:
    """`count` levels of the same ops; each op reads the block input and every op of every earlier level."""

    count: int
    ops: tuple[OpSpec, ...]
    source: str  # what level 0 reads: `in` unless said otherwise
    gated: bool  # gates between levels
    gate_input: bool  # gates on level 0's input edges (the paper has them, the released code does not)
    path: Path


@dataclass(frozen=True)
class BlockSpec:
    """A typed DAG; its output is the node called `out`. Sources in `nodes` may name `levels` nodes as `level0.<op>`."""

    name: str
    type: BlockType
    nodes: Mapping[str, NodeSpec]
    levels: LevelsSpec | None
    share: Share
    path: Path


@dataclass(frozen=True)
class NetworkEntry:
    """One entry of the network: a block instance, or (with `repeat`) a stage of that many instances in a chain.

    `inputs` names earlier entries or `in`, most recent first where a chain implies them. A repeated block with k
    inputs reads the last k values of its chain.
    """

    name: str
    block: str
    repeat: int | None
    inputs: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class Spec:
    """A whole spec file, after `extends` and overrides."""

    name: str
    input: tuple[int, ...]  # (C, H, W) or (C, T)
    classes: int
    symbols: Mapping[str, int]  # constants usable in types and sizes; `classes` is always among them
    ops: Mapping[str, OpSpec]
    blocks: Mapping[str, BlockSpec]
    network: tuple[NetworkEntry, ...]
    gate_init: float
    gate_all_channels: bool  # whether every width that is free has gates
    config: Configuration
    text: str  # the file as given
    root: Tree = field(repr=False, compare=False)  # the whole spec as written, `extends` and overrides merged in
    weights: str = ""  # path of the file of weights to start from; empty: fresh ones
    broken: frozenset[Path] = frozenset()  # pieces with mistakes, reported already, left out or set to a default

    def place(self, *path: str | int) -> Place:
        """Where the value at `path` is written."""
        return self.root.place_at(path)
