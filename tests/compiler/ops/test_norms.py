"""Norms of single numbers, which are zero whatever comes in, are refused."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import ops
from compiler.ir.graph import TensorType
from compiler.ops import Shape


@pytest.mark.parametrize(
    ("op", "attrs", "shape", "is_fine"),
    [
        ("layer_norm", {}, (1, 1, 1), False),
        ("layer_norm", {}, (1,), False),
        ("layer_norm", {}, (1, 2, 1), True),
        ("layer_norm", {}, (2,), True),
        ("layer_norm", {"over": "channels"}, (1, 8, 8), False),
        ("layer_norm", {"over": "channels"}, (2, 8, 8), True),
        ("group_norm", {"groups": 4}, (4, 1, 1), False),
        ("group_norm", {"groups": 2}, (4, 1, 1), True),
        ("instance_norm", {}, (4, 1, 1), False),
        ("instance_norm", {}, (4, 1, 2), True),
    ],
)
def test_a_norm_of_single_numbers_is_refused(op: str, attrs: dict[str, Any], shape: Shape, is_fine: bool) -> None:
    attributes = tuple(attrs.items())
    if is_fine:
        assert ops.infer(op, attributes, [TensorType(shape)]).shape == shape
        return
    with pytest.raises(ops.TypeMismatchError, match="of single numbers"):
        ops.infer(op, attributes, [TensorType(shape)])
