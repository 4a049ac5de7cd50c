"""Training with torch.compile: what is compiled, when, and that the numbers stay. C++ compilers are too slow for tests,
so a backend that runs the traced operators stands in for the compiler.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

import runtime.training.step
from compiler.errors import RunError
from compiler.language.config import SearchConfig
from compiler.lowering.torch.fx import lower
from graphspec import api
from runtime.search.supernet import Supernet
from runtime.strategies.dso import gate_optimizer
from runtime.training.compiled import CompiledByBlock
from runtime.training.step import RECOMPUTES_COMPILED, backward, evaluate, training_loss, training_only
from tests.graphs import with_output
from tests.tasks import class_task
from tests.tiny import TINY, write_spec

# torch's tracer itself looks at the gradients of what a block reads
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")]

CPU = torch.device("cpu")
TASK = class_task()
SMALL = TINY.replace("{normal: 2}, reduce, {normal: 1}", "{normal: 1}").replace(
    "count: 2, ops: [sep_conv_3x3, ", "count: 1, ops: ["
)


class Compiler:
    """A backend that counts what it is given, or fails."""

    def __init__(self, works: bool = True) -> None:
        self.works, self.graphs = works, 0

    def __call__(self, module: Any, inputs: Any) -> Any:
        if not self.works:
            raise OSError("no C++ compiler here")
        self.graphs += 1
        return aot_eager(module, inputs)


def use(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(8, 1, 8, 8, generator=random), torch.randint(0, 10, (8,), generator=random)


def train(net: Supernet, seeds: range) -> None:
    """A weight step and a gate step per seed."""
    loss = training_loss(class_task(), net.graph, net.weight_network, net.config, CPU)
    weights, gates = list(net.weight_params.values()), list(net.gate_vectors.values())
    gates_optimizer = gate_optimizer(net)
    for seed in seeds:
        for chosen, frozen, optimizer in ((weights, gates, net.weights), (gates, weights, gates_optimizer)):
            with training_only(chosen, frozen):
                backward(loss, batch(seed), chosen, net.config)
            optimizer.step()


def test_a_torch_that_is_too_old_to_recompute_compiled_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = api.load(write_spec(tmp_path, SMALL))[1]
    monkeypatch.setattr(runtime.training.step, "RECOMPUTES_COMPILED", "99.0")
    with pytest.raises(RunError, match=r"compile together with recompute needs torch .*, this is \d"):
        Supernet.start(graph, TASK, SearchConfig(compile=True, recompute=True), CPU, seed=4, gate_init=1.0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.usefixtures("stacks_or_not")
def test_blocks_compile_once_per_kind_of_step_and_train_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    if recompute and torch.__version__ < RECOMPUTES_COMPILED:
        pytest.skip("this torch does not recompute compiled blocks right")
    graph = api.load(write_spec(tmp_path, SMALL))[1]
    compiler, nets = Compiler(), []
    use(compiler, monkeypatch)
    for asked in (False, True):
        net = Supernet.start(graph, TASK, SearchConfig(compile=asked, recompute=recompute), CPU, seed=4, gate_init=1.0)
        train(net, range(1))
        first = compiler.graphs
        train(net, range(1, 3))
        assert compiler.graphs == first
        evaluate(class_task(), net.module, [batch(9), tuple(part[:3] for part in batch(9))])
        assert compiler.graphs == first
        nets.append(net.tensors())
    once = 2 * len(graph.blocks)
    if torch.__version__ < RECOMPUTES_COMPILED:
        assert 0 < first <= once  # blocks of the same content share what was compiled there
    elif recompute:
        assert once < first <= 2 * once  # a recomputed block leaves its statistics alone
    else:
        assert first == once
    plain, compiled = nets
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        assert torch.allclose(tensor, compiled[name], rtol=1e-4, atol=1e-5), name


def test_a_compiled_network_gives_all_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    use(compiler, monkeypatch)
    graph = with_output(api.load(write_spec(tmp_path, SMALL))[1], "stage0.block0.out")
    module = lower(graph, apart=True).train()
    x, _ = batch(0)
    plain, compiled = module(x), CompiledByBlock(module)(x)
    assert compiler.graphs > 0
    assert list(compiled) == list(plain) == ["output", "second"]
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


def test_a_compiler_that_fails_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Compiler(works=False), monkeypatch)
    graph = api.load(write_spec(tmp_path, SMALL))[1]
    net = Supernet.start(graph, TASK, SearchConfig(compile=True), CPU, seed=4, gate_init=1.0)
    with pytest.raises(
        RunError, match=r"torch\.compile failed: OSError: no C\+\+ compiler here(.|\n)*try: without --compile"
    ):
        train(net, range(1))
