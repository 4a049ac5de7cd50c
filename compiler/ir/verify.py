"""Verification: which graphs are legal in which phase, one function per rule.

A rule's name is its id and its docstring its explanation (`graphspec rules` prints them). A rule yields
`(where, message, hint)` for every violation; `verify` raises the first as a `RuleError`.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from compiler.analysis.coupling import FIXED, couple
from compiler.errors import RuleError
from compiler.ir.graph import INPUT, OUTPUT, Graph, Phase, Subject
from compiler.language.findings import first_of
from compiler.ops import Reads, TypeMismatchError, UnknownOpError, infer, op, read_attrs

Violations = Iterator[tuple[str, str, str]]
Rule = Callable[[Graph], Violations]

SEGMENT = re.compile(r"[a-z][a-z0-9_]*")


def graph_is_acyclic(graph: Graph) -> Violations:
    """No node reads its own value, directly or through others."""
    if cycle := graph.find_cycle():
        yield cycle[0], f"cycle {' -> '.join(cycle)}", "remove one of these edges"


def one_input_and_a_main_output(graph: Graph) -> Violations:
    """There is one node of op `input`, called `input`, and a main one of op `output`, called `output`."""
    for node_id in (INPUT, OUTPUT):
        if node_id not in graph or graph.node(node_id).op != node_id:
            yield graph.name, f"no {node_id} node", f"add a node {node_id!r} of op {node_id!r}"
    for node in graph.nodes():
        if node.op == INPUT and node.id != INPUT:
            yield node.id, "a second input node", f"there is one input, called {INPUT!r}"


def outputs_have_names(graph: Graph) -> Violations:
    """Every output but the main one has a name of its own, and nobody reads an output."""
    names = {OUTPUT}
    for node in graph.nodes():
        if node.op != OUTPUT:
            continue
        name = dict(node.attrs).get("name", OUTPUT)
        if (name in names or not name) if node.id != OUTPUT else name != OUTPUT:
            yield node.id, f"the output is called {name!r}", "give each further output a name of its own"
        if graph.users(node.id):
            yield node.id, "the output is read by a node", "read the node before it"
        names.add(str(name))


def ids_are_module_paths(graph: Graph) -> Violations:
    """Ids are dotted Python names, no keywords: torch.fx turns them into attribute paths."""
    for node in graph.nodes():
        for segment in node.id.split("."):
            if not SEGMENT.fullmatch(segment) or keyword.iskeyword(segment):
                yield node.id, f"{segment!r} is no usable name", "use small letters, digits and _, and no keyword"


def ops_are_known(graph: Graph) -> Violations:
    """Every node's op is in the catalogue and takes the node's attributes."""
    for node in graph.nodes():
        try:
            read_attrs(node.op, node.attrs)
        except UnknownOpError as error:
            yield node.id, str(error), "`graphspec ops` lists all ops"
        except ValidationError as error:
            yield node.id, first_of(error), "`graphspec ops` lists the attributes of all ops"


def every_op_has_inputs(graph: Graph) -> Violations:
    """Only the input reads nothing, and an output reads exactly one value."""
    for node in graph.nodes():
        count = len(graph.inputs(node.id))
        if (node.op == INPUT) != (count == 0):
            yield node.id, f"{node.op} reads {count} values", "connect it or remove it"
        if node.op == OUTPUT and count > 1:
            yield node.id, f"the output reads {count} values", "merge them first"


def output_edge_has_no_gate(graph: Graph) -> Violations:
    """The edge into an output carries no gate: scaling the logits is no choice of architecture."""
    for edge in (edge for node in graph.outputs().values() for edge in graph.inputs(node.id)):
        if edge.gate is not None:
            yield edge.dst, f"gate {edge.gate!r} on the edge from {edge.src!r}", "put the gate further up"


def products_have_no_gates(graph: Graph) -> Violations:
    """No gate stands on an edge into a product: the product would be zero without it, not a product of the others."""
    for node in graph.nodes():
        gated = [edge for edge in graph.inputs(node.id) if edge.gate is not None]
        if gated and op(node.op).reads is Reads.TOGETHER:
            message = f"gate {gated[0].gate!r} on an input of {node.op}: closed, it makes the product zero"
            yield node.id, message, "put the gate behind the product, or on what its inputs read"


def every_node_on_a_path(graph: Graph) -> Violations:
    """Every node is reached from the input and reaches an output."""
    outputs = {node.id for node in graph.outputs().values()}
    read = outputs.union(*map(graph.ancestors, outputs))
    alive = graph.descendants(INPUT) & read | {INPUT}
    for node in graph.nodes():
        if node.id not in alive:
            yield node.id, "stands on no path from the input to an output", "connect it or remove it"


def every_type_known(graph: Graph) -> Violations:
    """Every node has a type."""
    for node in graph.nodes():
        if node.type is None:
            yield node.id, "has no type", "run infer-types"


def types_follow_the_ops(graph: Graph) -> Violations:
    """Every node's type is what its op gives for the types it reads."""
    for node in graph.nodes():
        if node.op == INPUT or node.type is None:
            continue
        types = [t for e in graph.inputs(node.id) if (t := graph.node(e.src).type) is not None]
        try:
            found = infer(node.op, node.attrs, types)
        except TypeMismatchError as error:
            yield node.id, str(error), "change the op's attributes or what it reads"
        else:
            if found != node.type:
                yield node.id, f"says {node.type}, its op gives {found}", "run infer-types"


def gates_are_scoped(graph: Graph) -> Violations:
    """A gate id is `<scope>/<name>`: the scope says which gate vector it belongs to."""
    for gate in graph.gates():
        scope, slash, name = gate.partition("/")
        if not (scope and slash and name):
            yield gate, "has no scope", "call it <scope>/<destination><<source>"


def gates_have_one_subject(graph: Graph) -> Violations:
    """A gate id stands for one subject: for edges, or for channels."""
    edges = set(graph.edge_gates())
    for node_id, ids in graph.channel_gates.items():
        for gate in edges.intersection(ids):
            yield node_id, f"its channels have the gate {gate!r}, which edges have", "give each subject its own gates"


def channel_gates_fit_their_nodes(graph: Graph) -> Violations:
    """Behind a node there is one gate, or none, for each of its channels."""
    for node_id, ids in graph.channel_gates.items():
        if node_id not in graph or graph.node(node_id).op in (INPUT, OUTPUT):
            yield node_id, "has gates on channels and is no op's node", "name the nodes they stand behind"
        elif (kind := graph.node(node_id).type) is not None and len(ids) != kind.shape[0]:
            yield (
                node_id,
                f"has {kind.shape[0]} channels and {len(ids)} gates on them",
                "give each channel one, or none",
            )


def closed_channels_are_zeros(graph: Graph) -> Violations:
    """Channels with gates may go, and behind every node that must give zeros for a closed one stand its gates.

    A node that reads nothing else than channels of one class goes with them.
    """
    if not graph.channel_gates:
        return
    coupling = couple(graph)
    if FIXED in coupling.gates:
        gate = min(coupling.gates[FIXED])
        yield gate, "stands on a channel that has to stay", "an image, an output or an op that mixes channels needs it"
    for node_id in coupling.places:
        ids: tuple[str | None, ...] = graph.channel_gates.get(node_id, (None,) * graph.node(node_id).shape[0])
        for channel, (found, behind) in enumerate(zip(coupling.of(node_id), ids, strict=True)):
            lone = {*coupling.steps[node_id][0]} == {found}
            if found in coupling.gates and behind not in coupling.gates[found] and not lone:
                yield node_id, f"gives something else than zero in channel {channel} where it is closed", "gate it here"


def choices_are_between_gates(graph: Graph) -> Violations:
    """The alternatives of a choice are gates of one subject, each in no other choice, and one or more may stay."""
    edges = set(graph.edge_gates())
    subjects = {gate: Subject.EDGE if gate in edges else Subject.CHANNELS for gate in graph.gates()}
    chosen: set[str] = set()
    for choice in graph.choices:
        unknown = [gate for gate in choice.gates if gate not in subjects]
        if unknown or not choice.gates:
            yield choice.id, f"has no gate {unknown[0]!r}" if unknown else "has no gates", "name gates of the graph"
        elif len({subjects[gate] for gate in choice.gates}) > 1:
            yield choice.id, "has gates of several subjects", "make one choice for each subject"
        if chosen.intersection(choice.gates) or len(set(choice.gates)) < len(choice.gates):
            yield choice.id, "names a gate a second time", "a gate is in one choice at most"
        if choice.most is not None and choice.most < 1:
            yield choice.id, f"lets {choice.most} alternatives stay", "let at least 1 stay"
        chosen.update(choice.gates)


def no_gates_left(graph: Graph) -> Violations:
    """A compact graph carries no gate."""
    for gate in graph.gates():
        yield gate, "is still there", "run prune-zero-edges and drop-gates (or fold-gates)"


STRUCTURE: tuple[Rule, ...] = (
    graph_is_acyclic,
    one_input_and_a_main_output,
    outputs_have_names,
    ids_are_module_paths,
    ops_are_known,
    every_op_has_inputs,
    output_edge_has_no_gate,
    products_have_no_gates,
    gates_are_scoped,
    gates_have_one_subject,
    channel_gates_fit_their_nodes,
    choices_are_between_gates,
)
TYPED: tuple[Rule, ...] = (
    *STRUCTURE,
    every_node_on_a_path,
    every_type_known,
    types_follow_the_ops,
    closed_channels_are_zeros,
)
RULES: dict[Phase, tuple[Rule, ...]] = {
    Phase.RAW: STRUCTURE,
    Phase.SEARCH: TYPED,
    Phase.COMPACT: (*TYPED, no_gates_left),
}


def violations(graph: Graph, phase: Phase | None = None) -> list[RuleError]:
    """Every violation of the first broken rule of the phase (the graph's own by default), in the order of the table."""
    for rule in RULES[phase or graph.phase]:
        if found := [RuleError(rule.__name__, *violation) for violation in rule(graph)]:
            return found  # later rules may rely on earlier ones
    return []


def verify(graph: Graph, phase: Phase | None = None) -> None:
    """Raise the first violation of the phase's rules as a RuleError."""
    for error in violations(graph, phase):
        raise error


def rule_records() -> list[tuple[str, list[Phase], str]]:
    """Every rule once: its name, the phases it holds in and its explanation."""
    phases = {
        rule: [phase for phase, rules in RULES.items() if rule in rules] for rules in RULES.values() for rule in rules
    }
    return [(rule.__name__, held, " ".join((rule.__doc__ or "").split())) for rule, held in phases.items()]
