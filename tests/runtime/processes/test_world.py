"""Several processes: what they tell each other, and networks whose slices make up a batch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules._functions import SyncBatchNorm

from compiler.errors import RunError
from compiler.lowering.torch import batch_parts as torch_batch
from compiler.lowering.torch.batch_parts import BatchNorm, Dropout, DropPath, share_batches
from runtime.processes.world import ALONE, ToldError, World, fingerprint
from tests.tiny import free_port

pytestmark = pytest.mark.slow

SIZE = 2
CPU = torch.device("cpu")


def _enter(rank: int, port: int, work: Callable[..., None], folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(SIZE),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    work(World.join(CPU), folder)


def together(work: Callable[[World, Path], None], folder: Path) -> None:
    """Run `work` in two processes that are connected by gloo; what one raises, this raises."""
    torch.multiprocessing.spawn(_enter, (free_port(), work, folder), nprocs=SIZE)


# -- words ------------------------------------------------------------------------------------------------------------


def _talk(world: World, folder: Path) -> None:
    assert world.decided(lambda: {"from": [world.rank]}) == {"from": [0]}
    assert world.gathered({"rank": "x" * world.rank}) == [{"rank": ""}, {"rank": "x"}]
    assert world.tables([world.rank, 2.5]).tolist() == [[0, 2.5], [1, 2.5]]
    tensors = world.from_main({"a": torch.full((2, 3), float(world.rank)), "b": torch.tensor(world.rank)})
    assert {name: t.tolist() for name, t in tensors.items()} == {"a": [[0.0] * 3] * 2, "b": 0}
    world.check_same("now", [torch.ones(3)])
    with pytest.raises(RunError, match=r"drifted apart after it: gates or weights of rank 1 are not those of rank 0"):
        world.check_same("after it", [torch.full((3,), float(world.rank))])
    with pytest.raises(RunError, match="the disk") as caught:
        world.decided(_fail)
    assert caught.value.told == (not world.is_main) == isinstance(caught.value, ToldError)
    (folder / f"done{world.rank}").touch()


def _fail() -> None:
    raise RunError("the disk is full")


def test_words_go_from_one_to_all(tmp_path: Path) -> None:
    together(_talk, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"done0", "done1"}


def test_processes_that_cannot_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have met and gloo does not get through, as where a host's name is that of its loopback device."""

    def no_mesh(*_: Any, **__: Any) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with [..] Connection refused\nmore")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", no_mesh)
    with pytest.raises(RunError, match=r"does not find the others: Gloo .* refused\n  try: .*GLOO_SOCKET_IFNAME"):
        World.join(CPU)


def test_a_process_alone_decides_by_itself() -> None:
    assert ALONE.decided(lambda: 3) == 3
    assert ALONE.gathered({"a": 1}) == [{"a": 1}]
    assert ALONE.tables([1, 2]).tolist() == [[1, 2]]
    ALONE.check_same("now", [torch.ones(2)])
    network = nn.Linear(2, 2)
    assert ALONE.replicated(network) is network


def test_fingerprints_tell_tensors_apart() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 2**-22])
    assert fingerprint([a, b]) == fingerprint([a.clone(), b]) != fingerprint([b, a])
    kernel = torch.arange(36.0).view(4, 1, 3, 3)
    assert fingerprint([kernel.to(memory_format=torch.channels_last)]) == fingerprint([kernel])
    assert fingerprint([torch.ones(2, 3).t()]) == fingerprint([torch.ones(3, 2)])


# -- a batch in slices ------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), BatchNorm(4, 1e-5, 0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 4))
        norm.bias.copy_(torch.linspace(-1, 1, 4))
    layers = (conv, norm, nn.ReLU(inplace=True), DropPath(0.4), nn.Flatten(), Dropout(0.3), nn.Linear(4 * 36, 5))
    return nn.Sequential(*layers).double().train()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.arange(8) % 5


def step(module: nn.Module, replica: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradients and statistics after a forward and backward pass; draws come from the same seed everywhere."""
    torch.manual_seed(2)
    nn.functional.cross_entropy(replica(x), y).backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found | {name: buffer for name, buffer in module.named_buffers() if "progress" not in name}


def _step_in_slices(world: World, folder: Path) -> None:
    module = network()
    share_batches(module, world.rank, world.size)
    x, y = (whole.chunk(world.size)[world.rank] for whole in batch())
    found = step(module, world.replicated(module), x, y)
    alone = network()
    expected = step(alone, alone, *batch())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14, msg=f"{world.rank} {name}")
    _norm_in_half(world)
    (folder / f"done{world.rank}").touch()


def _norm_in_half(world: World) -> None:
    """Values of two bytes, kept channels last, in a norm of four: as near to float64 as rounding allows."""
    x, weights = batch()[0].bfloat16(), torch.linspace(-1, 1, 64).view(8, 8)
    found, expected = [], []
    for values, norm, results in ((x, BatchNorm(3, 1e-5, 0.3), found), (x, BatchNorm(3, 1e-5, 0.3).double(), expected)):
        whole = norm.weight.dtype == torch.float64
        share_batches(norm, 0 if whole else world.rank, 1 if whole else world.size)
        own = values.double() if whole else values.chunk(world.size)[world.rank].to(memory_format=torch.channels_last)
        own = own.detach().requires_grad_()
        y = norm(own)
        (y * weights.to(y.dtype)).sum().backward()
        assert own.grad is not None
        grads = [value if not whole else value.chunk(world.size)[world.rank] for value in (y.detach(), own.grad)]
        results += [*grads, norm.running_mean, norm.running_var]
    assert found[0].dtype == torch.bfloat16
    for value, right in zip(found, expected, strict=True):
        assert (value.double() - right).norm() < 1e-2 * right.norm()


def test_slices_give_the_gradients_and_statistics_of_the_whole_batch(tmp_path: Path) -> None:
    together(_step_in_slices, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"done0", "done1"}


def test_on_cuda_torch_normalises_together(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch_batch.SyncBatchNorm, "apply", lambda x, *arguments: taken.append(arguments) or 2 * x)
    norm = BatchNorm(3, 1e-5, 0.3)
    share_batches(norm, 1, SIZE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert norm(torch.empty(2, 3, device="cuda")).device.type == "cuda"
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    assert all(given is own for given, own in zip(taken[0], tensors, strict=False))
    assert taken[0][4:] == (1e-5, 0.3, dist.group.WORLD, SIZE)
    assert list(inspect.signature(SyncBatchNorm.forward).parameters)[2:] == [
        "weight", "bias", "running_mean", "running_var", "eps", "momentum", "process_group", "world_size"
    ]  # fmt: skip


def _norm_by_itself(world: World, folder: Path) -> None:
    norm = BatchNorm(2, 1e-5, 1.0)
    share_batches(norm, world.rank, world.size, statistics=False)
    norm(torch.randn(4, 2, generator=torch.Generator().manual_seed(world.rank)))
    own = norm.running_mean.clone()
    means = world.tables(own.tolist())
    assert not torch.equal(means[0], means[1])
    world.average_statistics(norm)
    torch.testing.assert_close(norm.running_mean.double(), means.mean(0), rtol=1e-6, atol=1e-7)


def test_statistics_of_slices_can_be_averaged_instead(tmp_path: Path) -> None:
    together(_norm_by_itself, tmp_path)
