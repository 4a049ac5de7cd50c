"""Plain networks: those of the reference, and for any input one within its limit with a last map of few pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.analysis.costs import total_cost
from compiler.analysis.limits import budget_share
from compiler.architecture.plain import PLAIN, plain_spec
from compiler.elaborate.builder import load
from compiler.errors import GraphspecError
from compiler.ir.graph import Graph, Model
from compiler.language.spec import Spec
from compiler.passes.pipeline import compacted
from tests.tiny import write_spec


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    return load(write_spec(tmp_path_factory.mktemp("spec")))[0]


def network(spec: Spec, folder: Path, name: str, shape: tuple[int, ...], **limit: int) -> tuple[Spec, Graph]:
    """The spec of a plain network, and its graph as it is trained."""
    file = folder / "plain.yaml"
    file.write_text(plain_spec(replace(spec, input=shape, classes=3), name, limit, 5, 7))
    made, graph = load(file)
    return made, compacted(Model(graph, {}, {}), made.config.budget)[0].graph


def maps(graph: Graph) -> list[tuple[int, ...]]:
    """What stem and blocks give."""
    return [node.shape for node in graph.nodes() if node.id.endswith(".out")][:-1]


@pytest.mark.parametrize(("name", "flops", "widths", "last"), [
    ("inverted", 1_470_000, [16, 16, 24, 24, 32], 8), ("residual", 2_210_000, [16, 16, 32], 8),
    ("residual_deep", 2_400_000, [14, 14, 28, 56], 4), ("residual_fine", 1_860_000, [6, 6, 12, 24], 8),
])  # fmt: skip
def test_images_of_32_pixels_get_the_networks_of_the_reference(
    spec: Spec, tmp_path: Path, name: str, flops: int, widths: list[int], last: int
) -> None:
    _, graph = network(spec, tmp_path, name, (3, 32, 32), flops=flops)
    assert [shape[0] for shape in maps(graph)] == pytest.approx(widths, rel=0.1)
    assert maps(graph)[-1][1:] == (last, last)
    assert 0.9 * flops < total_cost(graph).flops <= flops


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(PLAIN)),
    shape=st.one_of(
        st.tuples(st.sampled_from((1, 3, 4)), side := st.integers(8, 256), side), st.tuples(st.integers(1, 8), side)
    ),
    wide=st.booleans(),
)
def test_any_input_gets_a_network_within_its_limit(
    spec: Spec, tmp_path_factory: pytest.TempPathFactory, name: str, shape: tuple[int, ...], wide: bool
) -> None:
    limit = {"params": 300_000} if wide else {"params": 300_000, "flops": 40_000_000}
    made, graph = network(spec, tmp_path_factory.getbasetemp(), name, shape, **limit)
    assert budget_share(graph, made.config.budget) <= 1
    first, *_, last = maps(graph)
    assert min(first[1:]) >= min(shape[1:]) // 2
    assert 3 <= min(last[1:]) <= PLAIN[name].last


def test_data_and_recipe_are_those_of_the_spec(spec: Spec, tmp_path: Path) -> None:
    made, _ = network(spec, tmp_path, "residual", (1, 8, 8), params=10_000)
    assert (made.config.data, made.config.seed, made.config.retrain.epochs) == (spec.config.data, 7, 5)
    assert made.config.retrain == spec.config.retrain.model_copy(update={"epochs": 5})


def test_an_unknown_family_is_an_error(spec: Spec) -> None:
    with pytest.raises(GraphspecError, match="'inverte'; did you mean 'inverted'"):
        plain_spec(spec, "inverte", {"params": 1000}, 1, 0)
