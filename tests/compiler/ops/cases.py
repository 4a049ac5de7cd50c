"""Every op in the forms that its attributes give it, on shapes that tell its traits apart; and ops of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from compiler.ir.graph import INPUT, Attrs, Graph, TensorType, attrs_of
from compiler.ops import (
    IDENTITY,
    Affine,
    Channels,
    Numbers,
    Op,
    OpAttrs,
    Pixels,
    Reads,
    Shape,
    Step,
    Traits,
    Values,
    infer,
    known_ops,
    op,
    read_attrs,
    tensors,
)
from compiler.ops.attributes import step
from tests import interpreter
from tests.graphs import graph_of

IMAGE, OTHER, VECTOR, DOT, SIGNAL = (4, 6, 5), (2, 6, 5), (8,), (4, 1, 1), (4, 9)
ACTIVATIONS = (
    "relu", "relu6", "hard_swish", "silu", "gelu", "sigmoid", "hard_sigmoid", "tanh", "leaky_relu", "elu", "prelu",
)  # fmt: skip
BARE = {"norm": "none", "act": "none"}


@dataclass(frozen=True)
class Case:
    """A primitive op, its attributes and the shapes it reads."""

    op: str
    attrs: Attrs
    shapes: tuple[Shape, ...]

    def __str__(self) -> str:
        return " ".join([self.op, *(f"{key}={value}" for key, value in self.attrs), *(f"{s[0]}" for s in self.shapes)])

    @property
    def out(self) -> Shape:
        """The shape of the value."""
        return infer(self.op, self.attrs, [TensorType(shape) for shape in self.shapes]).shape

    def inputs(self, seed: int = 0) -> list[Tensor]:
        """Values of both signs, far enough from zero to leave every activation's linear part."""
        generator = torch.Generator().manual_seed(seed)
        return [4 * torch.randn(12, *shape, generator=generator, dtype=torch.float64) for shape in self.shapes]

    def weights(self, seed: int = 1) -> dict[str, Tensor]:
        """Tensors of both signs; variances are positive."""
        rng = np.random.default_rng(seed)
        found = tensors(self.op, self.attrs, self.shapes)
        made = {name: torch.from_numpy(rng.standard_normal(s)) for name, s in (found.params | found.buffers).items()}
        return {name: value.abs() + 0.5 if name.endswith("var") else value for name, value in made.items()}

    def apply(self, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
        """What the op makes of values `(N, C, ...)`, by its definition."""
        return interpreter.MEANING[self.op](read_attrs(self.op, self.attrs), inputs, weights)


def case(op: str, *shapes: Shape, **attrs: Any) -> Case:
    return Case(op, attrs_of(attrs), shapes or (IMAGE,))


# -- ops of one's own -------------------------------------------------------------------------------------------------


class GainAttrs(OpAttrs):
    """Every channel times a trained number."""

    bias: bool = False
    """Also add one."""


class BlendAttrs(OpAttrs):
    """A trained matrix over the channels of every pixel."""

    channels: int | None = None
    """Channels given."""
    bias: bool = False
    """Also add a trained number per channel."""


class ThenAttrs(OpAttrs):
    """A convolution, then an op without attributes."""

    then: str
    """The op."""


class GatherAttrs(OpAttrs):
    """The inputs joined, blended, rectified."""

    channels: int | None = None
    """Channels given."""


def _gain_params(a: Any, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    return {"weight": (out[0],)} | ({"bias": (out[0],)} if a.bias else {})


def _blend_params(a: Any, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    return {"weight": (out[0], ins[0][0], 1, 1)} | ({"bias": (out[0],)} if a.bias else {})


def _affine(a: Any, channels: Channels) -> Traits:
    homogeneous = Numbers.NONE if a.bias else Numbers.ALL
    return Traits(affine=Affine.WEIGHT, homogeneous=homogeneous, channels=channels, pixels=Pixels.KEPT)


CUSTOM = (
    Op(
        "gain", "channels times numbers", GainAttrs, infer=lambda a, ins: ins[0], params=_gain_params,
        traits=lambda a: _affine(a, Channels.KEPT), torch=f"{__name__}:build",
    ),
    Op(
        "absolute", "absolute values", infer=lambda a, ins: ins[0], torch=f"{__name__}:build_absolute",
        traits=Traits(
            homogeneous=Numbers.NONNEGATIVE, unchanged=Numbers.NONNEGATIVE, values=Values.NONNEGATIVE,
            channels=Channels.KEPT, pixels=Pixels.KEPT,
        ),
    ),
    Op(
        "blend", "a matrix over channels", BlendAttrs, infer=lambda a, ins: (a.channels or ins[0][0], *ins[0][1:]),
        params=_blend_params, traits=lambda a: _affine(a, Channels.MIXED), sets_channels=True,
        torch=f"{__name__}:build",
    ),
    Op("silent", "says nothing about itself", infer=lambda a, ins: ins[0], torch=f"{__name__}:build_silent"),
    Op(
        "gather", "joined, blended, rectified", GatherAttrs, reads=Reads.APART, sets_channels=True,
        parts=lambda a: (Step("join", "concat"), step("mix", "blend", channels=a.channels), Step("act", "relu")),
    ),
    Op(
        "conv_then", "convolution, then another op", ThenAttrs,
        parts=lambda a: (step("conv", "conv", kernel=3, bias=False, norm="none", act="none"), Step("then", a.then)),
    ),
    Op("pass_on", "its input", infer=lambda a, ins: ins[0], traits=IDENTITY, torch=f"{__name__}:build_identity"),
)  # fmt: skip


class _Affine(nn.Module):
    """`weight` and `bias` over the channels of `(N, C, ...)`: one number each, or a matrix."""

    def __init__(self, weight: Shape, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(weight))
        self.register_parameter("bias", nn.Parameter(torch.zeros(weight[0])) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return _affine_map(x, self.weight, self.bias)


def _affine_map(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    wide = (-1, *[1] * (x.dim() - 2))
    mixed = x * weight.view(wide) if weight.dim() == 1 else torch.einsum("oi,ni...->no...", weight[:, :, 0, 0], x)
    return mixed if bias is None else mixed + bias.view(wide)


def build(attrs: Any, inputs: tuple[Shape, ...], out: Shape) -> nn.Module:
    weight = (out[0],) if isinstance(attrs, GainAttrs) else (out[0], inputs[0][0], 1, 1)
    return _Affine(weight, attrs.bias)


class _Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class _Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


def build_absolute(attrs: Any, inputs: tuple[Shape, ...], out: Shape) -> nn.Module:
    return _Absolute()


def build_silent(attrs: Any, inputs: tuple[Shape, ...], out: Shape) -> nn.Module:
    return _Silent()


def build_identity(attrs: Any, inputs: tuple[Shape, ...], out: Shape) -> nn.Module:
    return nn.Identity()


MEANING: dict[str, Any] = {
    "gain": lambda a, ins, p: _affine_map(ins[0], p["weight"], p.get("bias")),
    "blend": lambda a, ins, p: _affine_map(ins[0], p["weight"], p.get("bias")),
    "absolute": lambda a, ins, p: ins[0].abs(),
    "silent": lambda a, ins, p: 0.5 * ins[0],
    "pass_on": lambda a, ins, p: ins[0],
}


@contextmanager
def custom_ops() -> Iterator[None]:
    """The catalogue with the ops above, and the interpreter with what they compute."""
    rows = {row.name: row for row in CUSTOM}
    with patch.dict(known_ops(), rows), patch.dict(interpreter.MEANING, MEANING):
        yield


# -- cases ------------------------------------------------------------------------------------------------------------

PRIMITIVE = (
    case("conv", kernel=3, **BARE),
    case("conv", kernel=3, padding=0, channels=6, bias=False, **BARE),
    case("conv", kernel=1, bias=False, **BARE),
    case("conv", kernel=1, stride=2, bias=True, **BARE),
    case("conv", kernel=3, groups=2, bias=False, **BARE),
    case("depthwise_conv", kernel=3, bias=False, **BARE),
    case("depthwise_conv", kernel=2, padding=0, **BARE),
    case("depthwise_conv", kernel=1, bias=False, **BARE),
    case("conv", kernel=[1, 3], padding=[0, [2, 1]], **BARE),
    case("conv", SIGNAL, kernel=3, channels=6, **BARE),
    case("depthwise_conv", kernel=[3, 1], **BARE),
    case("depthwise_conv", SIGNAL, kernel=3, padding=0, bias=False, **BARE),
    case("conv_transpose", kernel=2, stride=2, channels=6, **BARE),
    case("conv_transpose", kernel=3, groups=2, bias=False, **BARE),
    case("conv_transpose", SIGNAL, kernel=3, stride=2, output_padding=1, **BARE),
    case("linear", VECTOR, channels=3),
    case("linear", DOT, channels=8, bias=False),
    case("batch_norm"),
    case("batch_norm", VECTOR),
    case("layer_norm"),
    case("layer_norm", over="channels"),
    case("layer_norm", SIGNAL, over="channels"),
    case("group_norm", groups=2),
    case("group_norm", SIGNAL, groups=2),
    case("instance_norm"),
    case("lrn", size=3, alpha=0.5),
    case("multiply", IMAGE, IMAGE),
    case("multiply", IMAGE, DOT, (4,)),
    case("multiply", (4, 1), SIGNAL),
    case("softmax"),
    case("softmax", VECTOR),
    case("channel_shuffle", groups=2),
    case("channel_shuffle", VECTOR, groups=4),
    case("slice", stop=3),
    case("slice", SIGNAL, start=1, stop=3),
    case("pad", padding=1),
    case("pad", padding=[[0, 2], 1], mode="edge"),
    case("pad", SIGNAL, padding=2, mode="reflect"),
    case("pad", padding=[[1, -1], [1, -1]]),  # the pixels move, the shape stays
    case("pad", padding=[[0, -1], -1]),
    case("resize", scale=2),
    case("resize", size=[4, 7], mode="bilinear"),
    case("resize", SIGNAL, size=4),
    case("squeeze_excite", reduction=2),
    case("squeeze_excite", SIGNAL, reduction=2),
    case("max_pool", kernel=3),
    case("max_pool", kernel=1),
    case("max_pool", kernel=1, stride=2),
    case("max_pool", kernel=2, stride=2, padding=1),
    case("avg_pool", kernel=3),
    case("avg_pool", kernel=1),
    case("avg_pool", kernel=1, stride=2),
    case("avg_pool", kernel=2, stride=2),
    case("max_pool", SIGNAL, kernel=3, stride=2, padding=[[0, 1]]),
    case("max_pool", kernel=3, stride=2, padding=0, ceil_mode=True),
    case("avg_pool", SIGNAL, kernel=3),
    case("avg_pool", kernel=[3, 1], ceil_mode=True, stride=2),
    case("avg_pool", kernel=3, count_include_pad=True),
    case("avg_pool", kernel=3, padding=0, count_include_pad=True),
    case("adaptive_avg_pool", size=2),
    case("adaptive_avg_pool", SIGNAL, size=4),
    case("global_avg_pool"),
    case("global_avg_pool", SIGNAL),
    case("global_max_pool", (4, 2, 1)),
    case("global_max_pool", (4, 2)),
    case("mean", dims=(2, 3)),
    case("mean", DOT, dims=(2, 3), keep=True),
    case("mean", dims=(3,), keep=True),
    case("mean", dims=(1,)),
    case("mean", dims=(1, 2, 3)),
    case("flatten"),
    case("flatten", VECTOR),
    case("identity"),
    case("add"),
    case("concat"),
    case("concat", IMAGE, OTHER),
    *(case(name, shape) for name in ACTIVATIONS for shape in (IMAGE, VECTOR)),
    case("scale", factor=2.0),
    case("scale", factor=-0.5),
    case("scale", factor=1.0),
    case("scale", factor=0.0),
    case("zero"),
    case("zero", channels=3),
    case("dropout", p=0.5),
    case("drop_path", p=0.5),
    case("gain"),
    case("gain", VECTOR, bias=True),
    case("blend", channels=3),
    case("blend", bias=True),
    case("absolute"),
    case("pass_on"),
)  # fmt: skip

# Every op again, as it stands in a network: with what follows it by default, and between images of one size.
IN_NETWORKS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((c.op, dict(c.attrs)) for c in PRIMITIVE if c.shapes[0] == IMAGE),
    ("conv", {"kernel": 3}),
    ("conv", {"kernel": 3, "groups": 2}),
    ("conv", {"kernel": 3, "norm": "none"}),
    ("conv", {"kernel": 3, "act": "silu"}),
    ("depthwise_conv", {"kernel": 3}),
    ("sep_conv", {"kernel": 3}),
    ("project", {}),
    ("project", {**BARE, "channels": 6}),
    ("max_pool", {"kernel": 3, "norm": "batch", "act": "relu"}),
    ("avg_pool", {"kernel": 3, "norm": "batch"}),
    ("add", {"act": "relu"}),
    ("add", {"norm": "batch"}),
    ("concat", {"act": "relu6"}),
    ("concat", {"norm": "batch", "act": "relu"}),
    ("batch_norm", {"act": "relu"}),
    ("linear", {"channels": 5}),
    ("linear", {"channels": 5, "norm": "batch", "act": "relu"}),
    ("global_max_pool", {}),
    ("silent", {}),
    ("gather", {"channels": 4}),
    ("conv_then", {"then": "absolute"}),
    ("conv_then", {"then": "batch_norm"}),
)


def network(name: str, attrs: dict[str, Any]) -> Graph:
    """The op between gates, behind a join that may lose an input, before a batch norm and a layer without padding."""
    nodes: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
        f"stem{i}": ("conv", {"kernel": 3, "channels": channels, "norm": "none", "act": "none"}, [INPUT])
        for i, channels in enumerate((2, 4, 2, 4))
    }
    nodes["normed"] = ("batch_norm", {}, ["stem1"])
    nodes["joined"] = ("concat", {}, [("stem0", "g/joined<0"), ("stem2", "g/joined<2")])
    nodes["summed"] = ("add", {}, [("normed", "g/summed<n"), ("stem3", "g/summed<3"), ("joined", "g/summed<j")])
    if name == "linear":
        nodes["pooled"] = ("global_avg_pool", {}, ["summed"])
        nodes["it"] = (name, attrs, [("pooled", "g/it<b")])
    else:
        gated = op(name).reads is not Reads.TOGETHER
        sources, gates = ("summed", "joined"), ("g/it<b", "g/it<j")
        nodes["it"] = (name, attrs, [(s, g) if gated else s for s, g in zip(sources, gates, strict=True)])
    if len(graph_of(nodes).node("it").shape) == 3:
        nodes["after"] = ("batch_norm", {}, [("it", "g/after<it")])
        nodes["valid"] = ("conv", {"kernel": 1, "padding": 0, "channels": 4, "norm": "none"}, ["after"])
        nodes["pool"] = ("global_avg_pool", {}, ["valid"])
    else:
        nodes["flat"] = ("flatten", {}, [("it", "g/flat<it")])
        nodes["pool"] = ("batch_norm", {}, ["flat"])
    nodes["logits"] = ("linear", {"channels": 3}, ["pool"])
    return graph_of(nodes)
