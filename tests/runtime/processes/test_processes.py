"""Search and retrain by several processes under torchrun, on the CPU with gloo; also when one of them is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import graphspec
from compiler.errors import RunError
from runtime.jobs.signals import Interrupted
from runtime.processes.world import World
from runtime.training.loop import Loop
from tests.tiny import environment, write_spec

pytestmark = pytest.mark.slow

# Rates are low, so that rounding does not grow from step to step, and after the first pruning gates rest, so that none
# is near its threshold. Every kind of random draw is on.
SETTINGS = (
    "data.name=digits", "data.flip=true", "data.crop_padding=1",
    "search.pretrain_epochs=1", "search.epochs=4", "search.batch_size=64", "search.lr=0.005",
    "search.gates.schedule={kind: step, milestones: [0.75], factor: 0.01}",
    "search.gates.lr=0.1", "search.gates.gamma=0.16", "search.gates.momentum=0.5",
    "retrain.epochs=2", "retrain.batch_size=64", "retrain.lr=0.005", "retrain.drop_path=0.3", "retrain.dropout=0.3",
    "retrain.ema=0.8", "retrain.mixup=0.4", "retrain.cutmix=1", "retrain.clip_norm=2", "retrain.keep=best",
)  # fmt: skip
JOBS = ("search", "retrain")
FILES = ("metrics.jsonl", "weights.safetensors", "graph.txt")


def torchrun(*arguments: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
    return [sys.executable, *launcher, "-m", "graphspec", *arguments]


def compiled(folder: Path, name: str) -> Path:
    run = folder / "runs" / name
    graphspec.compile(write_spec(folder), out=run, overrides=SETTINGS, root=folder / "runs")
    return run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that two processes have searched and retrained."""
    run = compiled(tmp_path_factory.mktemp("two"), "two")
    for job in JOBS:
        done = subprocess.run(
            torchrun(job, str(run), "--json"), env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["run"] == str(run), "one process speaks"
        assert done.stderr.count("wrote ") == 1
    yield run
    shutil.rmtree(run)


def test_two_processes_give_what_one_gives(tmp_path: Path, shared: Path) -> None:
    run = compiled(tmp_path, "one")
    graphspec.search(run, quiet=True)
    graphspec.retrain(run, quiet=True)
    for job in JOBS:
        records = [_records(folder / job) for folder in (run, shared)]
        for alone, together in zip(*records, strict=True):
            assert alone.get("zero_gates") == together.get("zero_gates")
            for key in {"train_loss", "loss", "gate_loss"} & alone.keys():
                assert together[key] == pytest.approx(alone[key], rel=1e-4), (job, alone["epoch"], key)
        weights = [safetensors.torch.load_file(folder / job / "weights.safetensors") for folder in (run, shared)]
        assert weights[0].keys() == weights[1].keys()
        for name, value in weights[0].items():
            torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    kept = json.loads((run / "search" / "result.json").read_text())["kept_gates"]
    assert 1 < kept < 38, "too little or too much was pruned to tell anything"
    assert json.loads((shared / "search" / "environment.json").read_text())["processes"] == 2


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("job", "rank", "checkpoint"), [("search", 1, 2), ("retrain", 0, 1)])
def test_a_job_of_which_a_process_is_killed_goes_on_with_the_same_command(
    tmp_path: Path, shared: Path, job: str, rank: int, checkpoint: int
) -> None:
    run = compiled(tmp_path, "killed")
    if job == "retrain":
        shutil.copytree(shared / "search", run / "search")
    command = torchrun(job, str(run), "--resume")
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as launcher:
        _wait_for(run / job / "checkpoints" / f"{checkpoint:08}.json", launcher)
        os.kill(_process_of(rank, launcher), signal.SIGKILL)
        launcher.communicate()
    assert launcher.returncode != 0
    assert not (run / job / "result.json").exists()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "no checkpoint yet" not in again.stderr
    _same_files(run / job, shared / job)


def _same_files(folder: Path, other: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def _wait_for(path: Path, launcher: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert launcher.poll() is None, "it ended early"
        time.sleep(0.01)


def _process_of(rank: int, launcher: subprocess.Popen[str]) -> int:
    """The child that has this rank; needs Linux."""
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return int(pid)
    raise AssertionError(f"no process has rank {rank}")


@pytest.mark.parametrize("failure", [RunError("a disk is full"), RuntimeError("out of memory"), None], ids=str)
def test_a_process_that_fails_does_not_wait_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    """Leaving a group of processes may wait for them: only those do it that end together, after a signal too."""

    def fail(loop: Loop) -> None:
        raise failure or Interrupted(signal.SIGTERM, "again")

    left: list[World] = []
    monkeypatch.setattr(World, "leave", lambda world: left.append(world))
    monkeypatch.setattr(Loop, "run", fail)
    with pytest.raises(type(failure) if failure else Interrupted):
        graphspec.search(compiled(tmp_path, "failed"), quiet=True)
    assert len(left) == (failure is None)


@pytest.mark.parametrize("options", [{"seeds": [0, 1]}, {"overrides": ["search.strategy=random"]}], ids=str)
def test_what_one_process_does_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    run = compiled(tmp_path, "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="runs in one process, and torchrun has started 2"):
        graphspec.search(run, **options)
    with pytest.raises(RunError, match=r"compiling runs in one process(?s:.*)then torchrun with the run"):
        graphspec.search(tmp_path / "tiny.yaml")
    assert not (run / "search").exists()
