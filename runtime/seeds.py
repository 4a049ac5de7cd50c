"""Seeds for every random choice of a run: pure functions of the run's seed, a purpose and counters.

A choice made from `generator(seed, purpose, epoch, batch)` needs no saved random state: whoever knows the counters can
make it again, in any process and in any order.
"""

from __future__ import annotations

import hashlib

import torch


def mix(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit number from the run's seed, what it is for, and counters such as epoch and batch.

    It is the first 8 bytes of BLAKE2b over `seed/purpose/counter/...`, little-endian, without the top bit: the same on
    every machine and Python version, and unrelated for any two different argument lists.
    """
    text = "/".join((str(seed), purpose, *map(str, counters)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(seed: int) -> None:
    """Seed torch's own generators, of a GPU where one is used: `torch.manual_seed` takes 0.1 ms where none is."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.cuda.manual_seed_all(seed)


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator seeded with `mix` of the same arguments."""
    return torch.Generator().manual_seed(mix(seed, purpose, *counters))
