"""Norms and activations that follow an op become attributes of its node, as people write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from compiler.errors import GraphspecError
from compiler.importing.calls import UNFINISHED, Array, Call, Network
from compiler.ir.graph import attrs_of
from compiler.ops import op, parts, read_attrs
from compiler.ops.attributes import Activation

NORMS = ("batch_norm", "group_norm", "instance_norm", "layer_norm")
ACTS = frozenset(get_args(Activation)) - {"none"}


def fused(network: Network) -> Network:
    """The network with every chain of op, batch norm and activation as one call, where each is read by the next alone.

    A call takes the path of its op, or that of the module which holds the whole chain and nothing else.
    """
    if not network.calls:
        raise GraphspecError("the network computes nothing\n  try: one with an op between its input and its output")
    return _merged(_merged(_shortened(network), _rescaled), _finished)


def _shortened(network: Network) -> Network:
    """The network without what all paths begin with, and without the function's name where a module calls only it."""
    paths = [call.path for call in network.calls.values()]
    ends = list(zip(min(paths)[:-1], max(paths)[:-1], strict=False))
    common = next((i for i, (first, last) in enumerate(ends) if first != last), len(ends))
    below = Counter(path[:depth] for path in paths for depth in range(len(path)))
    calls = {}
    for key, call in network.calls.items():
        alone = len(call.path) > common + 1 and call.path[-1].endswith("()") and below[call.path[:-1]] == 1
        calls[key] = replace(call, path=call.path[common : -1 if alone else None])
    return Network(network.input, calls, network.output, network.end)


def _merged(network: Network, rule: Callable[[Call, Call], Call | None]) -> Network:
    """The network with one call for two where the rule gives one for them, and nothing else reads the first."""
    readers, calls = network.readers, dict(network.calls)
    last: dict[str, str] = {}  # call -> the last of those that became part of it
    home: dict[str, str] = {}  # a call that became part of another -> that one
    held: dict[str, list[tuple[str, ...]]] = {}  # call -> paths of all that it does
    for key, call in network.calls.items():
        call = calls[key] = replace(call, inputs=[home.get(source, source) for source in call.inputs])
        source = call.inputs[0]
        if source not in calls or len(call.inputs) > 1 or len(readers[last.get(source, source)]) > 1:
            continue
        if (both := rule(calls[source], call)) is not None:
            held.setdefault(source, [calls[source].path]).append(call.path)
            calls[source], last[source], home[key] = both, key, source
            del calls[key]
    paths = [call.path for call in network.calls.values()]
    for key, own in held.items():
        calls[key].path = _home(own, paths)
    return Network(network.input, calls, home.get(network.output, network.output), network.end)


def _finished(before: Call, call: Call) -> Call | None:
    """An op and the norm or activation after it."""
    known, attrs = op(before.op).attrs.model_fields, before.attrs
    if attrs.get("act", "none") != "none" or "act" not in known:
        return None
    if call.op == "batch_norm" and "norm" in known and attrs.get("norm") == "none" and call.attrs["act"] == "none":
        attrs = attrs | {"norm": "batch", "eps": call.attrs["eps"], "momentum": call.attrs["momentum"]}
    elif call.op in ACTS and read_attrs(call.op, attrs_of(call.attrs)) == op(call.op).attrs():
        attrs = attrs | {"act": call.op}
    else:
        return None
    return replace(before, attrs=attrs, shape=call.shape, weights=_renamed(before, attrs, call))


def _rescaled(before: Call, call: Call) -> Call | None:
    """A norm, or constants for each channel, and constants for each channel after it."""
    norms = before.op in NORMS and before.attrs.get("act", "none") == "none"
    if not _is_affine(call) or not (norms or _is_affine(before)):
        return None
    factor = call.weights["weight"].reshape(-1)
    shift = before.weights.get("bias", np.zeros_like(factor)) * factor + call.weights.get("bias", np.zeros_like(factor))
    weight = before.weights["weight"] * factor.reshape(-1, *[1] * (before.weights["weight"].ndim - 1))
    attrs = before.attrs if norms else before.attrs | {"bias": True}
    return replace(before, attrs=attrs, weights=before.weights | {"weight": weight, "bias": shift})


def _is_affine(call: Call) -> bool:
    """Whether a call multiplies channels by constants and adds others."""
    return call.op == "depthwise_conv" and call.attrs == UNFINISHED | {"kernel": 1, "bias": call.attrs["bias"]}


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
