"""How much memory a process can still get: of a GPU, or of the machine, its swap, control groups and `ulimit -v`."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path("/")
GROUPS = {  # by controller: where control groups lie, and the files of limit and use and the entry of what can be freed
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),  # version 2
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held: Any = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        own = torch.cuda.current_device() if device.index is None else device.index
        mine = (s for s in held if s["device"] == own and tuple(s["segment_pool_id"]) == (0, 0))
        idle = (s["total_size"] - s["allocated_size"] for s in mine)
        return free + int(sum(idle))  # what the pools of captured graphs do not use stays theirs
    return host_memory(ROOT)


def host_memory(root: Path) -> int | None:
    """Bytes that this process can still get: swap, control groups and `ulimit -v` are taken into account."""
    sizes = _fields(root / "proc/meminfo")
    if "MemAvailable" in sizes:
        limits = [1024 * (sizes["MemAvailable"] + sizes.get("SwapFree", 0)), *_group_limits(root)]
        return max(0, min([*limits, *_own_limit(root)]))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # no more than the machine has
    except (AttributeError, OSError, ValueError):
        return None


def _group_limits(root: Path) -> Iterator[int]:
    """What each control group that this process is in, of version 2 or 1, leaves of its limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own = Path(path.lstrip("/"))
        for mount, limit, usage, cache in (GROUPS[name] for name in controllers.split(",") if name in GROUPS):
            for folder in (root / mount / part for part in (own, *own.parents)):
                most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
                if most.isdigit() and used.isdigit():
                    yield int(most) - int(used) + _fields(folder / "memory.stat").get(cache, 0)


def _own_limit(root: Path) -> Iterator[int]:
    """What `ulimit -v` leaves of the addresses that this process may use."""
    most, used = resource.getrlimit(resource.RLIMIT_AS)[0], _fields(root / "proc/self/status").get("VmSize")
    if most != resource.RLIM_INFINITY and used is not None:
        yield most - 1024 * used


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    words = [line.replace(":", " ").split() for line in _text(path).splitlines()]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}
