"""A batch that cannot fit is refused before training, with the largest that would."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import runtime.training.memory
from compiler.elaborate.builder import load
from compiler.errors import RunError
from compiler.language.config import RetrainConfig, SearchConfig, TrainingConfig
from compiler.lowering.heap import Heap
from compiler.lowering.memory import MemoryModel, Training
from graphspec import api
from runtime.search.search_job import SearchJob
from runtime.training.memory import available_memory, check_memory, host_memory
from tests.tiny import TINY, write_spec

CPU = torch.device("cpu")
MANY = 10**6  # images


@pytest.fixture(autouse=True)
def unknown_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that grows by what is in use, on every machine."""
    monkeypatch.setattr(runtime.training.memory, "heap_here", lambda: None)


def refusal(tmp_path: Path, config: TrainingConfig, free: int, images: int = MANY, validation: int = 1) -> str:
    _, graph = load(write_spec(tmp_path))
    with pytest.raises(RunError) as caught:
        check_memory(graph, config, CPU, images, validation, free)
    return str(caught.value)


def peak(tmp_path: Path, batch: int, validation: int = 1, **settings: Any) -> int:
    _, graph = load(write_spec(tmp_path))
    return MemoryModel(graph, Training(**settings)).at(batch, validation).peak


# -- the refusal ------------------------------------------------------------------------------------------------------


def test_the_message_names_the_largest_batch_that_fits(tmp_path: Path) -> None:
    free = peak(tmp_path, 100) + 1000
    message = refusal(tmp_path, SearchConfig(batch_size=512), free)
    needed = peak(tmp_path, 512) / 2**20
    assert message.startswith(
        f"search.batch_size 512 does not fit: training takes {needed:.0f} MiB at its peak, "
        f"{free / 2**20:.0f} MiB are available (cpu)\n  try: --set search.batch_size="
    )
    found = re.search(r"search\.batch_size=(\d+), the largest that fits", message)
    assert found is not None
    largest = int(found[1])
    assert peak(tmp_path, largest) <= free < peak(tmp_path, largest + 1)
    assert largest >= 100


def test_on_the_cpu_it_is_what_the_process_grows_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.training.memory, "heap_here", lambda: Heap(pinned=1))
    _, graph = load(write_spec(tmp_path))
    model, config = MemoryModel(graph), SearchConfig(batch_size=512)
    growth = model.growth(Heap(pinned=1), 512, 1)
    assert growth > model.at(512, 1).peak
    check_memory(graph, config, CPU, MANY, 1, growth)
    message = refusal(tmp_path, config, growth - 1)
    taken = model.at(512, 1).peak / 2**20
    assert f"LD_PRELOAD=libjemalloc.so.2 before the command, with which it takes {taken:.0f} MiB" in message
    found = re.search(r"search\.batch_size=(\d+), the largest that fits", message)
    assert found is not None
    assert model.growth(Heap(pinned=1), int(found[1]), 1) < growth
    assert "LD_PRELOAD" not in refusal(tmp_path, config, model.at(512, 1).peak - 1)


def test_what_fits_is_not_refused(tmp_path: Path) -> None:
    _, graph = load(write_spec(tmp_path))
    free = peak(tmp_path, 64)
    check_memory(graph, SearchConfig(batch_size=64), CPU, MANY, 1, free)
    assert "does not fit" in refusal(tmp_path, SearchConfig(batch_size=64), free - 1)


def test_several_processes_need_memory_for_their_slices(tmp_path: Path) -> None:
    _, graph = load(write_spec(tmp_path))
    free = peak(tmp_path, 32) + MemoryModel(graph, Training()).params  # what is sent lies apart
    check_memory(graph, SearchConfig(batch_size=64), CPU, MANY, 1, free, processes=2)
    with pytest.raises(RunError, match=r"batch_size 68 does not fit(?s:.*)--set search.batch_size=64, "):
        check_memory(graph, SearchConfig(batch_size=68), CPU, MANY, 1, free, processes=2)


def test_settings_that_would_fit_are_named_and_no_others(tmp_path: Path) -> None:
    sizes = {
        "search.precision=bf16": peak(tmp_path, 512, half=True),
        "search.recompute=true": peak(tmp_path, 512, recompute=True),
        "search.accumulate=2": peak(tmp_path, 512, accumulate=2),
    }
    for free in sizes.values():
        message = refusal(tmp_path, SearchConfig(batch_size=512), free)
        assert {name: name in message for name in sizes} == {name: size <= free for name, size in sizes.items()}


def test_what_is_on_already_is_not_advised(tmp_path: Path) -> None:
    config = SearchConfig(batch_size=512, recompute=True, precision="bf16", accumulate=4)
    free = peak(tmp_path, 512, half=True, recompute=True, accumulate=4) - 1
    message = refusal(tmp_path, config, free)
    assert "recompute" not in message
    assert "precision" not in message
    assert "search.accumulate=8" in message


def test_a_network_that_fits_at_no_batch_size(tmp_path: Path) -> None:
    message = refusal(tmp_path, SearchConfig(batch_size=8), 1000)
    assert "even a batch size of 1 takes" in message
    assert "--set" not in message


def test_no_batch_is_larger_than_the_data_set(tmp_path: Path) -> None:
    _, graph = load(write_spec(tmp_path))
    free = peak(tmp_path, 50)
    check_memory(graph, SearchConfig(batch_size=512), CPU, 50, 1, free)
    assert "does not fit" in refusal(tmp_path, SearchConfig(batch_size=512), free, images=51)


def test_validation_counts(tmp_path: Path) -> None:
    config = SearchConfig(batch_size=2)
    free = peak(tmp_path, 2, 256) - 1
    assert "does not fit" in refusal(tmp_path, config, free, validation=1000)
    _, graph = load(write_spec(tmp_path))
    check_memory(graph, config, CPU, MANY, 200, free)


def test_evaluation_takes_no_more_images_than_a_step_where_memory_is_saved() -> None:
    found = [
        SearchConfig(batch_size=batch, **settings).evaluation_batch
        for batch in (64, 300)
        for settings in ({}, {"recompute": True}, {"accumulate": 7})
    ]
    assert found == [256, 64, 10, 300, 300, 43]


def test_retraining_is_refused_by_its_own_settings(tmp_path: Path) -> None:
    message = refusal(tmp_path, RetrainConfig(batch_size=4096), peak(tmp_path, 100, searching=False))
    assert "retrain.batch_size 4096 does not fit" in message
    assert "--set retrain.batch_size=100, " in message


@pytest.mark.parametrize(("free", "config"), [(None, SearchConfig()), (1, SearchConfig(compile=True))])
def test_nothing_is_refused_where_nothing_is_known(tmp_path: Path, free: int | None, config: SearchConfig) -> None:
    _, graph = load(write_spec(tmp_path))
    check_memory(graph, config, CPU, MANY, 1, free)


def test_search_and_retrain_ask_before_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = "data: {name: fake, fake_size: 64}\nsearch: {epochs: 1, pretrain_epochs: 0}\nretrain: {epochs: 1}\n"
    path = write_spec(tmp_path, TINY[: TINY.index("data:")] + whole)
    run = api.compile(path).run
    assert run is not None
    monkeypatch.setattr(runtime.training.memory, "available_memory", lambda device: 1000)
    with pytest.raises(RunError, match=r"search.batch_size 64 does not fit"):
        api.search(run)
    assert not run.search.path.exists()
    monkeypatch.setattr(runtime.training.memory, "available_memory", lambda device: None)
    api.search(run)
    monkeypatch.setattr(runtime.training.memory, "available_memory", lambda device: 1000)
    with pytest.raises(RunError, match=r"retrain.batch_size 64 does not fit"):
        api.retrain(run)


def test_other_things_need_memory_too(tmp_path: Path) -> None:
    _, graph = load(write_spec(tmp_path))
    free, config = peak(tmp_path, 64), SearchConfig(batch_size=64)
    check_memory(graph, config, CPU, MANY, 1, free + 1000, besides=1000)
    with pytest.raises(RunError, match="does not fit"):
        check_memory(graph, config, CPU, MANY, 1, free + 999, besides=1000)


def allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def say_what_cuda_says() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [allocate_too_much, say_what_cuda_says])
def test_memory_that_runs_out_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SearchJob, "step", lambda *_: fail())
    with pytest.raises(RunError, match=r"the search has run out of memory: .*llocate(?s:.*)smaller search.batch_size"):
        api.search(write_spec(tmp_path), quiet=True)


# -- what there is ----------------------------------------------------------------------------------------------------


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
    found = available_memory(CPU)
    assert found is None or found > 2**20
