"""Lowered networks: names, printed code, numbers in and out, starting values, recompute, autocast, torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from compiler.elaborate.builder import load
from compiler.errors import GraphspecError
from compiler.ir.graph import INPUT, Block, Graph, Phase
from compiler.lowering.groups import exits, recomputed_blocks
from compiler.lowering.torch.batch_parts import BatchNorm
from compiler.lowering.torch.fx import (
    Lowering,
    freeze_norm_scales,
    gate_parameters,
    gate_values,
    initialise,
    load_gates,
    load_weights,
    lower,
    outputs_by_name,
    weights_of,
)
from compiler.ops import node_tensors
from compiler.passes.drop_gates import DropGates
from tests.compiler.plain import level_graph
from tests.graphs import graph_of, model_of, only_output, random_gates, random_graph, with_output
from tests.interpreter import evaluate

both = pytest.mark.parametrize("lowering", ["reference", "fused"])
SMALL = {
    "stem": ("conv", {"kernel": 3, "channels": 4}, [INPUT]),
    "blk.a": ("sep_conv", {"kernel": 3}, [("stem", "blk/a<stem")]),
    "blk.b": (
        "max_pool",
        {"kernel": 3, "norm": "batch", "act": "relu"},
        [("stem", "blk/b<stem"), ("blk.a", "blk/b<a")],
    ),
    "blk.mix": ("project", {"channels": 4}, [("blk.a", "blk/mix<a"), ("blk.b", "blk/mix<b")]),
    "pool": ("global_avg_pool", {}, ["blk.mix"]),
    "logits": ("linear", {"channels": 3}, ["pool"]),
}
REFERENCE_CODE = """
def forward(self, input):
    input_1 = input
    stem = self.stem(input_1);  input_1 = None
    blk_gates = self.blk.gates
    blk_gate = torch.unbind(blk_gates);  blk_gates = None
    gate = blk_gate[0]
    blk_a_in0 = torch.mul(stem, gate);  gate = None
    blk_a = self.blk.a(blk_a_in0);  blk_a_in0 = None
    gate_1 = blk_gate[1]
    blk_b_in0 = torch.mul(stem, gate_1);  stem = gate_1 = None
    gate_2 = blk_gate[2]
    blk_b_in1 = torch.mul(blk_a, gate_2);  gate_2 = None
    blk_b_sum1 = torch.add(blk_b_in0, blk_b_in1);  blk_b_in0 = blk_b_in1 = None
    blk_b = self.blk.b(blk_b_sum1);  blk_b_sum1 = None
    gate_3 = blk_gate[3]
    blk_mix_in0 = torch.mul(blk_a, gate_3);  blk_a = gate_3 = None
    gate_4 = blk_gate[4];  blk_gate = None
    blk_mix_in1 = torch.mul(blk_b, gate_4);  blk_b = gate_4 = None
    blk_mix = self.blk.mix(blk_mix_in0, blk_mix_in1);  blk_mix_in0 = blk_mix_in1 = None
    pool = self.pool(blk_mix);  blk_mix = None
    logits = self.logits(pool);  pool = None
    return logits
"""


def small() -> Graph:
    return graph_of(SMALL, blocks=(Block("blk", "blk", "blk", ("stem",), "blk.mix"),))


def images(graph: Graph, batch: int = 4) -> Tensor:
    return torch.randn(batch, *graph.node(INPUT).shape, generator=torch.Generator().manual_seed(5))


def gradients(module: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    module(x).square().sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


# -- names and code ---------------------------------------------------------------------------------------------------


def test_the_reference_prints_the_formula() -> None:
    assert lower(small(), lowering="reference").code.strip() == REFERENCE_CODE.strip()


@pytest.mark.usefixtures("stacks")
def test_the_fused_code_can_be_read() -> None:
    golden = Path(__file__).parents[1] / "golden" / "fused_code.txt"
    assert lower(small()).code.strip() == golden.read_text().strip()


@both
@pytest.mark.parametrize("recompute", [False, True])
def test_tensors_are_called_as_the_graph_says(lowering: Lowering, recompute: bool) -> None:
    for graph in (small(), level_graph(3), random_graph(11)):
        expected = {f"{scope}.gates": (len(gates),) for scope, gates in graph.gate_scopes().items()}
        for node in graph.nodes():
            tensors = node_tensors(graph, node)
            expected |= {f"{node.id}.{name}": shape for name, shape in (tensors.params | tensors.buffers).items()}
        module = lower(graph, lowering=lowering, recompute=recompute)
        assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == expected


@both
@pytest.mark.parametrize("recompute", [False, True])
def test_the_same_graph_gives_the_same_code_and_numbers(lowering: Lowering, recompute: bool) -> None:
    one, two = (lower(level_graph(4), lowering=lowering, recompute=recompute) for _ in range(2))
    assert one.code == two.code
    assert list(one.state_dict()) == list(two.state_dict())
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


def test_an_input_node_is_no_python_keyword_in_the_code() -> None:
    assert lower(small())(images(small())).shape == (4, 3)


def test_a_node_in_the_place_of_the_gates_is_refused() -> None:
    graph = graph_of({"blk.gates": ("relu", {}, [(INPUT, "blk/gates<in")])})
    with pytest.raises(GraphspecError, match=r"blk\.gates.*gate vector"):
        lower(graph)


@both
def test_compact_graphs_are_lowered_too(lowering: Lowering) -> None:
    graph = DropGates().run(model_of(small())).graph
    assert not graph.gates()
    module = lower(graph, lowering=lowering)
    load_weights(module, weights_of(lower(small())))
    right = lower(small(), lowering="reference")
    assert (module(images(graph)) - right(images(graph))).abs().max() < 1e-5


# -- gates ------------------------------------------------------------------------------------------------------------


@both
def test_gates_stand_in_the_order_of_the_graph(lowering: Lowering) -> None:
    graph = level_graph(5)
    module = lower(graph, lowering=lowering, gate_init=0.5)
    assert set(gate_values(module, graph).values()) == {0.5}
    values = random_gates(graph, 1)
    load_gates(module, graph, values)
    assert gate_values(module, graph) == pytest.approx(values)
    vectors = gate_parameters(module, graph)
    assert list(vectors) == list(graph.gate_scopes())
    for scope, gates in graph.gate_scopes().items():
        assert vectors[scope].dtype is torch.float32
        assert vectors[scope].tolist() == pytest.approx([values[g] for g in gates])


# -- weights ----------------------------------------------------------------------------------------------------------


@both
def test_weights_go_out_and_in(lowering: Lowering) -> None:
    graph = level_graph(6)
    module, other = lower(graph, lowering="reference"), lower(graph, lowering=lowering)
    initialise(module, 7)
    module(images(graph))  # moves the statistics
    weights = weights_of(module)
    assert all(isinstance(w, np.ndarray) for w in weights.values())
    assert not any(name.endswith(".gates") for name in weights)
    load_weights(other, weights | {"unknown.weight": np.zeros(3)})
    for name, value in weights_of(other).items():
        np.testing.assert_array_equal(value, weights[name])
    copy = next(iter(weights.values()))
    copy += 1
    assert not np.array_equal(copy, next(iter(weights_of(module).values())))


def test_missing_and_misshapen_weights_are_named() -> None:
    module = lower(small())
    weights = weights_of(module)
    with pytest.raises(GraphspecError, match=r"no weight called 'stem\.conv\.weight'"):
        load_weights(module, {k: v for k, v in weights.items() if k != "stem.conv.weight"})
    with pytest.raises(GraphspecError, match=r"'stem\.conv\.weight' has shape \(1, 2\).*\(4, 4, 3, 3\)"):
        load_weights(module, weights | {"stem.conv.weight": np.zeros((1, 2))})


def test_weights_of_any_layout_come_out_in_order() -> None:
    module = lower(small())
    before = weights_of(module)["stem.conv.weight"]
    after = weights_of(module.to(memory_format=torch.channels_last))["stem.conv.weight"]
    assert after.flags.c_contiguous
    np.testing.assert_array_equal(before, after)


def test_starting_values_follow_from_seed_and_name() -> None:
    wide = graph_of({"c": ("conv", {"kernel": 3, "channels": 64}, [INPUT]), "p": ("global_avg_pool", {}, ["c"]),
                     "l": ("linear", {"channels": 200}, ["p"])}, shape=(32, 6, 6))  # fmt: skip
    module = lower(wide)
    weights = weights_of(module)
    assert weights["c.conv.weight"].std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert weights["l.weight"].std() == pytest.approx(0.01, rel=0.05)
    assert (weights["c.norm.weight"] == 1).all()
    assert (weights["c.norm.bias"] == 0).all()
    assert (weights["l.bias"] == 0).all()
    initialise(module, 1)
    assert not np.array_equal(weights_of(module)["c.conv.weight"], weights["c.conv.weight"])
    assert (weights_of(module)["c.norm.weight"] == 1).all()


def test_starting_values_do_not_depend_on_other_nodes() -> None:
    parts = {key: SMALL[key] for key in ("stem", "pool", "logits")}
    parts["pool"] = ("global_avg_pool", {}, ["stem"])
    full, part = lower(small()), lower(graph_of(parts))
    for module in (full, part):
        initialise(module, 3)
    for name, value in weights_of(part).items():
        np.testing.assert_array_equal(value, weights_of(full)[name])


@both
def test_norm_scales_are_fixed_and_biases_free(lowering: Lowering) -> None:
    module = lower(small(), lowering=lowering)
    norms = [m for m in module.modules() if isinstance(m, BatchNorm)]
    with torch.no_grad():
        norms[0].weight.fill_(3.0)
    freeze_norm_scales(module)
    assert len(norms) == 4
    for norm, scale in zip(norms, (3, 1, 1, 1), strict=True):
        assert not norm.weight.requires_grad
        assert norm.bias.requires_grad
        assert (norm.weight == scale).all()


# -- recompute --------------------------------------------------------------------------------------------------------


def test_recompute_changes_nothing_but_what_is_kept(lowering: Lowering) -> None:
    graph = level_graph(8)
    found = []
    for recompute in (False, True):
        module = lower(graph, lowering=lowering, recompute=recompute)
        grads = gradients(module, images(graph))
        found.append((grads, module.state_dict()))
    (grads, state), (other_grads, other_state) = found
    assert grads.keys() == other_grads.keys()
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)
    assert all(torch.equal(state[name], other_state[name]) for name in state)  # statistics moved once


@pytest.mark.usefixtures("stacks_or_not")
def test_recompute_keeps_only_what_crosses_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.lowering.torch.fx.recomputed_blocks", lambda graph: exits(graph).keys())
    graph, kept = level_graph(8, channels=8, size=10), []
    for recompute in (False, True):
        module, sizes = lower(graph, recompute=recompute), []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module(images(graph, 8))
        kept.append(sum(sizes))
    assert kept[1] < 0.4 * kept[0]


@pytest.mark.usefixtures("stacks_or_not")
@both
def test_all_blocks_but_the_last_are_recomputed(lowering: Lowering) -> None:
    """Also where only the first block's gated sums read the stem, whose ReLU may be left to a stack."""
    nodes: dict[str, Any] = {"stem": ("conv", {"kernel": 3, "channels": 8}, [INPUT])}
    blocks, before = [], "stem"
    for index in range(4):
        b = f"b{index}"
        nodes |= {
            f"{b}.p": ("conv", {"kernel": 3}, [(before, f"{b}/p<in")]),
            f"{b}.q": ("avg_pool", {"kernel": 3, "norm": "batch"}, [(before, f"{b}/q<in")]),
            f"{b}.out": ("conv", {"kernel": 3}, [(f"{b}.p", f"{b}/out<p"), (f"{b}.q", f"{b}/out<q")]),
        }
        blocks.append(Block(b, "b", b, (before,), f"{b}.out"))
        before = f"{b}.out"
    nodes |= {"pool": ("global_avg_pool", {}, [before]), "logits": ("linear", {"channels": 3}, ["pool"])}
    graph = graph_of(nodes, shape=(3, 8, 8), blocks=tuple(blocks))
    assert recomputed_blocks(graph) == ["b0.out", "b1.out", "b2.out"]
    plain, again = (lower(graph, lowering=lowering, recompute=on) for on in (False, True))
    assert [name for name, part in again.named_modules() if name and isinstance(part, fx.GraphModule)] == [
        "b0", "b1", "b2",
    ]  # fmt: skip
    x = images(graph)
    torch.testing.assert_close(plain(x), again(x), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("stacks_or_not")
def test_recompute_without_gradients_just_runs() -> None:
    graph = level_graph(8)
    with torch.no_grad():
        one, two = (lower(graph, recompute=r)(images(graph)) for r in (False, True))
    assert torch.equal(one, two)


# -- modes ------------------------------------------------------------------------------------------------------------


def test_evaluation_uses_the_statistics(lowering: Lowering) -> None:
    graph = level_graph(9)
    module = lower(graph, lowering=lowering)
    for _ in range(3):
        module(images(graph))
    module.eval()
    with torch.no_grad():
        alone, together = module(images(graph)[:1]), module(images(graph))[:1]
    assert (alone - together).abs().max() < 1e-6


def test_autocast_keeps_gates_and_their_gradients_in_float32(lowering: Lowering) -> None:
    graph = level_graph(10, channels=8)
    right = gradients(lower(graph, lowering="reference"), images(graph))
    module = lower(graph, lowering=lowering)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(images(graph))
    out.float().square().sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is None or p.grad.dtype is p.dtype is torch.float32, name
    for scope, vector in gate_parameters(module, graph).items():
        assert vector.grad is not None
        error = (vector.grad - right[f"{scope}.gates"]).norm() / right[f"{scope}.gates"].norm()
        assert error < 0.15  # bf16 has 8 bits, and batch norm amplifies


@pytest.mark.usefixtures("stacks_or_not")
def test_fused_autocast_is_as_exact_as_the_reference() -> None:
    errors = {"reference": 0.0, "fused": 0.0}
    for seed in range(12):
        graph = level_graph(seed, channels=8)
        right = lower(graph, lowering="reference").double()(images(graph).double())
        for name in errors:
            module = lower(graph, lowering=name)
            with torch.autocast("cpu", torch.bfloat16):
                errors[name] += ((module(images(graph)) - right).norm() / right.norm()).item()
    assert errors["fused"] <= 1.2 * errors["reference"]


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_torch_compile_gives_the_same(lowering: Lowering, recompute: bool) -> None:
    torch.compiler.reset()
    graph = level_graph(2, levels=2)
    plain, compiled = (lower(graph, lowering=lowering, recompute=recompute) for _ in range(2))
    call = torch.compile(compiled, backend="aot_eager")
    right = gradients(plain, images(graph))
    call(images(graph)).square().sum().backward()
    for name, p in compiled.named_parameters():
        scale = right[name].abs().max() + 1e-3
        assert p.grad is not None
        assert (p.grad - right[name]).abs().max() <= 1e-3 * scale, name
    for name, value in plain.named_buffers():
        assert (compiled.get_buffer(name) - value).abs().max() < 1e-5, name


def test_any_batch_size_and_layout(lowering: Lowering) -> None:
    graph = level_graph(12)
    module = lower(graph, lowering=lowering).eval()
    for batch in (1, 5):
        x = images(graph, batch)
        one, two = module(x), module(x.to(memory_format=torch.channels_last))
        assert one.shape == (batch, 3)
        assert (one - two).abs().max() <= 1e-5 * one.abs().max()


def test_shipped_spec_lowers(request: pytest.FixtureRequest) -> None:
    _, graph = load(request.config.rootpath / "specs" / "digits.yaml")
    assert graph.phase is Phase.SEARCH
    values: list[Any] = []
    for lowering in ("reference", "fused"):
        module = lower(graph, lowering=lowering)
        values.append(module(images(graph, 8)))
    assert (values[0] - values[1]).abs().max() <= 1e-4 * values[0].abs().max()


@both
@pytest.mark.parametrize("kind", [{}, {"recompute": True}, {"apart": True}])
def test_several_outputs_come_by_name(lowering: Lowering, kind: dict[str, bool]) -> None:
    block = Block("blk", "blk", "blk", ("stem",), "blk.mix")
    graph = with_output(with_output(graph_of(SMALL, blocks=(block,)), "blk.mix", "features"), "pool", "embedding")
    module = lower(graph, lowering=lowering, **kind)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    found = module.eval()(x)
    assert list(found) == ["output", "features", "embedding"]
    for name, value in outputs_by_name(found).items():
        expected = evaluate(only_output(graph, name), weights_of(module), x)
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=name)
    sum(value.square().mean() for value in module.train()(x).values()).backward()
    assert all(p.grad is not None for p in module.parameters())
    assert list(outputs_by_name(lower(only_output(graph, "features"))(x))) == ["output"]
