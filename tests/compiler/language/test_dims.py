from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.language.dims import BlockType, Dim, DimError


@pytest.mark.parametrize(
    ("text", "size"),
    [("2*C", 14), ("C/2", 4), ("C//2", 3), ("C+1", 8), ("10-C", 3), ("(C+1)*2", 16), ("-C+9", 2), ("C", 7), ("12", 12)],
)
def test_sizes_round_as_stride_2_does(text: str, size: int) -> None:
    assert Dim.parse(text).evaluate({"C": 7}) == size


@pytest.mark.parametrize(
    "text", ["", "C**2", "f(C)", "C.x", "1.5", "C if C else 1", "[C]", "C C", "C%2", "True", "'C'", "9" * 30, "C" * 300]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(DimError):
        Dim.parse(text)


@pytest.mark.parametrize("text", ["C/0", "C//(C-7)", "K", "C*1000000000000"])
def test_what_has_no_value(text: str) -> None:
    with pytest.raises(DimError):
        Dim.parse(text).evaluate({"C": 7})


@given(st.integers(1, 1000), st.sampled_from(["C", "2*C", "C*3", "C+5", "C-5", "5-C", "4*C+1", "2*(C-1)", "-C"]))
@settings(max_examples=200)
def test_binding_inverts_evaluation(value: int, text: str) -> None:
    dim = Dim.parse(text)
    found: dict[str, int] = {}
    dim.bind(dim.evaluate({"C": value}), found)
    assert found == {"C": value}


@pytest.mark.parametrize(("text", "size"), [("2*C", 7), ("C/2", 4), ("C*D", 6), ("8", 7), ("C-C", 0)])
def test_sizes_that_cannot_be_solved(text: str, size: int) -> None:
    with pytest.raises(DimError):
        Dim.parse(text).bind(size, {})


def test_block_types() -> None:
    found = BlockType.parse(" [C, H, W] , [B, 2*H, W]->[ 2*C , H/2, W//2 ] ")
    assert str(found) == "[C, H, W], [B, 2*H, W] -> [2*C, H/2, W//2]"
    assert len(found.inputs) == 2


@pytest.mark.parametrize(
    "text", ["[C]", "[C] -> ", "C -> C", "[] -> [C]", "[C] -> [C], [C]", "[[C]] -> [C]", "[C,] -> [C]"]
)
def test_what_is_no_type(text: str) -> None:
    with pytest.raises(DimError):
        BlockType.parse(text)
