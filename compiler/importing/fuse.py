"""Norms and activations that follow an op become attributes of its node, as people write it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from compiler.importing.calls import Array, Call, Network
from compiler.ir.graph import attrs_of
from compiler.ops import op, parts, read_attrs
from compiler.ops.attributes import Activation

ACTS = frozenset(get_args(Activation)) - {"none"}


def fused(network: Network) -> Network:
    """The network with every chain of op, batch norm and activation as one call, where each is read by the next alone.

    A call takes the path of its op, or that of the module which holds the whole chain and nothing else.
    """
    readers = network.readers()
    calls = dict(network.calls)
    moved: dict[str, str] = {}  # keys of calls that became part of another -> that one
    held: dict[str, list[tuple[str, ...]]] = {}  # key -> paths of what was fused into it
    for key, call in network.calls.items():
        call.inputs = [moved.get(source, source) for source in call.inputs]
        source = call.inputs[0] if len(call.inputs) == 1 else ""
        before = calls.get(source)
        end = network.calls[key].inputs[0] if before else ""
        if before is None or any(len(readers[one]) != 1 for one in _chain(moved, source)) or not end:
            continue
        attrs = _followed_by(before, call)
        if attrs is None:
            continue
        calls[source] = replace(before, attrs=attrs, shape=call.shape, weights=_renamed(before, attrs, call))
        held.setdefault(source, [before.path]).append(call.path)
        moved[key] = source
        del calls[key]
    paths = [call.path for call in network.calls.values()]
    for key, own in held.items():
        calls[key].path = _home(own, paths)
    return Network(network.input, calls, moved.get(network.output, network.output), network.notes)


def _chain(moved: dict[str, str], key: str) -> list[str]:
    """A call and all that was fused into it."""
    return [key, *(part for part, whole in moved.items() if whole == key)]


def _followed_by(before: Call, call: Call) -> dict[str, Any] | None:
    """The attributes of a node that does both; None if there is no such node."""
    known, attrs = op(before.op).attrs.model_fields, before.attrs
    if attrs.get("act", "none") != "none" or "act" not in known:
        return None
    if call.op == "batch_norm" and "norm" in known and attrs.get("norm") == "none" and call.attrs["act"] == "none":
        return attrs | {"norm": "batch", "eps": call.attrs["eps"], "momentum": call.attrs["momentum"]}
    if call.op in ACTS and read_attrs(call.op, attrs_of(call.attrs)) == op(call.op).attrs():
        return attrs | {"act": call.op}
    return None


def _renamed(before: Call, attrs: dict[str, Any], call: Call) -> dict[str, Array]:
    """The weights of both, called `<step>.<param>`."""
    steps = [step.name for step in parts(before.op, attrs_of(attrs))]
    first = f"{steps[0]}." if not parts(before.op, attrs_of(before.attrs)) else ""
    found = {f"{first}{name}": array for name, array in before.weights.items()}
    return found | {f"{steps[-1]}.{name}": array for name, array in call.weights.items()}


def _home(own: list[tuple[str, ...]], paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The module that makes these calls and no others; else the place of the first."""
    common = own[0]
    while any(path[: len(common)] != common for path in own):
        common = common[:-1]
    return common if common and sum(path[: len(common)] == common for path in paths) == len(own) else own[0]
