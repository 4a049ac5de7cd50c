"""Plain networks as specs: what a found network has to beat, for an input, so many classes and a limit.

Stem, number of stages and depth follow from the input; the widths are those of the reference below, which the limit
scales (`compiler.passes.widen`). Images `(C, H, W)` and signals `(C, T)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.errors import GraphspecError, did_you_mean
from compiler.language.layers import dump
from compiler.language.spec import LANGUAGE_VERSION, Spec

INVERTED = (16, 24, 32, 64, 96, 160, 320)  # channels of MobileNetV2 at the resolutions of an image of 224 pixels
RESIDUAL = (16, 32, 64, 128, 256)  # each resolution as expensive as the one before
STRIDED = 16  # pixels from which on the stem halves the image
LEAST = 4  # pixels of the last map, where the input has twice as many
ROUND_TO = 1  # widths are multiples of it: steps of 4 leave small networks up to 40 % below their limit
SECTIONS = ("seed", "task", "data", "retrain", "export")  # of a spec, that its plain networks take over
OF_THE_SPACE = ("from", "inherit", "distil")  # keys of `retrain` that mean nothing without a search
Nodes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Plain:
    """A family of plain networks."""

    inverted: bool  # bottlenecks of expansion 3 around a depthwise 3x3, else two 3x3 beside a shortcut
    last: int  # pixels of the last map at most
    strided: bool = True  # whether the stem may halve the image


PLAIN = {
    "inverted": Plain(inverted=True, last=8),
    "residual": Plain(inverted=False, last=8),
    "inverted_deep": Plain(inverted=True, last=4),
    "residual_deep": Plain(inverted=False, last=4),
    "residual_fine": Plain(inverted=False, last=8, strided=False),
}
DEFAULT = ("inverted", "residual")


def plain_spec(spec: Spec, name: str, limit: Mapping[str, int], epochs: int, seed: int) -> str:
    """A plain network for the data of a spec and trained by its settings of `retrain`, as YAML.

    `limit`: the largest `params`, `flops` or both. GraphspecError if there is no family of this name.
    """
    if name not in PLAIN:
        hint = did_you_mean(name, PLAIN) or f"; there are {', '.join(PLAIN)}"
        raise GraphspecError(f"no plain networks are called {name!r}{hint}")
    given = spec.root.plain()
    settings = {key: given[key] for key in SECTIONS if key in given}
    retrain = {key: value for key, value in (settings.get("retrain") or {}).items() if key not in OF_THE_SPACE}
    network = {"graphspec": LANGUAGE_VERSION, "name": name, **_network(PLAIN[name], spec.input, spec.classes)}
    trained = {"retrain": {**retrain, "epochs": epochs}, "budget": {**limit, "round_to": ROUND_TO}, "seed": seed}
    return dump({**network, **settings, **trained})


def _network(plain: Plain, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Input, classes, blocks and network of a spec."""
    widths, unit = (INVERTED, _bottleneck) if plain.inverted else (RESIDUAL, _pair)
    blocks, chain, width = dict[str, Any](), list[str](), 0
    for stage, stride in _steps(plain, min(shape[1:])):
        to = widths[min(stage, len(widths) - 1)]
        if not chain:
            name, made = "stem", _block(shape, shape[0], to, stride, {"out": _conv("in", to, stride=stride)})
        elif (to, stride) == (width, 1):
            name, made = "keep", _block(shape, "C", "C", 1, unit("C", 1, "in"))
        else:
            name, made = f"to_{to}", _block(shape, "C", to, stride, unit(to, stride, None))
        blocks[name], width = made, to
        chain.append(name)
    blocks["head"] = {"type": f"{_sizes('C', shape)} -> [classes]", "nodes": HEAD}
    return {"input": list(shape), "classes": classes, "blocks": blocks, "network": [*chain, "head"]}


def _steps(plain: Plain, side: int) -> Iterator[tuple[int, int]]:
    """Of the stem and every block behind it the stage, from 0 on, and the stride; `side` in pixels."""
    stage, stride = 0, 2 if plain.strided and side >= STRIDED else 1
    side = -(-side // stride)
    yield from ((0, stride), (0, 1))
    while side > plain.last or (stage == 0 and side >= 2 * LEAST):
        side, stage = -(-side // 2), stage + 1
        yield stage, 2
        if plain.inverted:
            yield stage, 1
    if plain.inverted:
        yield stage + 1, 1


def _block(shape: tuple[int, ...], inputs: int | str, outputs: int | str, stride: int, nodes: Nodes) -> dict[str, Any]:
    return {"type": f"{_sizes(inputs, shape)} -> {_sizes(outputs, shape, stride)}", "nodes": nodes}


def _sizes(channels: int | str, shape: tuple[int, ...], stride: int = 1) -> str:
    axes = "HW" if len(shape) == 3 else "T"
    return f"[{', '.join([str(channels), *(axis if stride == 1 else f'{axis}/{stride}' for axis in axes)])}]"


def _conv(source: str, channels: int | str, *, kernel: int = 3, **more: Any) -> dict[str, Any]:
    return {"op": "conv", "kernel": kernel, "channels": channels, **more, "from": source}


def _bottleneck(channels: int | str, stride: int, shortcut: str | None) -> Nodes:
    wide = {"wide": _conv("in", "3*C", kernel=1)}
    depth = {"deep": {"op": "depthwise_conv", "kernel": 3, "stride": stride, "from": "wide"}}
    narrow = _conv("deep", channels, kernel=1, act="none")
    if shortcut is None:
        return {**wide, **depth, "out": narrow}
    return {**wide, **depth, "narrow": narrow, "out": {"op": "add", "from": ["narrow", shortcut]}}


def _pair(channels: int | str, stride: int, shortcut: str | None) -> Nodes:
    first, second = _conv("in", channels, stride=stride), _conv("first", channels, act="none")
    beside = {} if shortcut else {"beside": _conv("in", channels, kernel=1, stride=stride, act="none")}
    out = {"op": "add", "act": "relu", "from": ["second", shortcut or "beside"]}
    return {"first": first, "second": second, **beside, "out": out}


HEAD: Nodes = {
    "norm": {"op": "batch_norm", "act": "relu", "from": "in"},
    "pool": {"op": "global_avg_pool", "from": "norm"},
    "out": {"op": "linear", "from": "pool"},
}
