"""Freed memory stays with the process while it trains, and only then."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest

from graphspec import api
from runtime.jobs import runner as jobs
from runtime.training.loop import Loop
from tests.tiny import environment, write_spec

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap is what is set")

PROGRAM = """
import json, resource
import torch
from runtime.training.heap import freed_memory_kept, give_back

def faults(rounds=10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [torch.ones(megabytes * 2**18) for megabytes in (48, 8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    pages = open("/proc/self/statm").read().split()[1]
    return int(pages) * resource.getpagesize() / 2**20

faults()
start = resident()
found = {"before": faults()}
with freed_memory_kept():
    faults()
    found["within"] = faults()
    found["held"] = resident() - start
    give_back()
    found["given back"] = resident() - start
    faults()
found["after"] = resident() - start
print(json.dumps(found))
"""
PAGES = 56 * 256  # of 4 KiB in the blocks of one round
SETTINGS = ("MALLOC_", "GLIBC_", "LD_PRELOAD")  # names in the environment that begin so


def run(program: str = PROGRAM, **settings: str) -> Any:
    command = [sys.executable, "-c", program]
    names = {name: value for name, value in environment().items() if not name.startswith(SETTINGS)}
    done = subprocess.run(command, env=names | settings, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> Any:
    return run()


def test_freed_memory_is_used_again_without_the_kernel(found: Any) -> None:
    assert found["within"] < PAGES / 10
    assert found["held"] > 50


def test_it_is_given_back_when_asked_for_and_at_the_end(found: Any) -> None:
    assert found["given back"] < 10
    assert found["after"] < 10


EVALUATION = """
import json, resource
import torch
from torch import nn
from runtime.training.heap import freed_memory_kept
from runtime.training.step import evaluate
from tests.tasks import class_task

def resident():
    pages = open("/proc/self/statm").read().split()[1]
    return int(pages) * resource.getpagesize() / 2**20

def batch():
    torch.ones(48 * 2**18)
    held.append(resident() - start)
    yield torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    torch.ones(64 * 2**18)

module, held, start = nn.Linear(3, 2), [], 0
evaluate(class_task(2), module, batch())
held.clear()
start = resident()
with freed_memory_kept():
    blocks = [torch.ones(2**18) for _ in range(60)]
    del blocks
    held.append(resident() - start)
    evaluate(class_task(2), module, batch())
    held.append(resident() - start)
print(json.dumps(held))
"""


def test_validation_does_not_add_to_what_steps_hold() -> None:
    after_step, within, after = run(EVALUATION)
    assert after_step > 55
    assert within < 58  # its own 48 MiB, and not those of the step
    assert after < 10


@pytest.mark.parametrize(
    "settings", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}]
)
def test_the_environment_has_the_last_word(settings: dict[str, str]) -> None:
    assert run(**settings)["held"] < 10


@pytest.mark.slow
def test_all_training_is_done_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, train = [], Loop.run

    @contextmanager
    def noted() -> Iterator[None]:
        events.append("kept")
        yield
        events.append("given back")

    def run(loop: Loop) -> None:
        events.append("train")
        train(loop)

    monkeypatch.setattr(jobs, "freed_memory_kept", noted)
    monkeypatch.setattr(Loop, "run", run)
    short = ["search.pretrain_epochs=0", "search.epochs=1", "retrain.epochs=1", "budget.params=null"]
    with chdir(tmp_path):
        api.compile(write_spec(tmp_path), overrides=short)
        api.search(quiet=True)
        api.retrain(quiet=True)
    assert events == 2 * ["kept", "train", "given back"]
