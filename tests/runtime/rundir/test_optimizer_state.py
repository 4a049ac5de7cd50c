"""State of optimizers in checkpoints: it comes back to the bit, by the names of parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compiler.errors import RunError
from runtime.rundir.checkpoint import optimizer_state, restore_optimizer_state
from runtime.strategies.apgnag import APGNAG
from tests.runtime.rundir.test_checkpoint import Store


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "plain sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "apg-nag": lambda parameters: APGNAG(parameters, lr=0.01),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    whole, first, second = network(), network(), network()
    train(whole, OPTIMIZERS[kind](whole.parameters()), range(6))
    optimizer = OPTIMIZERS[kind](first.parameters())
    train(first, optimizer, range(3))
    store = Store(tmp_path)
    store.save(3, first.state_dict() | optimizer_state(optimizer, first.named_parameters()), {})
    found = store.load_latest()
    assert found is not None
    restored = OPTIMIZERS[kind](second.parameters())
    second.load_state_dict({name: found.tensors.pop(name) for name in second.state_dict()})
    restore_optimizer_state(restored, second.named_parameters(), found.tensors)
    train(second, restored, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), whole.parameters(), strict=True))
    for parameter in second.parameters():
        for value in restored.state[parameter].values():
            assert value is None or value.dim() == 0 or value.stride() == parameter.stride()


def test_state_follows_a_parameter_by_name_into_a_smaller_network() -> None:
    large, small_one = network(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    optimizer = OPTIMIZERS["sgd"](large.parameters())
    train(large, optimizer, range(2))
    state = optimizer_state(optimizer, large.named_parameters())
    assert sorted(state) == [f"{n}.{p}/momentum_buffer" for n in (0, 2) for p in ("bias", "weight")]
    kept = {"2.weight/momentum_buffer": state["2.weight/momentum_buffer"][:, 1:]}
    carried = OPTIMIZERS["sgd"](small_one.parameters())
    restore_optimizer_state(carried, small_one.named_parameters(), kept)
    momentum = carried.state[small_one[2].weight]["momentum_buffer"]
    assert torch.equal(momentum, kept["2.weight/momentum_buffer"])
    momentum.zero_()
    assert bool(kept["2.weight/momentum_buffer"].any())  # a copy
    assert small_one[0].weight not in carried.state


def test_restoring_replaces_what_the_optimizer_had() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, range(1))
    restore_optimizer_state(optimizer, model.named_parameters(), {})
    assert optimizer_state(optimizer, model.named_parameters()) == {}


def test_state_that_fits_no_parameter_is_refused() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(RunError, match=r"optimizer state for '9.weight', which the network does not have"):
        restore_optimizer_state(optimizer, model.named_parameters(), {"9.weight/momentum_buffer": torch.zeros(1)})
    with pytest.raises(RunError, match=r"0.bias/momentum_buffer has shape \(3,\), its parameter \(4,\)"):
        restore_optimizer_state(optimizer, model.named_parameters(), {"0.bias/momentum_buffer": torch.zeros(3)})


def test_state_that_is_no_tensor_is_refused() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    optimizer.state[model[0].weight]["steps"] = 3
    with pytest.raises(TypeError, match=r"keeps steps of 0.weight as int"):
        optimizer_state(optimizer, model.named_parameters())
