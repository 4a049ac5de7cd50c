"""Gates on edges that every path uses: the linear test against removing each edge in turn."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.elaborate.template import OUT, Source, Template, TemplateNode, gates_on_bridges
from compiler.language.dims import BlockType
from compiler.language.spec import BlockSpec


def template(reads: list[list[str]], inputs: tuple[str, ...]) -> Template:
    """A block whose last node is `out`; all edges gated."""
    names = [f"n{i}" for i in range(len(reads) - 1)] + [OUT]
    nodes = tuple(
        TemplateNode(name, "add", {}, tuple(Source(s, True, ()) for s in sources), ())
        for name, sources in zip(names, reads, strict=True)
    )
    block = BlockSpec("block", BlockType.parse("[C] -> [C]"), {}, None, "none", ())
    return Template(block, inputs, nodes)


def living(found: Template) -> Template:
    """Without the nodes and inputs that do not reach `out`."""
    needed = {OUT}
    for node in reversed(found.nodes):
        if node.name in needed:
            needed |= {source.name for source in node.sources}
    nodes = tuple(node for node in found.nodes if node.name in needed)
    return Template(found.block, tuple(i for i in found.inputs if i in needed), nodes)


def bridges(found: Template) -> list[tuple[str, str]]:
    return [(source.name, node.name) for node, source in gates_on_bridges(found)]


def bridges_by_removal(found: Template) -> list[tuple[str, str]]:
    """Edges without which no input reaches `out`."""
    cut = []
    for left_out in [(s.name, n.name) for n in found.nodes for s in n.sources]:
        reached = set(found.inputs)
        for node in found.nodes:
            if any(s.name in reached and (s.name, node.name) != left_out for s in node.sources):
                reached.add(node.name)
        if OUT not in reached:
            cut.append(left_out)
    return cut


@given(st.data())
@settings(max_examples=150)
def test_bridges_are_the_edges_that_cut_the_block(data: st.DataObject) -> None:
    inputs = data.draw(st.sampled_from([("in",), ("in0", "in1")]))
    names = list(inputs)
    reads = []
    for i in range(data.draw(st.integers(1, 7))):
        reads.append(data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
        names.append(f"n{i}")
    found = living(template(reads, inputs))
    assert bridges(found) == bridges_by_removal(found)


def test_deep_levels_have_no_bridges() -> None:
    names = ["in", *(f"n{i}" for i in range(100))]
    reads = [names[: i + 1] for i in range(100)]
    assert bridges(template([*reads, names[1:]], ("in",))) == []


def test_a_chain_is_all_bridges() -> None:
    reads = [["in"], ["n0"], ["n1"]]
    assert bridges(template(reads, ("in",))) == list(pairwise(["in", "n0", "n1", OUT]))
