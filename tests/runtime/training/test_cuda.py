"""What runs on CUDA mixes no devices, shown without a GPU: fake tensors have a device and no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.supernet import thinned
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from compiler.lowering.torch import kernels as fx_kernels
from compiler.lowering.torch.fx import Lowering, lower
from graphspec import api
from runtime.processes.world import ALONE
from runtime.search.supernet import Supernet
from runtime.strategies.dso import gate_optimizer
from runtime.training.captured import CALLED, Capture
from runtime.training.step import backward, set_precision, set_rate, training_loss, training_only
from tests.fake_cuda import CUDA, fake_cuda, to_cuda
from tests.tasks import class_task
from tests.tiny import write_spec


def supernet(
    graph: Graph, module: fx.GraphModule, mode: FakeTensorMode, patch: pytest.MonkeyPatch, capture: Capture = CALLED
) -> Supernet:
    to_cuda(module, mode)
    with patch.context() as inner:
        inner.setattr(nn.Module, "to", lambda self, *_, **__: self)
        return Supernet(graph, class_task(), SearchConfig(), CUDA, module, ALONE, capture)


def lies_on_cuda(*lists: list[Tensor], lr: Tensor, **_: object) -> None:
    """Stands for the optimizer's kernel, of which there is no fake."""
    assert {tensor.device for tensors in (*lists, [lr]) for tensor in tensors} == {CUDA}


@pytest.mark.parametrize(("pruned", "captured"), [(0.0, False), (0.5, False), (0.5, True)])
def test_steps_on_cuda_mix_no_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lowering: Lowering, pruned: float, captured: bool
) -> None:
    capture = Capture()
    capture.wanted = captured
    monkeypatch.setattr(torch, "_fused_sgd_", lies_on_cuda)
    graph = thinned(api.load(write_spec(tmp_path), ())[1], pruned)
    monkeypatch.setattr(fx_kernels, "_kept_index", fx_kernels._new_index)  # no fake tensor is to be kept
    module = lower(graph, lowering=lowering)
    with fake_cuda(monkeypatch) as mode:
        net = supernet(graph, module, mode, monkeypatch, capture)
        x = torch.empty(8, 1, 8, 8, device=CUDA).to(memory_format=torch.channels_last)
        y = torch.zeros(8, dtype=torch.int64, device=CUDA)
        gates = gate_optimizer(net)
        pairs = ((net.weight_params, net.gate_vectors, net.weights), (net.gate_vectors, net.weight_params, gates))
        for chosen, frozen, optimizer in pairs:
            with training_only(chosen.values(), frozen.values()):
                loss_fn = training_loss(class_task(), net.graph, net.module, net.config, CUDA)
                loss = backward(loss_fn, (x, y), list(chosen.values()), net.config)
            assert loss.device == CUDA
            assert {(p.grad.device, p.grad.dtype) for p in chosen.values() if p.grad is not None} == {
                (CUDA, torch.float32)
            }
            assert all(p.grad is not None for p in chosen.values())
            set_rate(optimizer, 0.05)
            optimizer.step()
        rates = [group["lr"] for optimizer in (net.weights, gates) for group in optimizer.param_groups]
        assert all(isinstance(rate, torch.Tensor) and rate.device == CUDA for rate in rates) is captured
        states = [t for optimizer in (net.weights, gates) for s in optimizer.state.values() for t in s.values()]
        assert {state.device for state in states} == {CUDA}


def test_mixed_devices_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = api.load(write_spec(tmp_path), ())[1]
    monkeypatch.setattr(fx_kernels, "_kept_index", lambda rows, _, first: torch.tensor(rows) - first)
    module = lower(graph)
    with fake_cuda(monkeypatch) as mode:
        net = supernet(graph, module, mode, monkeypatch)
        said = r"same device.*cuda:0 and cpu" if torch.__version__ >= "2.15" else r"different devices.*cuda:0, cpu"
        with pytest.raises(Exception, match=said):
            net.module(torch.empty(8, 1, 8, 8, device=CUDA))


@pytest.fixture
def tf32_flags() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32_flags")
@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_precision_decides_about_tf32_in_products_and_convolutions(precision: str, tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
    set_precision(SearchConfig.model_validate({"precision": precision}), CUDA)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
