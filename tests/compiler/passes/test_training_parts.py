"""add-training-parts: where drop path, dropout and the auxiliary head stand, and that inference does not see them."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.analysis.guards import kept_by_strength
from compiler.elaborate.builder import load
from compiler.errors import PassError
from compiler.ir.graph import INPUT, OUTPUT, Block, Graph, Model, Phase
from compiler.ir.text import text
from compiler.ir.verify import verify
from compiler.lowering.torch.batch_parts import DropPath
from compiler.lowering.torch.fx import initialise, lower
from compiler.ops import node_tensors, read_attrs
from compiler.passes.drop_gates import DropGates
from compiler.passes.prune_zero_edges import prune
from compiler.passes.training_parts import AddTrainingParts, with_training_parts
from tests.graphs import graph_of, random_graph

SPECS = Path(__file__).parents[3] / "specs"
Parts = dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]]


@functools.cache
def compact(name: str, zeros: float = 0.5) -> Graph:
    graph = load(SPECS / f"{name}.yaml")[1]
    rng = random.Random(1)
    closed = {gate for gate in graph.gates() if rng.random() < zeros}
    closed -= set(kept_by_strength(graph, closed, {}))
    return DropGates().run(Model(prune(graph, closed))).graph


def trained(graph: Graph, drop_path: float = 0.0, dropout: float = 0.0, auxiliary: float = 0.0) -> Graph:
    classes = graph.node(OUTPUT).shape[0]
    return with_training_parts(graph, drop_path=drop_path, dropout=dropout, auxiliary=auxiliary, classes=classes)


def probability(graph: Graph, node_id: str) -> float:
    node = graph.node(node_id)
    p: float = read_attrs(node.op, node.attrs).p
    return p


def dropped_edges(graph: Graph) -> dict[tuple[str, str], float]:
    """(source, reader) -> probability of every value with drop path."""
    return {
        (graph.inputs(node.id)[0].src, graph.users(node.id)[0].dst): probability(graph, node.id)
        for node in graph.nodes()
        if node.op == "drop_path"
    }


def images(graph: Graph, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *graph.node(INPUT).shape, generator=generator)


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "dso_nas_cifar10_small", "darts_cell", "hand_wired"])
def test_the_trained_graph_is_legal_and_keeps_every_node(name: str) -> None:
    graph = compact(name)
    full = trained(graph, 0.5, 0.4, auxiliary=0.4)
    verify(full, Phase.COMPACT)
    classes = graph.node(OUTPUT).shape[0]
    assert {name: node.shape for name, node in full.outputs().items()} == {
        OUTPUT: graph.node(OUTPUT).shape,
        "auxiliary": (classes,),
    }
    for node in graph.nodes():
        assert full.node(node.id) == node
        assert node_tensors(full, full.node(node.id)) == node_tensors(graph, node)
    new = {node.op for node in full.nodes() if node.id not in graph}
    assert new >= {"dropout", "batch_norm", "avg_pool", "conv", "global_avg_pool", "linear", "output"}
    assert text(full) == text(trained(graph, 0.5, 0.4, auxiliary=0.4))
    assert [b.id for b in full.blocks] == [b.id for b in graph.blocks]


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_random_graphs_read_what_they_read_before_past_the_new_nodes(seed: int) -> None:
    graph = DropGates().run(Model(random_graph(seed))).graph
    full = trained(graph, 0.3, 0.2)
    verify(full, Phase.COMPACT)
    assert [n.id for n in full.nodes() if n.id in graph] == [n.id for n in graph.nodes()]
    for node in graph.nodes():
        sources = [edge.src for edge in full.inputs(node.id)]
        while any(src not in graph for src in sources):
            sources = [src if src in graph else full.inputs(src)[0].src for src in sources]
        assert sources == [edge.src for edge in graph.inputs(node.id)]


def test_without_any_part_the_graph_stays() -> None:
    graph = compact("digits")
    assert text(trained(graph)) == text(graph)


def test_inference_gives_the_same_logits_and_training_does_not() -> None:
    graph = compact("digits")
    plain, full = lower(graph), lower(trained(graph, 0.5, 0.3, auxiliary=0.4))
    for module in (plain, full):
        initialise(module, 3)
    names = plain.state_dict().keys()
    assert names <= full.state_dict().keys()
    x = images(graph, 4)
    with torch.no_grad():
        logits, both = plain.eval()(x), full.eval()(x)
        assert {name: value.shape for name, value in both.items()} == {OUTPUT: (4, 10), "auxiliary": (4, 10)}
        torch.testing.assert_close(both[OUTPUT], logits, rtol=1e-6, atol=1e-6)
        torch.manual_seed(0)
        first, second = full.train()(x), full.train()(x)
    assert not torch.allclose(first[OUTPUT], second[OUTPUT])


def test_the_parts_work_with_recomputation() -> None:
    graph = trained(compact("digits"), 0.3, 0.2, auxiliary=0.4)
    gradients = []
    for recompute in (False, True):
        module = lower(graph, recompute=recompute).train()
        initialise(module, 0)
        torch.manual_seed(0)
        sum(head.square().mean() for head in module(images(graph, 3)).values()).backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


# -- drop path --------------------------------------------------------------------------------------------------------


def residual(blocks: int) -> Graph:
    """Blocks of two layers that sum a branch and a shortcut, then pooling and logits."""
    parts: Parts = {"stem": ("conv", {"kernel": 3, "channels": 4}, [INPUT])}
    found, previous = [], "stem"
    for i in range(blocks):
        b = f"stage0.block{i}"
        parts |= {
            f"{b}.a": ("conv", {"kernel": 3, "channels": 4}, [previous]),
            f"{b}.b": ("sep_conv", {"kernel": 3, "channels": 4}, [previous, f"{b}.a"]),
            f"{b}.mix": ("project", {"channels": 4}, [f"{b}.a", f"{b}.b"]),
            f"{b}.out": ("add", {}, [f"{b}.mix", previous]),
        }
        found.append(Block(b, "normal", "stage0", (previous,), f"{b}.out"))
        previous = f"{b}.out"
    parts |= {"pool": ("global_avg_pool", {}, [previous]), "logits": ("linear", {"channels": 3}, ["pool"])}
    return graph_of(parts, phase=Phase.COMPACT, blocks=tuple(found))


def test_drop_path_stands_before_ops_with_several_inputs_and_before_projections() -> None:
    dropped = dropped_edges(trained(residual(1), 0.4))
    b = "stage0.block0"
    assert set(dropped) == {
        ("stem", f"{b}.b"),
        (f"{b}.a", f"{b}.b"),
        (f"{b}.a", f"{b}.mix"),
        (f"{b}.b", f"{b}.mix"),
    }


def test_drop_path_grows_with_depth_to_its_maximum() -> None:
    dropped = dropped_edges(trained(residual(4), 0.4))
    by_block = {reader.rpartition(".")[0]: p for (_, reader), p in dropped.items()}
    assert by_block == pytest.approx({f"stage0.block{i}": 0.1 * (i + 1) for i in range(4)})
    assert max(dropped_edges(trained(compact("dso_nas_imagenet"), 0.5)).values()) == 0.5


def test_the_branch_of_an_add_is_dropped_and_its_shortcut_is_not() -> None:
    parts: Parts = {
        "stem": ("conv", {"kernel": 3, "channels": 4}, [INPUT]),
        "b.a": ("conv", {"kernel": 3, "channels": 4}, ["stem"]),
        "b.kept": ("identity", {}, ["stem"]),
        "b.sum": ("add", {}, ["b.a", "b.kept"]),
        "b.out": ("add", {}, ["b.sum", "stem"]),
        "pool": ("global_avg_pool", {}, ["b.out"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    graph = graph_of(parts, phase=Phase.COMPACT, blocks=(Block("b", "b", "b", ("stem",), "b.out"),))
    assert set(dropped_edges(trained(graph, 0.2))) == {("b.a", "b.sum"), ("b.sum", "b.out")}


def test_drop_path_never_takes_the_whole_image_away() -> None:
    """The sum of a reduction block, and a projection without a shortcut, are passed by every path."""
    parts: Parts = {
        "r.a": ("conv", {"kernel": 1, "channels": 4}, [INPUT]),
        "r.b": ("conv", {"kernel": 3, "channels": 4}, [INPUT]),
        "r.out": ("add", {}, ["r.a", "r.b"]),
        "p.out": ("project", {"channels": 4}, ["r.out"]),
        "pool": ("global_avg_pool", {}, ["p.out"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    blocks = (Block("r", "r", "r", (INPUT,), "r.out"), Block("p", "p", "p", ("r.out",), "p.out"))
    assert dropped_edges(trained(graph_of(parts, phase=Phase.COMPACT, blocks=blocks), 0.5)) == {}
    module = lower(trained(compact("dso_nas_cifar10_small"), 0.99)).train()
    heads: list[Tensor] = []
    module.get_submodule("head.pool").register_forward_hook(lambda _, __, out: heads.append(out))
    torch.manual_seed(0)
    module(images(compact("dso_nas_cifar10_small"), 16))
    assert (heads[0].abs().amax(1) > 0).all()


def test_taken_ids_are_left_alone() -> None:
    parts: Parts = {
        "b.a": ("conv", {"kernel": 1, "channels": 4}, [INPUT]),
        "b.mix_drop_path0": ("conv", {"kernel": 3, "channels": 4}, [INPUT]),
        "b.mix": ("project", {"channels": 4}, ["b.a", "b.mix_drop_path0"]),
        "b.out": ("add", {}, ["b.mix", INPUT]),
        "b.out_": ("conv", {"kernel": 1, "stride": 2, "channels": 4}, ["b.out"]),
        "auxiliary.pool": ("global_avg_pool", {}, ["b.out_"]),
        "logits": ("linear", {"channels": 3}, ["auxiliary.pool"]),
    }
    blocks = (Block("b", "b", "b", (INPUT,), "b.out"), Block("r", "r", "r", ("b.out",), "b.out_"))
    full = trained(graph_of(parts, phase=Phase.COMPACT, blocks=blocks), 0.5, auxiliary=0.4)
    verify(full)
    assert list(full.outputs()) == [OUTPUT, "auxiliary_"]
    assert probability(full, "b.mix_drop_path0_") == 0.5


def test_drop_path_zeroes_whole_images_and_keeps_the_mean() -> None:
    module = DropPath(0.4)
    x = torch.ones(4000, 2, 3, 3)
    torch.manual_seed(0)
    for progress, p in ((0.0, 0.0), (0.5, 0.2), (1.0, 0.4)):
        module.progress = progress
        y = module.train()(x)
        values = y.flatten(1)
        assert torch.equal(values.amax(1), values.amin(1)), "an image is kept or dropped as a whole"
        assert values.max() == pytest.approx(1 / (1 - p))
        assert ((values == 0) | (values == values.max())).all()
        assert float((values[:, 0] == 0).float().mean()) == pytest.approx(p, abs=0.03)
        assert float(y.mean()) == pytest.approx(1.0, abs=0.05)
        assert torch.equal(module.eval()(x), x)
    assert module.progress == 1.0
    assert module.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_drop_path_keeps_type_and_rank(dtype: torch.dtype) -> None:
    module = DropPath(0.5).train()
    for shape in ((3, 4), (3, 4, 2, 2)):
        y = module(torch.ones(shape, dtype=dtype))
        assert (y.shape, y.dtype) == (shape, dtype)


# -- dropout and auxiliary head ---------------------------------------------------------------------------------------


def test_dropout_stands_before_the_classifier() -> None:
    full = trained(compact("digits"), dropout=0.4, auxiliary=0.4)
    (edge,) = full.inputs("head.out")
    assert full.node(edge.src).op == "dropout"
    assert probability(full, edge.src) == 0.4
    assert full.inputs(edge.src)[0].src == "head.pool"
    assert sum(node.op == "dropout" for node in full.nodes()) == 1


def test_dropout_goes_before_the_last_convolution_where_nothing_is_linear() -> None:
    parts: Parts = {
        "pool": ("global_avg_pool", {}, [INPUT]),
        "body": ("conv", {"kernel": 6, "padding": 0, "channels": 8}, [INPUT]),
        "logits": ("conv", {"kernel": 1, "channels": 3, "norm": "none", "act": "none"}, ["body"]),
    }
    del parts["pool"]
    full = trained(graph_of(parts, phase=Phase.COMPACT), dropout=0.1)
    assert [e.src for e in full.inputs("logits")] == ["logits_dropout0"]
    verify(full)


def test_the_auxiliary_head_reads_the_last_reduction() -> None:
    full = trained(compact("dso_nas_cifar10_small"), auxiliary=0.4)
    chain = {name: full.node(f"auxiliary.{name}") for name in ("norm", "pool", "narrow", "wide", "mean", "logits")}
    assert [e.src for e in full.inputs("auxiliary.norm")] == ["reduce1.out"]
    shapes = {name: node.shape for name, node in chain.items()}
    assert shapes["pool"][1:] == (2, 2)  # of 8x8, by windows of 5x5 at a stride of 3
    assert (shapes["narrow"], shapes["wide"]) == ((128, 2, 2), (768, 1, 1))
    assert (shapes["mean"], shapes["logits"]) == ((768,), (10,))
    assert full.node("auxiliary.output").attrs == (("name", "auxiliary"), ("weight", 0.4))
    assert [e.src for e in full.inputs("auxiliary.output")] == ["auxiliary.logits"]
    assert full.inputs(OUTPUT) == compact("dso_nas_cifar10_small").inputs(OUTPUT)


@pytest.mark.parametrize(
    ("size", "pooled", "wide"), [(2, 1, 1), (4, 1, 1), (8, 1, 1), (12, 2, 1), (14, 2, 1), (28, 4, 3)]
)
def test_the_auxiliary_head_fits_every_size(size: int, pooled: int, wide: int) -> None:
    parts: Parts = {
        "r.out": ("conv", {"kernel": 3, "stride": 2, "channels": 4}, [INPUT]),
        "pool": ("global_avg_pool", {}, ["r.out"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    block = Block("r", "r", "r", (INPUT,), "r.out")
    graph = graph_of(parts, shape=(4, size, size), phase=Phase.COMPACT, blocks=(block,))
    full = trained(graph, auxiliary=0.4)
    verify(full)
    assert full.node("auxiliary.pool").shape[1] == pooled
    assert full.node("auxiliary.wide").shape[1] == wide
    assert lower(full).eval()(images(graph, 2))["auxiliary"].shape == (2, 3)


def test_logits_of_one_pixel_stay_an_image() -> None:
    parts: Parts = {
        "r.out": ("conv", {"kernel": 3, "stride": 2, "channels": 4}, [INPUT]),
        "logits": ("conv", {"kernel": 3, "padding": 0, "channels": 3}, ["r.out"]),
    }
    block = Block("r", "r", "r", (INPUT,), "r.out")
    graph = graph_of(parts, phase=Phase.COMPACT, blocks=(block,))
    assert graph.node(OUTPUT).shape == (3, 1, 1)
    assert [node.shape for node in trained(graph, auxiliary=0.4).outputs().values()] == [(3, 1, 1), (3,)]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_an_auxiliary_head_needs_a_reduction() -> None:
    with pytest.raises(PassError, match="no block reduces the size"):
        trained(residual(2), auxiliary=0.4)


def test_the_number_of_classes_must_fit() -> None:
    with pytest.raises(PassError, match="gives 10, not 7 logits"):
        with_training_parts(compact("digits"), drop_path=0, dropout=0, auxiliary=0.4, classes=7)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_probabilities_are_checked(p: float) -> None:
    with pytest.raises(PassError, match="drop_path is"):
        trained(residual(1), drop_path=p)
    with pytest.raises(PassError, match="dropout is"):
        trained(residual(1), dropout=p)


def test_dropout_needs_a_layer() -> None:
    parts: Parts = {"pool": ("global_avg_pool", {}, [INPUT])}
    with pytest.raises(PassError, match="no layer to put dropout before"):
        trained(graph_of(parts, phase=Phase.COMPACT), dropout=0.5)


def test_the_pass_is_the_function() -> None:
    graph = compact("digits")
    model = AddTrainingParts(0.2, 0.1, 0.4).run(Model(graph))
    assert text(model.graph) == text(trained(graph, 0.2, 0.1, auxiliary=0.4))
