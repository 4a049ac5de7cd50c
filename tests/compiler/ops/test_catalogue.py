"""The catalogue: every op's shapes as torch computes them, its attributes' messages, and that its rows are complete."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from compiler.docstrings import attribute_docstrings
from compiler.ir.graph import TensorType, attrs_of
from compiler.lowering.onnx.nodes import ONNX
from compiler.lowering.torch.modules import TORCH
from compiler.ops import (
    Op,
    OpAttrs,
    Reads,
    TypeMismatchError,
    UnknownOpError,
    explain_attr_errors,
    infer,
    known_ops,
    op,
    parts,
    register,
    steps,
    tensors,
)
from graphspec.cli.listings import op_listing, op_records

WINDOWED = ("conv", "depthwise_conv", "conv_transpose", "sep_conv", "max_pool", "avg_pool")
REQUIRED: dict[str, dict[str, Any]] = {
    **{name: {"kernel": 3} for name in WINDOWED},
    "adaptive_avg_pool": {"size": 2},
    "group_norm": {"groups": 2},
    "channel_shuffle": {"groups": 2},
    "slice": {"stop": 2},
    "pad": {"padding": 1},
    "resize": {"scale": 2},
    "mean": {"dims": (2, 3)},
    "scale": {"factor": 2.0},
}
NAMES = [name for name in known_ops() if name not in ("input", "output")]


def shape(name: str, *inputs: tuple[int, ...], **attrs: Any) -> tuple[int, ...]:
    return infer(name, attrs_of(attrs), [TensorType(i) for i in inputs]).shape


def test_every_op_has_all_its_rows() -> None:
    for name in NAMES:
        for step in steps(name, attrs_of(REQUIRED.get(name, {}))):
            assert op(step.op).infer is not None, f"{step.op} has no shape rule"
        assert op(name).doc, f"{name} has no words"
        documented = attribute_docstrings(op(name).attrs)
        for attr in op(name).attrs.model_fields:
            assert documented.get(attr), f"the attribute {attr} of {name} has no docstring"
    primitive = {name for name in NAMES if op(name).infer is not None}
    assert set(TORCH) == primitive, "the rows for torch are not those of the ops with a shape rule"
    assert set(ONNX) == primitive, "the rows for ONNX are not those of the ops with a shape rule"


sizes = st.integers(1, 40)


@settings(max_examples=200)
@given(sizes, sizes, st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.none() | st.integers(0, 6))
def test_windows_have_the_size_that_torch_gives(
    height: int, width: int, kernel: int, stride: int, dilation: int, padding: int | None
) -> None:
    attrs = {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}
    pad = dilation * (kernel - 1) // 2 if padding is None else padding
    module = nn.Conv2d(1, 1, kernel, stride, pad, dilation)
    try:
        expected = tuple(module(torch.zeros(1, 1, height, width)).shape[1:])
    except RuntimeError:
        with pytest.raises(TypeMismatchError, match=f"kernel {kernel} does not fit into {height}x{width}"):
            shape("conv", (1, height, width), **attrs)
    else:
        for name in ("conv", "depthwise_conv", "sep_conv"):
            assert shape(name, (1, height, width), **attrs) == expected


@settings(max_examples=100)
@given(sizes, st.integers(1, 7), st.integers(1, 4), st.none() | st.integers(0, 3))
def test_pools_have_the_size_that_torch_gives(size: int, kernel: int, stride: int, padding: int | None) -> None:
    pad = (kernel - 1) // 2 if padding is None else padding
    for name, module in (("max_pool", nn.MaxPool2d), ("avg_pool", nn.AvgPool2d)):
        try:
            expected = tuple(module(kernel, stride, pad)(torch.zeros(1, 2, size, size)).shape[1:])
        except RuntimeError:
            with pytest.raises(TypeMismatchError):
                shape(name, (2, size, size), kernel=kernel, stride=stride, padding=padding)
        else:
            assert shape(name, (2, size, size), kernel=kernel, stride=stride, padding=padding) == expected


@given(sizes, sizes, st.sampled_from([1, 3, 5, 7]), st.integers(1, 9))
def test_dilated_pools_of_odd_kernels_keep_their_size(height: int, width: int, kernel: int, dilation: int) -> None:
    for name in ("max_pool", "avg_pool"):
        assert shape(name, (2, height, width), kernel=kernel, dilation=dilation) == (2, height, width)


@pytest.mark.parametrize(
    ("name", "attrs", "inputs", "message"),
    [
        ("relu", {}, [(3, 4, 4), (3, 4, 5)], "relu adds its inputs, which must have one type; found 3x4x4 and 3x4x5"),
        ("concat", {}, [(3, 4, 4), (3, 2, 4)], "concat joins channels, so all other sizes must agree"),
        ("project", {}, [(3, 4, 4), (3, 2, 4)], "concat joins channels"),
        ("conv", {"kernel": 3}, [(9,)], r"conv takes an image \[C, H, W\] or a signal \[C, T\], found \[9\]"),
        ("conv", {"kernel": 3, "groups": 2}, [(3, 4, 4)], "groups 2 needs input channels divisible by it, found 3"),
        (
            "conv",
            {"kernel": 1, "groups": 2, "channels": 3},
            [(4, 4, 4)],
            "needs output channels divisible by it, found 3",
        ),
        ("linear", {}, [(3, 2, 2)], "linear takes a vector"),
        (
            "max_pool",
            {"kernel": 2, "padding": 2},
            [(3, 4, 4)],
            "outside of 4 pixels, on padding only: kernel 2, dilation 1, padding .2, 2.",
        ),
        ("max_pool", {"kernel": 2, "padding": 1, "dilation": 2}, [(3, 1, 1)], "outside of 1 pixels, on padding only"),
        ("conv", {"kernel": [1, 3]}, [(3, 9)], "kernel has 2 numbers for a value of 1 axis$"),
        ("conv", {"kernel": 3, "padding": [1, 2]}, [(3, 9)], r"padding has 2 numbers .* are \[\[before, after\]\]"),
        ("channel_shuffle", {"groups": 3}, [(8, 4, 4)], "channels divisible by it, found 8$"),
        ("adaptive_avg_pool", {"size": [2, 2]}, [(3, 9)], "size has 2 numbers for a value of 1 axis"),
        ("conv_transpose", {"kernel": 3, "output_padding": 1}, [(3, 9)], "output_padding of less than its stride"),
        ("mean", {"dims": (2, 3)}, [(4,)], "a value with 1 dimensions besides the batch"),
        ("pad", {"padding": 4, "mode": "reflect"}, [(3, 4, 9)], "pad mirrors at most 3 of 4 pixels, found 4"),
        ("pad", {"padding": [[-1, -3], 0]}, [(3, 4, 9)], r"pad \[-1, -3\] cuts off all of 4 pixels"),
        ("pad", {"padding": [[-4, 9], 0]}, [(3, 4, 9)], r"pad \[-4, 9\] cuts off all of 4 pixels"),
        ("global_avg_pool", {}, [(4,)], "takes an image"),
        ("squeeze_excite", {}, [(4,)], "takes an image"),
    ],
)
def test_types_that_do_not_fit(name: str, attrs: dict[str, Any], inputs: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(TypeMismatchError, match=message):
        shape(name, *inputs, **attrs)


def test_shapes_of_ops_without_windows() -> None:
    assert shape("linear", (5,), channels=3) == (3,)
    assert shape("linear", (5, 1, 1)) == (5,)
    assert shape("flatten", (2, 3, 4)) == (24,)
    assert shape("concat", (2, 3, 3), (5, 3, 3)) == (7, 3, 3)
    assert shape("project", (2, 3, 3), (5, 3, 3), channels=6) == (6, 3, 3)
    assert shape("zero", (2, 3, 3), channels=4) == (4, 3, 3)
    assert shape("mean", (2, 3, 4), dims=(1,)) == (3, 4)
    assert shape("mean", (2, 3, 4), dims=(2, 3), keep=True) == (2, 1, 1)
    assert shape("mean", (2, 3, 4), dims=(1, 2, 3)) == (1,)


@pytest.mark.parametrize(
    ("name", "attrs", "attr", "message"),
    [
        ("conv", {}, "", "conv needs the attribute 'kernel'"),
        ("conv", {"kernl": 3}, "kernl", "unknown attribute 'kernl'; did you mean 'kernel'?"),
        ("relu", {"slope": 1}, "slope", "unknown attribute 'slope'; relu takes no attributes"),
        ("dropout", {"rate": 1}, "rate", "unknown attribute 'rate'; dropout takes p"),
        ("conv", {"kernel": 0}, "kernel", "kernel: "),
        ("conv", {"kernel": 2.5}, "kernel", "kernel: "),
        ("conv", {"kernel": True}, "kernel", "kernel: "),
        ("conv", {"kernel": 3, "act": "rleu"}, "act", "act: "),
        ("batch_norm", {"eps": float("nan")}, "eps", "eps: "),
        ("dropout", {"p": 1.0}, "p", "p: "),
        ("mean", {"dims": (0,)}, "dims", "dims: "),
        ("pad", {"padding": [[0, -1], 2], "mode": "edge"}, "", "pad: cuts pixels off with `mode: zeros` alone"),
    ],
)
def test_wrong_attributes_are_explained(name: str, attrs: dict[str, Any], attr: str, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        op(name).read_attrs(attrs)
    found = explain_attr_errors(name, raised.value)
    assert len(found) == 1
    assert found[0][0] == attr
    assert found[0][1].startswith(message)


def test_parts_of_a_node_follow_its_attributes() -> None:
    def names(name: str, **attrs: Any) -> list[str]:
        return [step.name for step in parts(name, attrs_of(attrs))]

    assert names("conv", kernel=3) == ["conv", "norm", "act"]
    assert names("conv", kernel=3, norm="none") == ["conv", "act"]
    assert names("conv", kernel=3, norm="none", act="none") == []
    assert names("sep_conv", kernel=3, act="none") == ["depthwise", "pointwise", "norm"]
    assert names("project", norm="none", act="none") == ["concat", "conv"]
    assert names("max_pool", kernel=3, norm="batch") == ["pool", "norm"]
    assert names("add", act="relu") == ["sum", "act"]
    assert names("linear") == []
    assert names("batch_norm", act="relu") == ["norm", "act"]


@pytest.mark.parametrize("bias", [None, True, False])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_bias_is_there_where_no_norm_follows_unless_said_otherwise(bias: bool | None, norm: str) -> None:
    found = tensors("conv", attrs_of({"kernel": 3, "norm": norm, "bias": bias}), ((4, 5, 5),)).params
    assert ("conv.bias" in found) == (bias if bias is not None else norm == "none")


def test_reading_of_inputs() -> None:
    assert {name for name, row in known_ops().items() if row.reads is Reads.APART} == {"concat", "project"}


def test_unknown_ops_are_named_with_a_suggestion() -> None:
    with pytest.raises(UnknownOpError, match="unknown op 'sep_cov'; did you mean 'sep_conv'"):
        op("sep_cov")


def test_a_name_is_registered_once() -> None:
    row = op("relu")
    register(row)  # the same row again is no mistake
    with pytest.raises(ValueError, match="an op called 'relu' is registered already"):
        register(Op("relu", "another", OpAttrs))
    assert op("relu") is row


def test_the_listing_has_every_op_and_attribute() -> None:
    listing = op_listing()
    for record in op_records():
        assert f"\n{record['name']} " in f"\n{listing}"
        for attr in record["attributes"]:
            assert f"    {attr['name']} " in listing
    assert "concat            inputs joined along the channels  (reads apart)" in listing
    assert "[required]" in listing
    assert [r["name"] for r in op_records()] == NAMES
