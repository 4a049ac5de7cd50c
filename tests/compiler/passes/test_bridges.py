"""Gates on edges that the block cannot do without, against removing each edge in turn."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.elaborate.template import OUT, Source, Template, TemplateNode, needed_gates
from compiler.language.dims import BlockType
from compiler.language.spec import BlockSpec


def template(reads: list[list[str]], inputs: tuple[str, ...], products: frozenset[int] = frozenset()) -> Template:
    """A block whose last node is `out`; all edges gated, but those into products."""
    names = [f"n{i}" for i in range(len(reads) - 1)] + [OUT]
    nodes = tuple(
        TemplateNode(
            name, "multiply" if i in products else "add", {}, tuple(Source(s, i not in products, ()) for s in read), ()
        )
        for i, (name, read) in enumerate(zip(names, reads, strict=True))
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
    return [(source.name, node.name) for node, source in needed_gates(found)]


def bridges_by_removal(found: Template) -> list[tuple[str, str]]:
    """Gated edges without which no input reaches `out`; a product needs all that it reads."""
    cut = []
    for left_out in [(s.name, n.name) for n in found.nodes for s in n.sources if s.gated]:
        reached = set(found.inputs)
        for node in found.nodes:
            fed = [s.name in reached and (s.name, node.name) != left_out for s in node.sources]
            if all(fed) if node.op == "multiply" else any(fed):
                reached.add(node.name)
        if OUT not in reached:
            cut.append(left_out)
    return cut


@given(st.data())
@settings(max_examples=300)
def test_bridges_are_the_edges_that_cut_the_block(data: st.DataObject) -> None:
    inputs = data.draw(st.sampled_from([("in",), ("in0", "in1")]))
    names = list(inputs)
    reads = []
    for i in range(data.draw(st.integers(1, 7))):
        reads.append(data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
        names.append(f"n{i}")
    products = data.draw(st.frozensets(st.integers(0, len(reads) - 1)))
    found = living(template(reads, inputs, products))
    assert bridges(found) == bridges_by_removal(found)


def test_deep_levels_have_no_bridges() -> None:
    names = ["in", *(f"n{i}" for i in range(100))]
    reads = [names[: i + 1] for i in range(100)]
    assert bridges(template([*reads, names[1:]], ("in",))) == []


def test_a_chain_is_all_bridges() -> None:
    reads = [["in"], ["n0"], ["n1"]]
    assert bridges(template(reads, ("in",))) == list(pairwise(["in", "n0", "n1", OUT]))
