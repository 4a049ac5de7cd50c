"""The architecture document: exact round trips, the graph it stands for, and clear words where it does not fit."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.analysis.guards import kept_by_strength
from compiler.architecture.found import Architecture, ArchitectureError
from compiler.elaborate.builder import load
from compiler.errors import PassError
from compiler.ir.graph import Graph, Model
from compiler.ir.text import text
from compiler.language.overrides import overrides_of
from compiler.passes.pipeline import PRUNED, TO_COMPACT
from tests.graphs import random_gates, random_graph

SPECS = Path(__file__).parents[3] / "specs"


def digits(*overrides: str) -> Graph:
    return load(SPECS / "digits.yaml", overrides_of(overrides))[1]


def found_in(graph: Graph, seed: int = 0) -> Architecture:
    gates = random_gates(graph, seed)
    closed = {gate for gate, value in gates.items() if value == 0.0}
    gates |= dict.fromkeys(kept_by_strength(graph, closed, gates), 0.5)
    return Architecture.of(
        graph,
        gates,
        strategy="dso",
        seed=seed,
        spec_hash="12" * 32,
        metrics={"accuracy": 0.9625, "full_accuracy": None, "validation_images": 269},
        costs={"full": {"params": 100, "flops": 2000}, "found": {"params": 50, "flops": 1000}},
        notes=["a note: with a colon"],
    )


# -- the document -----------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_the_text_round_trips(seed: int) -> None:
    found = found_in(random_graph(seed), seed)
    again = Architecture.from_yaml(found.to_yaml(), "arch.yaml")
    assert again == found
    assert again.to_yaml() == found.to_yaml()
    assert again.hash == found.hash


def test_the_document_is_readable() -> None:
    graph = digits("gates.share=block")
    gates = dict.fromkeys(graph.gates(), 0.0)
    gates |= {
        "normal/level1.sep_conv_3x3<in": 0.8299999833106995,
        "normal/mix<level1.sep_conv_3x3": 1.0,
        "reduce/out<a": 0.25,
    }
    written = Architecture.of(graph, gates, strategy="random", seed=3, spec_hash="ab", metrics={}, costs={}).to_yaml()
    lines = written.splitlines()
    assert lines[0].startswith("# 3 of ")
    assert lines[1:4] == ["graphspec_architecture: 1", "name: digits", "strategy: random"]
    edges = written[written.index("edges:") :]
    assert edges == (
        "edges:\n"
        "  normal:\n"
        "    kind: normal\n"
        "    gates: 68\n"
        "    kept:\n"
        "      level1.sep_conv_3x3: {in: 0.83}\n"
        "      mix: {level1.sep_conv_3x3: 1.0}\n"
        "  reduce:\n"
        "    kind: reduce\n"
        "    gates: 2\n"
        "    kept:\n"
        "      out: {a: 0.25}\n"
    )


def test_the_earlier_name_of_the_strategy_is_read() -> None:
    written = found_in(digits()).to_yaml()
    assert "strategy: dso\n" in written
    assert Architecture.from_yaml(written.replace("strategy: dso", "strategy: apg_nag"), "").to_yaml() == written


def test_the_encoding_and_its_hash_know_edges_and_not_values() -> None:
    graph = digits("gates.share=block")
    found = found_in(graph)
    louder = replace(found, scopes=tuple(replace(s, kept={k: 2 * v for k, v in s.kept.items()}) for s in found.scopes))
    assert "\n" not in found.encoding
    assert (louder.encoding, louder.hash) == (found.encoding, found.hash)
    fewer = dict(found.kept)
    fewer.popitem()
    other = Architecture.of(graph, fewer, strategy="", seed=0, spec_hash="", metrics={}, costs={})
    assert other.hash != found.hash
    assert len(found.hash) == 64


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "from pathlib import Path; from compiler.architecture.found import Architecture;"
        "import sys; print(Architecture.from_yaml(sys.stdin.read(), 'stdin').hash); assert 'torch' not in sys.modules"
    )
    found = found_in(digits())
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], input=found.to_yaml(), capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == found.hash


def test_zeros_written_by_hand_are_closed_edges() -> None:
    graph = digits("gates.share=block")
    found = found_in(graph)
    gate, value = next(iter(found.kept.items()))
    src = gate.partition("<")[2]
    edited = found.to_yaml().replace(f"{src}: {value}", f"{src}: 0", 1)
    assert Architecture.from_yaml(edited, "arch.yaml").model(graph).gates == {**found.model(graph).gates, gate: 0.0}


# -- graphs -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_the_model_has_the_values_of_the_kept_gates_and_zeros(seed: int) -> None:
    graph = random_graph(seed)
    found = found_in(graph, seed)
    assert found.model(graph) == Model(graph, dict.fromkeys(graph.gates(), 0.0) | found.kept)


def test_gates_that_survive_pruning_stand_for_the_same_graph() -> None:
    graph = digits()
    found = found_in(graph)
    left = PRUNED.run(found.model(graph)).gates
    again = Architecture.of(graph, left, strategy="", seed=0, spec_hash="", metrics={}, costs={})
    assert len(left) < len(found.kept)
    assert text(TO_COMPACT.run(again.model(graph)).graph) == text(TO_COMPACT.run(found.model(graph)).graph)


def test_another_graph_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"(?s)found in another graph .*derive"):
        found_in(digits()).model(digits("symbols.width=32"))


def test_gates_that_the_graph_lacks_are_named() -> None:
    found = found_in(digits())
    other = digits("gates.share=block")
    with pytest.raises(ArchitectureError, match=r"has no gate '.*of .* gates are unknown"):
        found.model(other)
    with pytest.raises(ArchitectureError, match="has no gate 'nowhere/a<b'"):
        Architecture.of(other, {"nowhere/a<b": 1.0}, strategy="", seed=0, spec_hash="", metrics={}, costs={})


def test_an_architecture_without_a_path_is_refused() -> None:
    graph = digits()
    empty = Architecture.of(graph, {}, strategy="", seed=0, spec_hash="", metrics={}, costs={})
    with pytest.raises(PassError, match="no path from the input to the output"):
        PRUNED.run(empty.model(graph))


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("graphspec_architecture: 1", "graphspec_architecture: 2", "format version 2, this graphspec reads 1"),
        ("graphspec_architecture: 1", "graphspec_architecture: true", "format version True"),
        ("graphspec_architecture: 1\n", "", "this is no architecture"),
        ("seed: 0", "seed: many", "seed: expected a whole number"),
        ("seed: 0", "", "seed: "),
        ("name: digits", "name: digits\ncolour: red", "colour: "),
        ("    gates: 2\n", "    gates: 0\n", "gates are kept of 0"),
        ("    gates: 2\n", "    gates: -2\n", "expected at least 0, found -2"),
        ("  reduce:\n", "  reduce: {\n", "it is no YAML"),
        ("kept:\n", "kept: nothing\n", "it is no YAML"),
        ("out: {", "out: {c: .nan, ", "edges.reduce.kept.out.c"),
        ("out: {", "out: {c: much, ", "expected a number, found 'much'"),
        ("out: {", "out: {a: 1.0, b: 1.0, a: 2.0, ", "duplicate key 'a'"),
        ("seed: 0", "seed: 0\nseed: 1", "duplicate key 'seed'"),
    ],
)
def test_damage_is_named(before: str, after: str, message: str) -> None:
    written = found_in(digits()).to_yaml()
    assert before in written
    with pytest.raises(ArchitectureError, match=r"^runs/x/arch\.yaml: ") as caught:
        Architecture.from_yaml(written.replace(before, after, 1), "runs/x/arch.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("junk", ["", "[]", "null", "5", "a: b", "\x00", "[" * 400, "&a [*a]"])
def test_other_files_are_no_architectures(junk: str) -> None:
    with pytest.raises(ArchitectureError, match=r"^arch\.yaml: "):
        Architecture.from_yaml(junk, "arch.yaml")


@settings(max_examples=60)
@given(data=st.data())
def test_cut_and_mixed_files_never_give_a_traceback(data: st.DataObject) -> None:
    written = found_in(random_graph(0)).to_yaml()
    start = data.draw(st.integers(0, len(written)))
    length = data.draw(st.integers(0, 40))
    patch = data.draw(st.text(alphabet="{}[]:,<>&*!|-#'\" \nabc019.", max_size=8))
    with suppress(ArchitectureError):  # anything else is a traceback for the user
        Architecture.from_yaml(written[:start] + patch + written[start + length :], "arch.yaml")
