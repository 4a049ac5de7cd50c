"""What a spec's text means: scalars, anchors, extends, overrides, the forms of networks and edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compiler.errors import Place, SpecError
from compiler.language.overrides import overrides_of
from compiler.language.parse import parse, parse_file
from compiler.language.source import SpecText, compose
from compiler.language.spec import Spec

BASE = """\
graphspec: 1
name: base
input: [3, 8, 8]
classes: 10
symbols: {width: 4, twice: 2*width}
blocks:
  stem:
    type: "[3, H, W] -> [width, H, W]"
    nodes:
      out: {op: conv, kernel: 3, from: in}
  cell:
    type: "[C, H, W] -> [C, H, W]"
    levels: {count: 2, ops: [sep_conv_3x3, {op: conv, kernel: 1, name: point}]}
    nodes:
      mix: {op: project, gated: true, from: ["levels.*", {node: in, gated: false}]}
      pick: {from: in, choose: [identity, conv_3x3]}
      out: {op: add, from: [mix, pick]}
  pair:
    type: "[C, H, W], [C, H, W] -> [C, H, W]"
    nodes:
      out: {op: add, from: [in0, in1]}
  head:
    type: "[C, H, W] -> [classes]"
    nodes: {out: {op: linear, from: in}}
network: [stem, {cell: 2}, pair, cell, cell, head]
search: {epochs: 7}
budget: {params: 3.0M}
"""


def value(text: str) -> Any:
    return compose(text, SpecText("text", text), []).plain()


def write(folder: Path, text: str, name: str = "space.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path, BASE, "base.yaml")


@pytest.fixture
def spec(base: Path) -> Spec:
    return parse_file(base)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on", "on"), ("no", "no"), ("Yes", "Yes"), ("true", True), ("False", False), ("~", None), ("null", None),
        ("1e-4", 1e-4), ("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("-3", -3), ("+3", 3), ("0", 0), ("0x10", 16),
        ("0o17", 15), ("1_000", "1_000"), ("12:30", "12:30"), ("2*C", "2*C"), ("'1'", "1"), ('"true"', "true"),
        ("2024-01-01", "2024-01-01"), ("=", "="), ("-", [None]), ("--set", "--set"),
    ],
)  # fmt: skip
def test_scalars(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_keys_are_texts_whatever_yaml_1_1_makes_of_them() -> None:
    assert value("{on: 1, no: 2, 1: 3, null: 4, ~: 5, 1.0: 6}") == {
        "on": 1, "no": 2, "1": 3, "null": 4, "~": 5, "1.0": 6,
    }  # fmt: skip


def test_anchors_and_merge_keys() -> None:
    assert value("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2},
    }
    text = "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {z: 3, <<: [*a, *b]}"
    assert value(text)["c"] == {"x": 1, "y": 2, "z": 3}
    assert value('{"<<": {x: 1}}') == {"<<": {"x": 1}}


def test_symbols_and_sizes(spec: Spec) -> None:
    assert spec.symbols == {"classes": 10, "width": 4, "twice": 8}
    assert spec.input == (3, 8, 8)


def test_network_list_names_and_wires_its_entries(spec: Spec) -> None:
    assert [(e.name, e.block, e.repeat, e.inputs) for e in spec.network] == [
        ("stem", "stem", None, ("in",)),
        ("stage0", "cell", 2, ("stem",)),
        ("pair", "pair", None, ("stage0", "stem")),
        ("cell0", "cell", None, ("pair",)),
        ("cell1", "cell", None, ("cell0",)),
        ("head", "head", None, ("cell1",)),
    ]


def test_a_block_of_two_inputs_reads_its_only_predecessor_twice(base: Path) -> None:
    spec = parse_file(base, overrides_of(["network=[stem, {pair: width}, head]"]))
    assert (spec.network[1].repeat, spec.network[1].inputs) == (4, ("stem", "stem"))


def test_edges_and_choices(spec: Spec) -> None:
    nodes = spec.blocks["cell"].nodes
    assert [(e.source, e.gated) for e in nodes["mix"].inputs] == [("levels.*", True), ("in", False)]
    assert nodes["pick"].op.op == "add"
    assert [op.label for op in nodes["pick"].choose] == ["identity", "conv_3x3"]
    levels = spec.blocks["cell"].levels
    assert levels is not None
    assert [op.label for op in levels.ops] == ["sep_conv_3x3", "point"]
    assert (levels.count, levels.source, levels.gated, levels.gate_input) == (2, "in", True, True)


def test_sections(spec: Spec) -> None:
    assert spec.config.search.epochs == 7
    assert spec.config.budget.params == 3_000_000


def test_extends_merges_maps_and_replaces_lists(tmp_path: Path, base: Path) -> None:
    middle = "graphspec: 1\nextends: base.yaml\nname: middle\nsearch: {lr: 0.5}\nbudget: {params: null}\n"
    write(tmp_path, middle, "middle.yaml")
    path = write(tmp_path, "graphspec: 1\nextends: middle.yaml\nnetwork: [stem, head]\nsymbols: {width: 8}\n")
    spec = parse_file(path)
    assert (spec.name, spec.symbols["twice"]) == ("middle", 16)
    assert [entry.name for entry in spec.network] == ["stem", "head"]
    assert (spec.config.search.epochs, spec.config.search.lr, spec.config.budget.params) == (7, 0.5, None)
    assert Path(spec.place("search", "lr").file).name == "middle.yaml"
    assert Path(spec.place("search", "epochs").file).name == "base.yaml"


def test_overrides_reach_every_part(base: Path) -> None:
    overrides = ["name=other", "symbols.width=6", "blocks.cell.levels.count=3", "blocks.cell.levels.ops.0=conv_3x3",
                 "blocks.stem.nodes.out.kernel=5", "gates.share=block", "gates.init=0.5", "search.gates.gamma=1e-2",
                 "network.1.cell=4", "seed=3", "budget.params=2k", "data={name: fake}"]  # fmt: skip
    spec = parse_file(base, overrides_of(overrides))
    levels = spec.blocks["cell"].levels
    assert levels is not None
    assert (spec.name, spec.symbols["twice"], levels.count, levels.ops[0].op) == ("other", 12, 3, "conv_3x3")
    assert spec.blocks["stem"].nodes["out"].op.attrs == {"kernel": 5}
    assert (spec.blocks["cell"].share, spec.gate_init, spec.network[1].repeat) == ("block", 0.5, 4)
    config = spec.config
    assert (config.search.gates.gamma, config.seed, config.budget.params, config.data.name) == (0.01, 3, 2000, "fake")
    assert spec.place("seed") == Place("--set", 10, 6, "seed=3")


def test_an_override_changes_no_other_use_of_an_anchor(tmp_path: Path) -> None:
    text = BASE.replace("out: {op: add, from: [in0, in1]}", "out: &sum {op: add, from: [in0, in1]}\n      b: *sum")
    spec = parse_file(write(tmp_path, text), overrides_of(["blocks.pair.nodes.b.op=concat"]))
    nodes = spec.blocks["pair"].nodes
    assert (nodes["out"].op.op, nodes["b"].op.op) == ("add", "concat")


def test_places_point_at_keys_of_maps_and_at_values(base: Path, spec: Spec) -> None:
    assert spec.place("blocks", "stem", "nodes", "out", "kernel") == Place(
        str(base), 10, 31, "      out: {op: conv, kernel: 3, from: in}"
    )
    assert spec.place("blocks", "stem").column == 3
    assert spec.place("blocks", "stem", "no", "such").line == spec.place("blocks", "stem").line
    assert spec.place("network", 1).column == 17


def test_broken_pieces_are_left_out_and_named(tmp_path: Path) -> None:
    text = BASE.replace("kernel: 3, from: in", "kernel: 3, from: [3]").replace("epochs: 7", "epochs: x")
    parsed = parse(write(tmp_path, text))
    assert parsed.spec is not None
    assert parsed.spec.broken == {("blocks", "stem", "nodes", "out"), ("search",)}
    assert parsed.spec.config.search.epochs == 20
    assert len(parsed.diagnostics) == 2
    with pytest.raises(SpecError):
        parse_file(tmp_path / "space.yaml")


def test_a_block_of_20000_nodes_written_one_by_one(tmp_path: Path) -> None:
    nodes = "".join(f"      n{i}: {{op: add, from: [in, n{i + 1}]}}\n" for i in range(20_000))
    spec = parse_file(write(tmp_path, BASE.replace("      mix:", f"{nodes}      mix:")))
    assert len(spec.blocks["cell"].nodes) == 20_003
