"""The pipeline runner: order, verification, notes, traces, and pipelines written as text."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from compiler.errors import PassError, RuleError
from compiler.ir.graph import Graph, Model, Node, Phase
from compiler.passes.base import Pass
from compiler.passes.drop_gates import DropGates
from compiler.passes.pipeline import PASSES, TO_EXPORT, Pipeline, Printer, parse_pipeline
from compiler.passes.prune_zero_edges import PruneZeroEdges
from tests.graphs import model_of, random_graph


@dataclass(frozen=True)
class Orphan(Pass):
    """Add a node that reads nothing."""

    name = "add-orphan"
    times: int = 1
    label: str = "orphan"
    loud: bool = False
    share: float = 0.5

    def run(self, model: Model) -> Model:
        graph: Graph = model.graph.copy()
        graph.add(Node(self.label, "relu"))
        return Model(graph, model.gates, model.weights)


def test_structure_is_verified_after_every_pass() -> None:
    with pytest.raises(RuleError) as caught:
        Pipeline((Orphan(), DropGates())).run(model_of(random_graph(0)))
    assert caught.value.rule == "every_op_has_inputs"
    assert caught.value.__notes__ == ["while running 'add-orphan', pass 1 of 2"]


def test_the_error_of_a_pass_says_which_pass_it_was() -> None:
    graph = random_graph(0)
    model = Model(graph, dict.fromkeys(graph.gates(), 0.0))
    with pytest.raises(PassError) as caught:
        Pipeline((DropGates(), PruneZeroEdges())).run(model)
    assert caught.value.__notes__ == ["while running 'drop-gates', pass 1 of 2"]


def test_the_phase_before_and_after_is_checked() -> None:
    model = model_of(random_graph(0))
    with pytest.raises(RuleError, match="no_gates_left"):
        TO_EXPORT.run(model)
    with pytest.raises(RuleError, match="no_gates_left"):
        Pipeline((PruneZeroEdges(),), Phase.SEARCH, Phase.COMPACT).run(model)


def test_the_printer_writes_differences_and_graphs() -> None:
    lines: list[str] = []
    graph = random_graph(1)
    gates = dict.fromkeys(graph.gates(), 1.0)
    parse_pipeline("prune-zero-edges,drop-gates,expand-parts").run(Model(graph, gates), Printer(lines.append, True))
    heads = lines[::2]
    assert heads[0].startswith("-- prune-zero-edges: changed nothing (")
    assert heads[2].startswith("-- expand-parts: nodes ")
    assert "FLOPs" in heads[2]
    assert "graph @random1 (compact)" in lines[-1]


def test_every_pass_is_registered_under_its_own_name_with_a_help_text() -> None:
    for name, kind in PASSES.items():
        assert kind.name == name
        assert (kind.__doc__ or "").splitlines()[0].endswith(".")
        assert parse_pipeline(name).passes == (kind(),)


def test_a_pipeline_with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, Orphan.name, Orphan)
    written = " add-orphan{times=3, label=x,loud=true,share=0.25} , drop-gates"
    assert parse_pipeline(written).passes == (Orphan(3, "x", True, 0.25), DropGates())


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("prune-zero-edge", "did you mean 'prune-zero-edges'"),
        ("", "it names no pass"),
        ("drop-gates fold-gates", "cannot read"),
        ("drop-gates{", "cannot read"),
        ("drop-gates{x=1}", "it takes no options"),
        ("add-orphan{time=1}", "did you mean 'times'"),
        ("add-orphan{times=many}", "'many' is no int"),
        ("add-orphan{loud=yes}", "'yes' is no bool"),
    ],
)
def test_a_pipeline_that_cannot_be_read(written: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, Orphan.name, Orphan)
    with pytest.raises(PassError, match=complaint):
        parse_pipeline(written)
