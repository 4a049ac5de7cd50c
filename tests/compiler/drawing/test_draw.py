"""Drawings: every node and edge is there, nothing overlaps, everything lies inside; small ones word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.drawing.choices import with_choices
from compiler.drawing.formats import draw
from compiler.drawing.layout import Layout, lay_out
from compiler.drawing.scene import TIMES, counted, figures, view_of
from compiler.drawing.svg import paint, stroke
from compiler.errors import GraphspecError
from compiler.ir.graph import Block, Graph
from tests.compiler.plain import level_graph
from tests.graphs import graph_of, random_gates, random_graph

SVG = "{http://www.w3.org/2000/svg}"


def two_blocks() -> Graph:
    """Two alike blocks with one gated and one plain input each, as one stage, and a head."""
    nodes = {}
    blocks = []
    before = "input"
    for k in range(2):
        block = f"body.block{k}"
        nodes |= {
            f"{block}.level0.conv_3x3": ("conv", {"kernel": 3}, [before]),
            f"{block}.out": ("add", {}, [(f"{block}.level0.conv_3x3", "cell/out<level0.conv_3x3"), before]),
        }
        blocks.append(Block(block, "cell", "body", (before,), f"{block}.out"))
        before = f"{block}.out"
    nodes |= {"head.pool": ("global_avg_pool", {}, [before]), "head.out": ("linear", {"channels": 3}, ["head.pool"])}
    blocks.append(Block("head", "head", "head", (before,), "head.out"))
    return graph_of(nodes, blocks=tuple(blocks))


def dense_block(levels: int = 4, ops: int = 4) -> Graph:
    """A block as DSO-NAS has it: every op reads the input and all ops of all earlier levels."""
    nodes = {}
    earlier: list[str] = []
    for level in range(levels):
        names = [f"b.level{level}.conv_{i}" for i in range(ops)]
        for name in names:
            nodes[name] = ("conv", {"kernel": 1}, ["input", *((src, f"b/{name}<{src}") for src in earlier)])
        earlier += names
    nodes["b.mix"] = ("project", {"channels": 4}, [(src, f"b/mix<{src}") for src in earlier])
    nodes["b.out"] = ("add", {}, ["b.mix", "input"])
    return graph_of(nodes, blocks=(Block("b", "dense", "b", ("input",), "b.out"),))


TXT = f"""\
tiny
8 nodes · 9 edges · 1 gate · 319 params · 10.4k FLOPs

  #  level  node                                       reads
  0  0      input   4x6x6
  1  1      body    cell {TIMES} 2  304 params  10.4k FLOPs  input (4x6x6)
  2  2      head    15 params  12 FLOPs                body (4x6x6)
  3  3      output  3                                  head (3)

cell {TIMES} 2: body.block0, body.block1
4x6x6 → 4x6x6 · 2 nodes · 3 edges (1 gated) · 152 params · 5.18k FLOPs

  #  level  node                    reads
  0  0      in               4x6x6
  1  1      level0.conv_3x3  4x6x6  in
  2  2      out              add    level0.conv_3x3 (gated), in

head
4x6x6 → 3 · 2 nodes · 2 edges · 15 params · 12 FLOPs

  #  level  node                   reads
  0  0      in    4x6x6
  1  1      pool  global_avg_pool  in
  2  2      out   linear           pool
"""


def test_text_of_a_network() -> None:
    assert draw(two_blocks(), format="txt") == TXT


def test_text_of_a_dense_block_is_a_matrix() -> None:
    graph = dense_block(levels=2, ops=2)
    gates = dict.fromkeys(graph.gates(), 1.0)
    first, second = graph.gates()[:2]
    gates |= {first: 0.0, second: 0.31}
    lines = draw(graph, scope="b", gates=gates, format="txt").splitlines()
    assert lines[3:] == [
        "  #  level  node                    0 12 34 5",
        "  0  0      in             4x6x6",
        "  1  1      level0.conv_0  4x6x6    -",
        "  2  1      level0.conv_1  4x6x6    -",
        "  3  2      level1.conv_0  4x6x6    - o3",
        "  4  2      level1.conv_1  4x6x6    - 99",
        "  5  3      mix            project    99 99",
        "  6  4      out            add      -       -",
        "reads: - plain, 1..9 gated, in ninths of the largest gate, o closed (gate 0)",
    ]


def test_dot_of_one_block() -> None:
    assert draw(two_blocks(), scope="body.block1", gates={"cell/out<level0.conv_3x3": 0.5}, format="dot") == (
        'digraph "tiny" {\n'
        "  rankdir=LR;\n"
        '  node [shape=box, style=rounded, fontname="monospace"];\n'
        "  subgraph cluster_0 {\n"
        '    label="body.block1 (cell)";\n'
        '    "0:body.block0.out" [label="in\\n4x6x6"];\n'
        '    "0:body.block1.level0.conv_3x3" [label="conv_3x3\\n4x6x6"];\n'
        '    "0:body.block1.out" [label="out\\nadd"];\n'
        '    "0:body.block0.out" -> "0:body.block1.level0.conv_3x3";\n'
        '    "0:body.block1.level0.conv_3x3" -> "0:body.block1.out" [style=dashed, penwidth=2.00, tooltip="0.5"];\n'
        '    "0:body.block0.out" -> "0:body.block1.out";\n'
        "  }\n"
        "}\n"
    )


def check_svg(graph: Graph, text: str) -> ET.Element:
    """The drawing is XML, shows every node and edge of the only block, and keeps all text inside."""
    root = ET.fromstring(text)
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    block = graph.blocks[0]
    inside = [n.id for n in graph.nodes() if block.holds(n.id)]
    figure = next(g for g in root.iter(f"{SVG}g") if g.get("id") == block.id)
    shown = [g.attrib["data-id"] for g in figure.iter(f"{SVG}g") if "data-id" in g.attrib]
    wires = [(g.attrib["data-src"], g.attrib["data-dst"]) for g in figure.iter(f"{SVG}g") if "data-src" in g.attrib]
    assert [i for i in shown if block.holds(i)] == inside
    assert sorted(wires) == sorted((e.src, e.dst) for i in inside for e in graph.inputs(i))
    for rect in root.iter(f"{SVG}rect"):
        if "x" in rect.attrib:
            assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width
    for label in root.iter(f"{SVG}text"):
        assert (
            0 <= float(label.attrib["x"]) + 5.5 * len(label.text or "") * (label.get("class") != "gs-heading") <= width
        )
    assert 0 < height < 5000
    return root


def check_layout(layout: Layout) -> None:
    """Boxes lie apart and inside; no edge runs through a box; routes start and end at their nodes."""
    for a, b in combinations(layout.boxes.values(), 2):
        assert a.right <= b.x or b.right <= a.x or a.bottom <= b.y or b.bottom <= a.y
    for box in layout.boxes.values():
        assert 0 <= box.x <= box.right <= layout.width
        assert -1e-9 <= box.y <= box.bottom <= layout.height + 1e-9
    for (src, dst), route in layout.routes.items():
        assert route[0] == (layout.boxes[src].right, layout.boxes[src].middle)
        assert route[-1][0] == layout.boxes[dst].x
        assert layout.boxes[dst].y <= route[-1][1] <= layout.boxes[dst].bottom
        for (x0, y), (x1, _) in zip(route[1:-1:2], route[2:-1:2], strict=True):
            assert not any(b.x < x1 and b.right > x0 and b.y < y < b.bottom for b in layout.boxes.values())


def test_svg_of_a_dense_block() -> None:
    graph = dense_block()
    figure = figures(view_of(graph, None, None), "b")[0]
    layout = paint(figure).layout
    check_layout(layout)
    root = check_svg(graph, draw(graph))
    headings = [t.text for t in root.iter(f"{SVG}text") if t.get("class") == "gs-heading"]
    assert headings == ["level0", "level1", "level2", "level3"]
    assert layout.width < 1500  # readable on a laptop without zooming
    assert [len(column) for column in layout.columns] == [1, 4, 4, 4, 4, 1, 1]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), nodes=st.integers(1, 25))
def test_random_blocks_are_drawn_whole(seed: int, nodes: int) -> None:
    graph = random_graph(seed, nodes=nodes)
    gates = random_gates(graph, seed)
    for figure in figures(view_of(graph, gates, None), None):
        check_layout(paint(figure).layout)
    check_svg(graph, draw(graph, gates=gates))


@settings(max_examples=60)
@given(st.data())
def test_layouts_of_random_dags(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    names = [f"n{i}" for i in range(count)]
    sizes = {name: (float(data.draw(st.integers(20, 90))), float(data.draw(st.integers(20, 90)))) for name in names}
    edges = [pair for pair in combinations(names, 2) if data.draw(st.booleans())]
    check_layout(lay_out(sizes, edges))


def test_an_svg_needs_no_style_sheet() -> None:
    """Viewers that are no browser know no variables, some know no style sheets: what is not said is black there."""
    graph = dense_block()
    text = draw(graph, gates=dict.fromkeys(graph.gates(), 0.5))
    assert "var(" not in text
    root = ET.fromstring(text)
    colour = re.compile("#[0-9a-f]{6}|none")
    painted = [each for each in root.iter() if each.tag.removeprefix(SVG) in ("rect", "path", "circle", "text")]
    assert painted
    for each in painted:
        assert colour.fullmatch(each.get("fill", "")), ET.tostring(each)
        assert each.tag != f"{SVG}path" or colour.fullmatch(each.get("stroke", "")), ET.tostring(each)
    back = next(each for each in painted if each.get("class") == "gs-back")
    assert back.get("fill") == "#ffffff"
    style = root.find(f"{SVG}style")
    assert style is not None
    assert re.search(r"prefers-color-scheme: dark\) \{.*\.gs-back \{ fill: #11161e; \}", style.text or "", re.DOTALL)
    special = [each for each in root.iter() if "gs-gated" in (each.get("class") or "")]
    assert {path.get("stroke") for each in special for path in each.iter(f"{SVG}path")} == {"#2563c9"}


def test_choices_are_one_card_with_a_row_an_op() -> None:
    ops = {"conv": ("conv", {"kernel": 3}), "pool": ("max_pool", {"kernel": 3}), "skip": ("identity", {})}
    nodes = {f"b.n0.s0.{name}": (op, attrs, ["input"]) for name, (op, attrs) in ops.items()}
    gates = {f"b/n0<n0.s0.{name}": value for name, value in zip(ops, (0.0, 0.8, 0.4), strict=True)}
    nodes["b.n0"] = ("add", {}, [(f"b.n0.s0.{name}", f"b/n0<n0.s0.{name}") for name in ops])
    graph = graph_of(nodes, blocks=(Block("b", "cell", "b", ("input",), "b.n0"),))
    (figure,) = figures(view_of(graph, gates, None), "b")
    drawn = with_choices(figure)
    (choice,) = [card for card in drawn.cards if card.options]
    assert [(option.name, option.wire.value) for option in choice.options] == list(
        zip(ops, gates.values(), strict=True)
    )
    assert choice.options[1].tip.endswith("gate b/n0<n0.s0.pool = 0.8")
    assert [(wire.src, wire.dst, wire.gated, wire.value) for wire in drawn.wires] == [
        ("input", choice.id, False, None),
        (choice.id, "b.n0", True, 0.8),
    ]
    root = ET.fromstring(draw(graph, scope="b", gates=gates))
    rows = {g.attrib["data-id"]: g for g in root.iter(f"{SVG}g") if "gs-option" in g.get("class", "")}
    assert list(rows) == [f"b.n0.s0.{name}" for name in ops]
    lengths = [sum(float(r.attrib["width"]) for r in row.iter(f"{SVG}rect")) for row in rows.values()]
    assert lengths == pytest.approx([0.0, 36.0, 18.0])
    assert "gs-off" in rows["b.n0.s0.conv"].attrib["class"]
    assert with_choices(drawn) == drawn


def test_gates_decide_width_and_look() -> None:
    graph = two_blocks()
    gate = graph.gates()[0]
    for value, closed in ((0.0, True), (0.7, False)):
        (figure,) = figures(view_of(graph, {gate: value}, None), "body.block0")
        (gated,) = [wire for wire in figure.wires if wire.gated]
        assert gated.closed is closed
        assert f"gate {gate} = {value:.4g}" in gated.tip
        assert stroke(gated, 1.4) == pytest.approx(0.9 if closed else 0.9 + 3.6 / 2)
        assert ("gs-closed" in draw(graph, scope="body.block0", gates={gate: value}).split("</style>")[1]) is closed


@settings(max_examples=10)
@given(st.integers(0, 99), st.sampled_from([-1.0, -1e-30]))
def test_a_gate_below_zero_is_drawn_as_large_as_the_one_above(seed: int, factor: float) -> None:
    graph = random_graph(seed)
    gates = {gate: factor * value for gate, value in random_gates(graph, seed).items()}
    opposite = {gate: -value for gate, value in gates.items()}
    for form in ("svg", "html"):
        widths = [re.findall(r"--w:([0-9.]+)px", draw(graph, gates=g, format=form)) for g in (gates, opposite)]
        assert widths[0] == widths[1]
    matrix = [draw(level_graph(seed), gates=dict.fromkeys(level_graph(seed).gates(), v), format="txt") for v in (-2, 2)]
    assert matrix[0].replace("-2", "2") == matrix[1]


def test_before_and_after_in_one_drawing() -> None:
    graph = two_blocks()
    lost = "body.block0.level0.conv_3x3"
    kept = graph.restricted_to(e for e in graph.edges() if lost not in (e.src, e.dst))
    text = draw(graph, scope="body.block0", kept=kept)
    root = ET.fromstring(text)
    faint = [g.attrib["data-id"] for g in root.iter(f"{SVG}g") if "gs-faint" in g.get("class", "")]
    closed = [g for g in root.iter(f"{SVG}g") if "gs-closed" in g.get("class", "") and "data-src" in g.attrib]
    assert faint == [lost]
    assert sorted((g.attrib["data-src"], g.attrib["data-dst"]) for g in closed) == [
        (lost, "body.block0.out"),
        ("input", lost),
    ]
    assert "kept: 1 node, 1 edge, 0 params, 0 FLOPs" in text
    assert len(figures(view_of(graph, None, kept), "cell")) == 2  # the two blocks differ now
    assert "304 → 152 params" in draw(graph, kept=kept, format="txt")


def test_a_scope_is_a_block_a_kind_or_a_stage() -> None:
    view = view_of(two_blocks(), None, None)
    assert [f.title for f in figures(view, "body.block1")] == ["body.block1 (cell)"]
    assert figures(view, "cell") == figures(view, "body")
    with pytest.raises(GraphspecError, match=r"called 'bdy'; did you mean 'body'\?\n  try: one of cell, body"):
        figures(view, "bdy")


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(GraphspecError, match=r"cannot draw as 'png'\n  try: a file that ends in .svg, .html"):
        draw(two_blocks(), format="png")  # type: ignore[arg-type]  # what a user may type


def test_drawings_are_deterministic() -> None:
    code = (
        "from compiler.drawing.formats import FORMATS, draw; from tests.compiler.drawing.test_draw import dense_block;"
        "print(*[draw(dense_block(), format=f) for f in FORMATS], sep='', end='')"
    )
    for hash_seed in ("1", "2"):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
        assert done.stdout.decode() == "".join(draw(dense_block(), format=f) for f in ("svg", "html", "dot", "txt"))


def test_a_page_needs_nothing_from_outside() -> None:
    text = draw(two_blocks(), format="html")
    assert text.startswith("<!doctype html>")
    assert not re.search(r"[\s\"](?:src|href)=|url\(|@import|https?://|fetch\(|XMLHttp", text)
    assert "prefers-color-scheme: dark" in text


def test_names_are_escaped() -> None:
    graph = random_graph(3)
    graph.name = "a<b>&c"
    assert "<b>" not in draw(graph, format="html").split("<body>")[1].split("<script>")[0]
    assert ET.fromstring(draw(graph))[1][1].attrib["id"] == "a<b>&c"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (999_700, "1M"), (1_234_567, "1.23M"), (3e9, "3G")]
)
def test_counts_have_three_digits(number: float, text: str) -> None:
    assert counted(number) == text
