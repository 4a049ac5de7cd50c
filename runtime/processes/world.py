"""The processes that share a job: each does the same on its slice of every batch.

What could come out differently (a look at a file or a clock) is decided by the main one, which alone writes and speaks.
"""

from __future__ import annotations

import atexit
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compiler.errors import GraphspecError, RunError
from runtime.processes.launch import Launch

BUFFERS = next(  # torch's name, old or new, for copying the main process's buffers to all before each step
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)

T = TypeVar("T")


class ToldError(RunError):
    """Another process failed and has said why; this one ends without a word."""

    told = True


@dataclass(frozen=True)
class World:
    """All processes of a job as one of them sees them."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  a device is a value

    @classmethod
    def join(cls, device: torch.device) -> World:
        """Meet the other processes that torchrun started, if any; RunError if they do not find each other."""
        launch = Launch.here()
        on_gpu = device.type == "cuda"
        if on_gpu and device.index is not None:
            torch.cuda.set_device(device)
        if launch.size == 1:
            return ALONE
        try:
            if not dist.is_initialized():
                dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        except RuntimeError as error:
            raise RunError(
                f"this process does not find the others: {str(error).splitlines()[0]}\n"
                f"  try: the same torchrun command on every machine, and an address that all of them can reach "
                f"(GLOO_SOCKET_IFNAME names the network device to use)"
            ) from error
        world = cls(launch.rank, launch.size, device)
        if not on_gpu:
            world.leave()  # a program that ends while gloo's threads run is aborted
        return world

    def leave(self) -> None:
        """Leave the others when this program ends. With nccl it waits for them, so not after a failure of one alone."""
        if self.size > 1:
            atexit.unregister(dist.destroy_process_group)
            atexit.register(dist.destroy_process_group)

    @property
    def is_main(self) -> bool:
        """Whether this process decides, writes and speaks."""
        return self.rank == 0

    def decided(self, decide: Callable[[], T]) -> T:
        """What the main process's `decide` gives (JSON), for all; its GraphspecError ends all of them."""
        if self.size == 1:
            return decide()
        error, message = None, b""
        if self.is_main:
            try:
                message = json.dumps({"value": decide()}).encode()
            except GraphspecError as failure:
                error, message = failure, json.dumps({"error": str(failure)}).encode()
        answer = json.loads(self._sent(message))
        if error is not None:
            raise error
        if "error" in answer:
            raise ToldError(answer["error"])
        value: T = answer["value"]
        return value

    def from_main(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The main process's tensors by name, on the CPU; those of the others are not looked at."""
        if self.size == 1:
            return dict(tensors)
        content = safetensors.torch.save(dict(tensors)) if self.is_main else b""
        return safetensors.torch.load(self._sent(content))

    def _sent(self, content: bytes, sender: int = 0) -> bytes:
        """The bytes of one process, for all. They are sent as they are: nothing is pickled."""
        length = torch.tensor([len(content)])
        dist.broadcast(length, sender)
        own = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.rank == sender else None
        data = torch.empty(int(length), dtype=torch.uint8) if own is None else own
        dist.broadcast(data, sender)
        return data.numpy().tobytes()

    def tables(self, numbers: Sequence[float]) -> Tensor:
        """The numbers of every process, `(size, len(numbers))` float64 on the CPU; sent as fast as gradients."""
        own = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
        if self.size == 1:
            return own[None]
        own = own.to(self.device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own)
        return torch.stack(rows).cpu()

    def check_same(self, when: str, parameters: Iterable[Tensor]) -> None:
        """RunError in every process if the numbers of one differ from those of the main process."""
        if self.size == 1:
            return
        number = int(fingerprint(parameters)[:12], 16)  # 48 bits: exact as a float64
        found = self.tables([number])[:, 0].long().tolist()
        others = [rank for rank, other in enumerate(found) if other != found[0]]
        if others:
            raise RunError(
                f"the processes have drifted apart {when}: gates or weights of rank {', '.join(map(str, others))} are "
                f"not those of rank 0 (hashes {', '.join(f'{n:012x}' for n in found)})\n"
                f"  try: the same graphspec, torch and kind of device for every process, then --resume"
            )

    def gathered(self, value: Any) -> list[Any]:
        """The values (JSON) of all processes by rank."""
        if self.size == 1:
            return [value]
        return [json.loads(self._sent(json.dumps(value).encode(), rank)) for rank in range(self.size)]

    def replicated(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over all processes for the parameters that are trainable now."""
        if self.size == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        # 1x1 weights kept channels last and their gradients say the same memory with other strides: nothing is copied
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        settings: dict[str, Any] = {BUFFERS: False}
        return DistributedDataParallel(network, **settings)

    def average_statistics(self, module: nn.Module) -> None:
        """Give all processes the mean of their running statistics."""
        if self.size > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.size


ALONE = World()


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of all tensors in order, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
