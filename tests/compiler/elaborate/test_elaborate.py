"""Elaboration: levels, choices, sizes, channels, gate scopes, stages, networks, and all mistakes in one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.elaborate.builder import load
from compiler.errors import SpecError
from compiler.ir.graph import INPUT, OUTPUT, Graph, Phase
from compiler.ir.verify import verify
from compiler.language.overrides import overrides_of

ROOT = Path(__file__).parents[3]
HEAD = """\
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {op: global_avg_pool, from: in}
      out: {op: linear, from: pool}
"""


def elaborated(tmp_path: Path, blocks: str, network: str, size: str = "[4, 8, 8]", top: str = "", *sets: str) -> Graph:
    path = tmp_path / "spec.yaml"
    text = f"graphspec: 1\nname: spec\ninput: {size}\nclasses: 3\n{top}blocks:\n{blocks}{HEAD}network: {network}\n"
    path.write_text(text)
    graph = load(path, overrides_of(sets))[1]
    verify(graph)
    assert graph.phase is Phase.SEARCH
    return graph


def mistakes(tmp_path: Path, *arguments: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        elaborated(tmp_path, *arguments)
    return [f"{d.place.line}: {d.message}" for d in caught.value.diagnostics]


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {node.id: node.shape for node in graph.nodes()}


def attr(graph: Graph, node_id: str, name: str) -> object:
    return dict(graph.node(node_id).attrs)[name]


def one_block(kind: str, nodes: str, levels: str = "") -> str:
    body = "".join(f"      {line}\n" for line in nodes.strip().splitlines())
    return f'  b:\n    type: "{kind}"\n{levels}    nodes:\n{body}'


SAME = "[C, H, W] -> [C, H, W]"
HALF = "[C, H, W] -> [2*C, H/2, W/2]"


def test_every_level_reads_the_input_and_all_earlier_levels(tmp_path: Path) -> None:
    levels = "    levels: {count: 3, ops: [sep_conv_3x3, max_pool_3x3]}\n"
    graph = elaborated(
        tmp_path, one_block(SAME, "out: {op: project, from: levels.*, gated: true}", levels), "[b, head]"
    )
    ops = ("sep_conv_3x3", "max_pool_3x3")
    for level in range(3):
        for name in ops:
            node = f"b.level{level}.{name}"
            earlier = [f"b.level{i}.{o}" for i in range(level) for o in ops]
            assert [e.src for e in graph.inputs(node)] == [INPUT, *earlier]
            assert all(
                e.gate == f"b/level{level}.{name}<{e.src.removeprefix('b.').replace(INPUT, 'in')}"
                for e in graph.inputs(node)
            )
    assert len(graph.inputs("b.out")) == 6
    assert len(graph.gates()) == 2 * 1 + 2 * 3 + 2 * 5 + 6


@pytest.mark.parametrize(("setting", "gates"), [("", 2 + 6 + 4), (", gate_input: false", 6 + 4), (", gated: false", 4)])
def test_gates_of_levels(tmp_path: Path, setting: str, gates: int) -> None:
    levels = f"    levels: {{count: 2, ops: [conv_3x3, identity]{setting}}}\n"
    nodes = "mix: {op: project, from: levels.*, gated: true}\nout: {op: add, from: [mix, in]}"
    assert len(elaborated(tmp_path, one_block(SAME, nodes, levels), "[b, head]").gates()) == gates


@pytest.mark.parametrize(
    ("share", "scopes"),
    [
        ("none", {"s.block0", "s.block1", "t.block0"}),
        ("block", {"b"}),
        ("stage", {"s.b", "t.b"}),
    ],
)
def test_share_scopes(tmp_path: Path, share: str, scopes: set[str]) -> None:
    block = one_block(SAME, "a: {op: conv_3x3, from: in}\nout: {op: add, from: [{node: a, gated: true}, in]}")
    network = "{s: {block: b, repeat: 2, from: in}, t: {block: b, repeat: 1, from: s}, head: {block: head, from: t}}"
    graph = elaborated(tmp_path, block, network, "[4, 8, 8]", f"gates: {{share: {share}}}\n")
    assert set(graph.gate_scopes()) == scopes
    assert [(b.id, b.stage) for b in graph.blocks] == [
        ("s.block0", "s"),
        ("s.block1", "s"),
        ("t.block0", "t"),
        ("head", "head"),
    ]
    gated = [e.gate for e in graph.edges() if e.gate]
    assert len(gated) == 3


def test_odd_sizes_round_up_as_strided_ops_do(tmp_path: Path) -> None:
    nodes = """
a: {op: conv, kernel: 1, stride: 2, from: in}
b: {op: conv, kernel: 3, stride: 2, from: in}
c: {op: max_pool, kernel: 3, stride: 2, norm: batch, from: in}
fit: {op: conv_1x1, from: c}
out: {op: add, from: [a, b, fit], gated: true}"""
    graph = elaborated(tmp_path, one_block(HALF, nodes), "[b, head]", "[4, 7, 5]")
    assert graph.node("b.out").shape == (8, 4, 3)


def test_a_window_that_rounds_down_does_not_fit_a_type_that_rounds_up(tmp_path: Path) -> None:
    block = one_block(HALF, "out: {op: conv, kernel: 2, stride: 2, padding: 0, from: in}")
    assert elaborated(tmp_path, block, "[b, head]").node("b.out").shape == (8, 4, 4)
    (message,) = mistakes(tmp_path, block, "[b, head]", "[4, 7, 7]")
    assert message == "7: block 'b' in b: its type says it gives 8x4x4, but 'out' gives 8x3x3"


def test_channels_follow_from_the_type_backwards_and_from_the_input_forwards(tmp_path: Path) -> None:
    nodes = """
first: {op: conv_3x3, from: in}
second: {op: conv_3x3, from: first}
pooled: {op: avg_pool, kernel: 3, stride: 2, from: second}
side: {op: sep_conv_3x3, stride: 2, from: first}
out: {op: add, from: [pooled, side]}"""
    graph = elaborated(tmp_path, one_block(HALF, nodes), "[b, head]")
    found = {name: attr(graph, f"b.{name}", "channels") for name in ("first", "second", "side")}
    assert found == {"first": 4, "second": 8, "side": 8}


def test_channels_do_not_pass_back_through_a_concatenation(tmp_path: Path) -> None:
    nodes = "a: {op: conv_1x1, from: in}\nb: {op: conv_3x3, from: in}\nout: {op: concat, from: [a, b]}"
    graph = elaborated(tmp_path, one_block("[C, H, W] -> [2*C, H, W]", nodes), "[b, head]")
    assert (attr(graph, "b.a", "channels"), attr(graph, "b.b", "channels")) == (4, 4)


def test_written_channels_may_be_arithmetic(tmp_path: Path) -> None:
    nodes = "a: {op: conv, kernel: 1, channels: C + H/2 * wide, from: in}\nout: {op: conv_1x1, from: a}"
    graph = elaborated(tmp_path, one_block(SAME, nodes), "[b, head]", "[4, 7, 7]", "symbols: {wide: 3}\n")
    assert attr(graph, "b.a", "channels") == 4 + 4 * 3


def test_a_choice_puts_every_op_on_every_edge_behind_a_gate(tmp_path: Path) -> None:
    nodes = """
a: {op: conv_1x1, from: in}
pick: {choose: [conv_3x3, identity, {op: max_pool, kernel: 3, name: pooled}], from: [in, a]}
out: {op: add, from: [pick, in]}"""
    graph = elaborated(tmp_path, one_block(SAME, nodes), "[b, head]")
    made = [f"b.pick.{source}.{op}" for source in ("from_in", "a") for op in ("conv_3x3", "identity", "pooled")]
    assert [e.src for e in graph.inputs("b.pick")] == made
    assert graph.node("b.pick").op == "add"
    assert all(e.gate for e in graph.inputs("b.pick"))
    assert all(graph.inputs(m)[0].gate is None for m in made)
    assert len(graph.gates()) == 6
    assert [(c.id, c.most) for c in graph.choices] == [("b/pick<in", None), ("b/pick<a", None)]
    assert [gate for choice in graph.choices for gate in choice.gates] == graph.gates()


@pytest.mark.parametrize(("share", "choices"), [("none", 6), ("stage", 4), ("block", 2)])
def test_blocks_that_share_gates_share_their_choices(tmp_path: Path, share: str, choices: int) -> None:
    nodes = "n: {choose: [conv_3x3, identity], from: [in, a]}\na: {op: relu, from: in}\nout: {op: add, from: [n, in]}"
    top = f"gates: {{share: {share}}}\n"
    graph = elaborated(tmp_path, one_block(SAME, nodes), "[{b: 2}, b, head]", "[4, 8, 8]", top)
    assert len(graph.choices) == len({choice.id for choice in graph.choices}) == choices
    assert [gate for choice in graph.choices for gate in choice.gates] == graph.gates()


def test_a_darts_block_reads_the_two_values_before(tmp_path: Path) -> None:
    kind = "[C, H, W], [C, H, W] -> [C, H, W]"
    nodes = "n: {choose: [conv_3x3, identity], from: [in0, in1]}\nout: {op: add, from: [n, in0]}"
    network = (
        "{x: {block: b, from: [in, in]}, cells: {block: b, repeat: 3, from: [x, in]}, head: {block: head, from: cells}}"
    )
    graph = elaborated(tmp_path, one_block(kind, nodes), network)
    assert [b.inputs for b in graph.blocks[:4]] == [
        (INPUT, INPUT),
        ("x.out", INPUT),
        ("cells.block0.out", "x.out"),
        ("cells.block1.out", "cells.block0.out"),
    ]
    assert graph.node("x.in1").op == "identity"  # a value taken twice: the pair of nodes has one edge only
    assert len({(e.src, e.dst) for e in graph.edges()}) == graph.edge_count()


def test_the_darts_cell_has_as_many_edges_as_the_original() -> None:
    graph = load(ROOT / "specs" / "darts_cell.yaml")[1]
    assert len([g for g in graph.gates() if g.startswith("cell/")]) == 14 * 7


def test_a_network_as_a_map_may_skip_entries(tmp_path: Path) -> None:
    join = one_block("[C, H, W], [B, H, W] -> [C, H, W]", "out: {op: project, from: [in0, in1]}")
    blocks = one_block(SAME, "out: {op: conv_3x3, from: in}") + join.replace("  b:", "  join:", 1)
    network = "{far: {block: join, from: [near, in]}, near: {block: b, from: in}, head: {block: head, from: far}}"
    graph = elaborated(tmp_path, blocks, network)
    assert [block.id for block in graph.blocks] == ["near", "far", "head"]
    assert [e.src for e in graph.inputs("far.out")] == ["near.out", INPUT]
    assert graph.inputs(OUTPUT)[0].src == "head.out"


def test_a_list_names_stages_and_repeated_blocks(tmp_path: Path) -> None:
    graph = elaborated(tmp_path, one_block(SAME, "out: {op: conv_3x3, from: in}"), "[b, {b: 2}, b, {b: 1}, head]")
    assert [(b.id, b.kind, b.stage) for b in graph.blocks][-1] == ("head", "head", "head")
    assert len({b.id for b in graph.blocks}) == 6
    assert [b.stage for b in graph.blocks if b.id.startswith("stage")] == ["stage0", "stage0", "stage1"]


def test_overrides_change_the_graph(tmp_path: Path) -> None:
    block = one_block(SAME, "out: {op: conv, kernel: k, from: in}")
    graph = elaborated(tmp_path, block, "[b, head]", "[4, 8, 8]", "symbols: {k: 3}\n", "symbols.k=5")
    assert attr(graph, "b.out", "kernel") == 5


# -- mistakes -------------------------------------------------------------------------------------------------------


def test_independent_mistakes_are_all_found_in_order(tmp_path: Path) -> None:
    nodes = """
a: {op: cnv, from: in}
b: {op: conv, kernl: 3, from: inn}
c: {op: max_pool, kernel: -1, from: a}
out: {op: add, from: [a, b, c, d]}"""
    found = mistakes(tmp_path, one_block(SAME, nodes), "[b, hed]")
    assert found == [
        "9: unknown op 'cnv'; did you mean 'conv'?",
        "10: unknown attribute 'kernl'; did you mean 'kernel'?",
        "10: unknown node 'inn'; did you mean 'in'?",
        "11: kernel: expected a whole number from 1 to 65536, or a list of one per axis, found -1",
        "12: unknown node 'd'",
        "18: unknown block 'hed'; did you mean 'head'?",
    ]


def test_a_mistake_in_a_repeated_block_is_reported_once_at_its_definition(tmp_path: Path) -> None:
    nodes = "a: {op: conv, kernel: 3, stride: 2, from: in}\nout: {op: add, from: [in, a]}"
    found = mistakes(tmp_path, one_block(SAME, nodes), "[{b: 5}, {b: 3}, head]")
    assert found == [
        "10: edge from 'a' to 'out' in stage0.block0: add adds its inputs, which must have one type; found 4x8x8 "
        "and 4x4x4 ('in' gives 4x8x8, 'a' gives 4x4x4)"
    ]


def test_a_block_that_stops_fitting_in_a_later_instance_names_it(tmp_path: Path) -> None:
    block = one_block(HALF, "out: {op: conv, kernel: 2, stride: 2, padding: 0, from: in}")
    assert mistakes(tmp_path, block, "[{b: 4}, head]", "[4, 12, 12]") == [
        "7: block 'b' in stage0.block2: its type says it gives 32x2x2, but 'out' gives 32x1x1"
    ]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("a: {op: relu, from: in}\nout: {op: relu, from: in}", "node 'a' does not reach 'out'"),
        ("a: {op: relu, from: out}\nout: {op: relu, from: a}", "read each other in a cycle: out -> a -> out"),
        ("last: {op: relu, from: in}", "has no node 'out'"),
        ("out: {op: relu, from: {node: in, gated: true}}", "may not have a gate: the block cannot do without it"),
        ("a: {op: zero, from: in}\nout: {op: relu, from: a}", "every path to 'out' passes an op `zero`"),
        (
            "a: {op: zero, from: in}\nout: {op: multiply, from: [in, a]}",
            "every path to 'out' passes an op `zero`",
        ),
        ("out: {op: resize, from: in}", "resize: takes either `size` or `scale`"),
        ("out: {op: input, from: in}", "the op 'input' is the compiler's own"),
        ("out: {op: conv, kernel: H - 9, from: in}", "kernel"),
        ("out: {op: add, from: [in, in]}", "'out' reads 'in' twice"),
    ],
)
def test_blocks_that_make_no_sense(tmp_path: Path, nodes: str, message: str) -> None:
    found = mistakes(tmp_path, one_block(SAME, nodes), "[b, head]")
    assert len(found) == 1
    assert message in found[0]


def test_an_input_that_nobody_reads(tmp_path: Path) -> None:
    kind = "[C, H, W], [B, H, W] -> [C, H, W]"
    block = one_block(kind, "out: {op: relu, from: in0}")
    network = "{x: {block: b, from: [in, in]}, head: {block: head, from: x}}"
    assert mistakes(tmp_path, block, network) == ["7: block 'b' never reads its input 'in1'"]


def test_a_size_may_stand_in_a_name(tmp_path: Path) -> None:
    nodes = "a: {op: conv_5, from: in}\nb: {op: conv_5x5, from: a}\nout: {op: conv_1x7, from: b}"
    graph = elaborated(tmp_path, one_block(SAME, nodes), "[b, head]")
    kernels = [dict(graph.node(f"b.{name}").attrs)["kernel"] for name in ("a", "b", "out")]
    assert kernels == [5, 5, (1, 7)]


@pytest.mark.parametrize("gated", ["a", "in"])
def test_a_gate_beside_another_path_is_fine(tmp_path: Path, gated: str) -> None:
    edges = {"a": "[{node: a, gated: true}, in]", "in": "[a, {node: in, gated: true}]"}[gated]
    nodes = f"a: {{op: conv_3x3, from: in}}\nout: {{op: add, from: {edges}}}"
    assert len(elaborated(tmp_path, one_block(SAME, nodes), "[b, head]").gates()) == 1


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("[b]", "the network gives 4x8x8, but `classes` asks for 3 values"),
        ("[head, b]", "b: block 'b' takes [C, H, W], but 'head.out' gives [3]: expected 3 dimensions, found 1"),
        (
            "{x: {block: b, from: y}, y: {block: b, from: x}, head: {block: head, from: y}}",
            "read each other in a cycle: 'x', 'y'",
        ),
        (
            "{x: {block: b, from: in}, head: {block: head, from: in}}",
            "nothing reads 'x'; the network's output is 'head'",
        ),
        ("{x: {block: b, from: [in, in]}, head: {block: head, from: x}}", "block 'b' takes 1 values, but 'x' reads 2"),
        ("{x: {block: b, from: inn}, head: {block: head, from: x}}", "unknown network entry 'inn'; did you mean 'in'?"),
        ("[{b: 200000}, head]", "at most 150000 nodes"),
    ],
)
def test_networks_that_make_no_sense(tmp_path: Path, network: str, message: str) -> None:
    found = mistakes(tmp_path, one_block(SAME, "out: {op: conv_3x3, from: in}"), network)
    assert len(found) == 1
    assert message in found[0]
