"""The memory model against what torch really keeps and allocates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.common import account
from compiler.elaborate.builder import load
from compiler.ir.graph import INPUT, Block, Graph
from compiler.language.config import RetrainConfig, SearchConfig
from compiler.lowering.kept import ROWS, UNKNOWN, Setting, row_of
from compiler.lowering.memory import MemoryModel, Training, play, recomputed_blocks
from compiler.lowering.tape import Lowering
from compiler.lowering.torch.fx import freeze_norm_scales, gate_parameters, lower
from runtime.training.step import training_only, weight_parameters
from tests.graphs import graph_of, random_graph
from tests.tiny import write_spec

BATCH = 16
KINDS = ("weight", "gate")
LOWERINGS: tuple[Lowering, ...] = ("fused", "reference")


@dataclass
class Network:
    """A lowered network with the parameters that a kind of step trains."""

    graph: Graph
    lowering: Lowering
    kind: str
    recompute: bool = False
    batch: int = BATCH

    def __post_init__(self) -> None:
        module = lower(self.graph, lowering=self.lowering, recompute=self.recompute)
        freeze_norm_scales(module)
        self.module = module.to(memory_format=torch.channels_last).train()
        gates = list(gate_parameters(module, self.graph).values())
        weights = list(weight_parameters(module).values())
        self.chosen, self.frozen = (weights, gates) if self.kind == "weight" else (gates, weights)
        random = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *self.graph.node(INPUT).shape, generator=random)
        self.x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x

    def forward(self) -> Tensor:
        with training_only(self.chosen, self.frozen):
            y: Tensor = self.module(self.x)
        return y

    def step(self) -> None:
        for parameter in self.chosen:
            parameter.grad = None
        with training_only(self.chosen, self.frozen):
            loss = self.module(self.x).flatten(1).logsumexp(1).mean()
            loss.backward()

    def kept(self) -> int:
        """Bytes of the distinct storages that a forward pass saves, weights and the batch left out."""
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = self.forward()
        theirs = [*self.module.state_dict().values(), self.x]
        own = {tensor.untyped_storage().data_ptr() for tensor in theirs}
        del y
        return sum(size for pointer, size in found.items() if pointer not in own)

    def peak(self) -> int:
        """The most bytes that torch's allocator has given out during a step, forward and backward."""
        self.step()
        for parameter in self.chosen:
            parameter.grad = None
        return account(self.step)[1]

    def predicted(self) -> Any:
        training = Training(lowering=self.lowering, recompute=self.recompute)
        return play(MemoryModel(self.graph, training).tapes[self.kind], self.batch)  # type: ignore[index]


def chain_of_blocks(count: int, sizes: tuple[int, ...] = (8, 8)) -> Graph:
    """A stem and blocks of two levels, each behind the last, with a residual."""
    nodes: dict[str, Any] = {"stem": ("conv", {"kernel": 3, "channels": 8}, [INPUT])}
    blocks, before = [], "stem"
    for index in range(count):
        b = f"b{index}"
        nodes |= {
            f"{b}.p": ("sep_conv", {"kernel": 3}, [before]),
            f"{b}.q": ("max_pool", {"kernel": 3, "norm": "batch", "act": "relu"}, [before]),
            f"{b}.r": ("sep_conv", {"kernel": 5}, [(f"{b}.p", f"{b}/r<p"), (f"{b}.q", f"{b}/r<q")]),
            f"{b}.s": ("avg_pool", {"kernel": 3, "norm": "batch", "act": "relu"}, [(f"{b}.p", f"{b}/s<p")]),
            f"{b}.mix": ("project", {"channels": 8}, [(f"{b}.{i}", f"{b}/mix<{i}") for i in "pqrs"]),
            f"{b}.out": ("add", {}, [f"{b}.mix", before]),
        }
        blocks.append(Block(b, "b", b, (before,), f"{b}.out"))
        before = f"{b}.out"
    nodes |= {"pool": ("global_avg_pool", {}, [before]), "logits": ("linear", {"channels": 3}, ["pool"])}
    return graph_of(nodes, shape=(3, *sizes), blocks=tuple(blocks))


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stacks_or_not")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("seed", range(6))
def test_what_is_kept_is_what_torch_saves(seed: int, lowering: Lowering, kind: str) -> None:
    network = Network(random_graph(seed, channels=8, size=8), lowering, kind)
    assert network.predicted().kept == pytest.approx(network.kept(), rel=0.01, abs=4096)


@pytest.mark.usefixtures("stacks_or_not")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_what_recompute_keeps(lowering: Lowering, kind: str) -> None:
    """Hooks see what lies outside of the recomputed blocks; the model counts the blocks' inputs too."""
    graph = chain_of_blocks(5)
    network = Network(graph, lowering, kind, recompute=True)
    again = recomputed_blocks(graph, lowering)
    inputs = {"stem", "b0.out", "b1.out", "b2.out", "b3.out"} & {
        edge.src for block in graph.blocks if block.output in again for edge in graph.inputs(f"{block.id}.out")
    }
    of_inputs = 4 * BATCH * 8 * 8 * 8 * len(inputs)
    assert len(again) == len(inputs)
    seen = network.kept()
    assert seen < network.predicted().kept <= (seen + of_inputs) * 1.02


SINGLE: dict[str, dict[str, Any]] = {
    "conv": {"kernel": 3, "norm": "none", "act": "none"},
    "depthwise_conv": {"kernel": 3, "norm": "none", "act": "none"},
    "max_pool": {"kernel": 3},
    "avg_pool": {"kernel": 3},
    "scale": {"factor": 2.0},
    "mean": {"dims": (2, 3), "keep": True},
}
CASES = [
    *((name, SINGLE.get(name, {})) for name in ROWS if name not in ("linear", "global_avg_pool", "flatten")),
    ("conv", {"kernel": 1, "stride": 2, "norm": "none", "act": "none"}),
    ("depthwise_conv", {"kernel": 3, "stride": 2, "dilation": 2, "norm": "none", "act": "none"}),
    ("avg_pool", {"kernel": 3, "dilation": 2, "padding": 1}),
    ("max_pool", {"kernel": 3, "stride": 2}),
    ("conv", {"kernel": 3, "act": "hard_swish"}),
    ("linear", {"channels": 5}),
    ("flatten", {}),
    ("global_avg_pool", {}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(("name", "attrs"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_every_row(name: str, attrs: dict[str, Any], lowering: Lowering, kind: str) -> None:
    """One op between a convolution and a scale, which keeps nothing; a gate in front, so that gates' steps reach it."""
    before = ["small"] if name == "linear" else ["a"]
    nodes: dict[str, Any] = {
        "a": ("conv", {"kernel": 3, "channels": 16}, [(INPUT, "g/a<input")]),
        "small": ("global_avg_pool", {}, ["a"]),
        "op": (name, attrs, before),
        "last": ("scale", {"factor": 0.5}, ["op"]),
    }
    if name != "linear":
        del nodes["small"]
    network = Network(graph_of(nodes, shape=(4, 8, 8)), lowering, kind)
    kept, predicted = network.kept(), network.predicted()
    unread = predicted.kept - kept
    output = 4 * BATCH * network.module(network.x).flatten(1).shape[1]
    assert unread == pytest.approx(output, abs=0.01 * kept + 2048)  # the output is counted, and nothing saves it


def test_an_unknown_op_keeps_what_it_reads_and_gives() -> None:
    setting = Setting(lean=True, trained=True, inputs_pixels=64, on_cpu=True)
    assert row_of("of_somebody_else", None, setting) == UNKNOWN
    assert (UNKNOWN.keeps_in, UNKNOWN.keeps_out) == (True, True)


# -- the peak ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stacks_or_not")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_peak_is_what_torch_allocates(lowering: Lowering, recompute: bool, kind: str) -> None:
    network = Network(chain_of_blocks(4, (16, 16)), lowering, kind, recompute)
    assert network.predicted().peak == pytest.approx(network.peak(), rel=0.03)


@pytest.mark.usefixtures("stacks_or_not")
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("seed", range(3))
def test_the_peak_of_random_networks(seed: int, lowering: Lowering) -> None:
    network = Network(random_graph(seed, channels=16, size=12), lowering, "weight")
    assert network.predicted().peak == pytest.approx(network.peak(), rel=0.02)


@pytest.mark.usefixtures("stacks_or_not")
def test_the_peak_of_a_spec(tmp_path: Path) -> None:
    """With a reduction and shared gates; what oneDNN takes for a depthwise convolution's gradient is not foreseen."""
    network = Network(load(write_spec(tmp_path))[1], "fused", "weight", batch=128)
    assert network.predicted().peak == pytest.approx(network.peak(), rel=0.05)


# -- recompute --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_last_blocks_are_kept_at_no_cost(lowering: Lowering) -> None:
    graph = chain_of_blocks(6)
    again = recomputed_blocks(graph, lowering)
    assert again == {f"b{index}.out" for index in range(len(again))}
    assert 0 < len(again) < 6
    plain, some = (MemoryModel(graph, Training(lowering=lowering, recompute=on)).at(64) for on in (False, True))
    assert some.weight_step < 0.5 * plain.weight_step


def test_a_single_block_is_not_recomputed() -> None:
    assert recomputed_blocks(chain_of_blocks(1), "fused") == frozenset()


@pytest.mark.usefixtures("stacks_or_not")
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_recompute_of_a_value_that_one_stack_reads(lowering: Lowering) -> None:
    """The stem's ReLU is computed although only the first block's gated sums read the stem."""
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
    assert recomputed_blocks(graph, lowering)
    plain, again = (Network(graph, lowering, "weight", recompute=on) for on in (False, True))
    torch.testing.assert_close(plain.forward(), again.forward(), rtol=1e-6, atol=1e-7)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stacks")
def test_settings_that_need_less() -> None:
    graph = chain_of_blocks(6)

    def peak(**settings: Any) -> int:
        return MemoryModel(graph, Training(**settings)).at(128).weight_step

    whole = peak()
    assert peak(lowering="reference") > whole
    assert peak(recompute=True) < 0.5 * whole
    assert peak(half=True) < 0.65 * whole
    assert 0.5 * whole < peak(accumulate=2) < 0.55 * whole
    assert peak(accumulate=4) < peak(accumulate=3) < peak(accumulate=2)


def test_training_of_settings() -> None:
    config = SearchConfig(lowering="reference", precision="bf16", recompute=True, accumulate=3)
    assert Training.of(config) == Training("reference", True, True, 3, searching=True, on_cpu=True)
    assert Training.of(RetrainConfig(), on_cpu=False) == Training(searching=False, on_cpu=False)


def test_a_network_without_gates_has_no_gate_step() -> None:
    graph = chain_of_blocks(1)
    assert MemoryModel(graph).at(8).gate_step > 0
    memory = MemoryModel(graph, Training(searching=False)).at(8)
    assert memory.gate_step == 0
    assert memory.peak == max(memory.weight_step, memory.validation)


def test_the_largest_batch() -> None:
    model = MemoryModel(chain_of_blocks(2))
    assert model.largest_batch(lambda size: size <= 37) == 37
    assert model.largest_batch(lambda size: False) == 0
