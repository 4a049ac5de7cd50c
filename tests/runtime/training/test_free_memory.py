"""How much memory there is, on machines of several kinds."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from runtime.training.free_memory import available_memory, host_memory


def system(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = "MemTotal:  16000 kB\nMemAvailable:   8000 kB\nSwapFree:  1000 kB\n"


def test_the_machine_alone(tmp_path: Path) -> None:
    assert host_memory(system(tmp_path, {"proc/meminfo": MEMINFO})) == 9000 * 1024


def test_a_control_group_of_version_2(tmp_path: Path) -> None:
    """The limit of a group above counts too; what is cached can be had again."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/memory.current": "500000\n",
        "sys/fs/cgroup/user/memory.max": "4000000\n",
        "sys/fs/cgroup/user/memory.current": "1500000\n",
        "sys/fs/cgroup/user/memory.stat": "anon 900000\ninactive_file 300000\n",
    }
    assert host_memory(system(tmp_path, files)) == 4000000 - 1500000 + 300000


def test_a_control_group_of_version_1(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n",  # whose own path a container does not see
        f"{folder}/memory.limit_in_bytes": "3000000\n",
        f"{folder}/memory.usage_in_bytes": "1000000\n",
        f"{folder}/memory.stat": "total_inactive_file 250000\n",
    }
    assert host_memory(system(tmp_path, files)) == 2250000


def test_a_limit_that_is_none(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
    }
    assert host_memory(system(tmp_path, files)) == 9000 * 1024


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": "1200\n",
    }
    assert host_memory(system(tmp_path, files)) == 0


def test_without_proc_it_is_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", lambda name: pages[name])
    assert host_memory(tmp_path) == 4096000

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert host_memory(tmp_path) is None


def test_this_machine_has_some() -> None:
    found = available_memory(torch.device("cpu"))
    assert found is None or found > 2**20


def test_a_limit_on_the_addresses_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/status": "Name:\tpython\nVmSize:\t 3000 kB\n"}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5000 * 1024, resource.RLIM_INFINITY))
    assert host_memory(system(tmp_path, files)) == 2000 * 1024
