"""The text form is golden, the JSON form round-trips exactly and is the same on every machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.elaborate.builder import load
from compiler.errors import RuleError
from compiler.ir.graph import Block, Choice, Graph, Node, Phase
from compiler.ir.text import FORMAT_VERSION, GraphFormatError, from_json, graph_hash, json_and_hash, text, to_json
from tests.graphs import graph_of, random_graph, with_choices, with_output
from tests.tiny import environment, write_spec

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parents[1] / "golden"
SPECS = ("digits", "hand_wired", "darts_cell", "dso_nas_cifar10_full", "dso_nas_cifar10_share", "dso_nas_imagenet")
Golden = Callable[[Path, str], None]


@pytest.mark.parametrize("name", ["hand_wired", "digits"])
def test_text_form(name: str, golden: Golden) -> None:
    golden(GOLDEN / f"{name}.txt", text(load(ROOT / "specs" / f"{name}.yaml")[1]))


def test_text_form_of_a_graph_without_types() -> None:
    graph = Graph("raw")
    graph.add(Node("input", "input"))
    graph.add(Node("a", "mean", (("dims", (2, 3)), ("keep", True))))
    graph.connect("input", "a", "s/a<input")
    assert text(graph) == (
        "graph @raw (raw) {\n  %input = input() : ?\n  %a = mean(%input[s/a<input]) dims=2x3 keep=True : ?\n}\n"
    )


def test_hashes_are_those_of_every_other_machine(golden: Golden) -> None:
    """Also after a round trip: the hash is that of the text."""
    graphs = {name: load(ROOT / "specs" / f"{name}.yaml")[1] for name in SPECS}
    assert all(to_json(from_json(written)) == written for written in map(to_json, graphs.values()))
    hashes = {name: graph_hash(graph) for name, graph in graphs.items()}
    golden(GOLDEN / "hashes.json", json.dumps(hashes, indent=2) + "\n")


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_json_round_trips_exactly(seed: int) -> None:
    graph = random_graph(seed)
    again = from_json(to_json(graph))
    assert again.nodes() == graph.nodes()
    assert again.edges() == graph.edges()
    assert (again.name, again.phase, again.blocks) == (graph.name, graph.phase, graph.blocks)
    assert to_json(again) == to_json(graph)
    assert json_and_hash(again) == (to_json(graph), graph_hash(graph))


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_choices_and_gates_of_channels_round_trip_and_only_the_gates_count_in_the_hash(seed: int) -> None:
    plain = random_graph(seed)
    graph = with_choices(plain, seed)
    again = from_json(to_json(graph))
    assert (again.choices, again.channel_gates) == (graph.choices, graph.channel_gates)
    assert (to_json(again), text(again)) == (to_json(graph), text(graph))
    assert graph_hash(again) == graph_hash(graph)
    assert (graph_hash(graph) != graph_hash(plain)) == bool(graph.channel_gates)
    graph.channel_gates, graph.choices = {}, ()
    assert graph_hash(graph) == graph_hash(plain)


def test_a_file_of_version_1_is_read_and_keeps_its_hash() -> None:
    old = (GOLDEN / "version1.json").read_text(encoding="utf-8")
    _, graph = load(GOLDEN / "choices.yaml")
    assert json.loads(old)["version"] == 1
    assert hashlib.sha256(old.encode()).hexdigest() == graph_hash(from_json(old)) == graph_hash(graph)
    assert (from_json(old).choices, len(graph.choices)) == ((), 3)
    assert from_json(old).edges() == graph.edges()


def test_outputs_are_shown_and_round_trip() -> None:
    graph = with_output(graph_of({"a": ("relu", {}, ["input"])}), "a", "aux.output", name="aux", weight=0.4)
    assert "  %aux.output = output(%a) name=aux weight=0.4 : 4x6x6" in text(graph).splitlines()
    again = from_json(to_json(graph))
    assert (again.outputs(), to_json(again)) == (graph.outputs(), to_json(graph))
    assert list(again.outputs()) == ["output", "aux"]
    assert graph_hash(graph) != graph_hash(with_output(graph_of({"a": ("relu", {}, ["input"])}), "a", "aux.output"))


def test_text_form_of_choices_and_gates_of_channels() -> None:
    graph = graph_of({"a": ("conv", {"kernel": 3}, [("input", "s/a<input")]), "b": ("relu", {}, ["a"])})
    graph.channel_gates = {"a": ("s/a#0", "s/a#1", None, "s/a#3")}
    graph.choices = (Choice("s/c", ("s/a<input",), 1), Choice("s/d", ("s/a#0",)))
    assert text(graph).splitlines()[5:] == [
        "  behind %a : s/a#0, s/a#1, 1, s/a#3",
        "  choice s/c : 1 of s/a<input",
        "  choice s/d : any of s/a#0",
        "}",
    ]


def test_numbers_and_kinds_of_attributes_survive() -> None:
    graph = graph_of(
        {
            "s": ("scale", {"factor": 0.1 + 0.2}, ["input"]),
            "t": ("scale", {"factor": 1.0}, ["s"]),
            "m": ("mean", {"dims": (2, 3), "keep": False}, ["t"]),
            "c": ("linear", {"channels": 2, "bias": None}, ["m"]),
        }
    )
    again = from_json(to_json(graph))
    assert [repr(node.attrs) for node in again.nodes()] == [repr(node.attrs) for node in graph.nodes()]


def test_hash_sees_everything() -> None:
    base = {"blk.a": ("conv", {"kernel": 3}, [("input", "s/a<input")])}
    block = Block("blk", "kind", "stage", ("input",), "blk.a")
    graphs = [
        graph_of(base, blocks=(block,)),
        graph_of({"blk.a": ("conv", {"kernel": 5}, [("input", "s/a<input")])}, blocks=(block,)),
        graph_of({"blk.a": ("conv", {"kernel": 3}, ["input"])}, blocks=(block,)),
        graph_of({"blk.a": ("conv", {"kernel": 3}, [("input", "t/a<input")])}, blocks=(block,)),
        graph_of(base, blocks=()),
        graph_of(base, blocks=(block,), name="other"),
        graph_of(base, blocks=(block,), shape=(4, 6, 7)),
        graph_of(base, blocks=(block,)).copy(Phase.RAW),
    ]
    assert len({graph_hash(graph) for graph in graphs}) == len(graphs)


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    write_spec(tmp_path)
    written = []
    for seed in ("0", "1"):
        code = "import graphspec; from compiler.ir.text import to_json; print(to_json(graphspec.load('tiny.yaml')[1]))"
        environ = {**environment(), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, check=True)
        written.append(done.stdout)
    assert written[0] == written[1]
    assert b"tiny" in written[0]


RECORD = json.loads(to_json(graph_of({"a": ("conv", {"kernel": 3}, ["input"])})))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "this is no graphspec-graph file"),
        ("[1, 2]", "this is no graphspec-graph file"),
        ('{"format": "else"}', "format: expected 'graphspec-graph', found 'else'"),
        (json.dumps(RECORD | {"version": FORMAT_VERSION + 1}), "compile again"),
        (json.dumps(RECORD | {"nodes": [["a"]]}), "damaged"),
        (json.dumps(RECORD | {"choices": [["c", [7], None]]}), "damaged"),
        (json.dumps(RECORD | {"channel_gates": [["a", [7]]]}), "damaged"),
        (json.dumps(RECORD | {"nodes": None}), "damaged"),
        (json.dumps(RECORD | {"phase": "later"}), "damaged"),
        (json.dumps(RECORD | {"gates": [], "nodes": [["a", "relu", {}, None, [["a", 0]]]]}), "damaged"),
        (json.dumps({k: v for k, v in RECORD.items() if k != "blocks"}), "damaged"),
        (json.dumps(RECORD | {"nodes": RECORD["nodes"] * 2}), "exists already"),
        (
            json.dumps(RECORD | {"gates": ["s/a<input"], "nodes": [["a", "relu", {}, None, [["input", -1]]]]}),
            "at least 0",
        ),
        ("[" * 200_000, "recursion limit exceeded"),
        (json.dumps(RECORD).replace(": 3", ": 1e999"), "damaged"),
    ],
)
def test_other_files_are_refused_with_a_hint(source: str, message: str) -> None:
    with pytest.raises(GraphFormatError, match=message):
        from_json(source)


@pytest.mark.parametrize("attrs", [{"act": "rElu"}, {"kernel": -3}, {"kernel": "3"}, {"x": 1}])
def test_attributes_that_an_op_does_not_take_are_named(attrs: dict[str, object]) -> None:
    wrong = json.dumps(RECORD).replace('{"kernel": 3}', json.dumps({"kernel": 3} | attrs))
    with pytest.raises(RuleError, match=rf"\[ops_are_known\] a: {next(iter(attrs))}: .*\n  try: `graphspec ops`"):
        from_json(wrong)


def test_a_graph_that_breaks_a_rule_is_not_read() -> None:
    wrong = json.dumps(RECORD).replace('"conv"', '"cnv"')
    with pytest.raises(RuleError, match="unknown op 'cnv'; did you mean 'conv'"):
        from_json(wrong)
