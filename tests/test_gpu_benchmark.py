"""The GPU benchmark, tried out on the CPU: everything runs, and what is computed is right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_real
from benchmarks.common import Clock
from benchmarks.gpu_checks import Check
from benchmarks.supernet import KINDS
from tests import warm
from tests.recorded import Recorder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "benchmarks/gpu.sh", *arguments]
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def cells(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]


SPACES = ("dso-nas-cifar10-full", "dso-nas-cifar10-share")


def test_the_script_checks_and_times_everything() -> None:
    done = script("1", "--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stderr
    checks, steps = done.stdout.split("\nsteps\n")
    results = cells(checks)[2:]
    assert len(results) > 30
    assert {row[-1] for row in results} == {"yes"}
    ways = [(s, str(b), v.name) for s in SPACES for b in gpu.TINY_BATCHES for v in gpu.VARIANTS]
    rows = cells(steps)[2 : 2 + 2 * len(ways)]
    assert [row[:4] for row in rows] == [[*way, kind] for way in ways for kind in KINDS]
    assert all(float(row[4].replace(",", "")) > 0 for row in rows)
    assert "search: 120 epochs of " in steps
    assert "| search of the share space, GPU hours | <= 1 | " in steps
    assert steps.count("captured against reference, fp32 | >= 4 | ") == len(SPACES) * 2 * len(KINDS)


def test_without_time_it_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--tiny", "--seconds", "0"]) == 0
    out = capsys.readouterr().out
    for left in ("what is not checked yet", "reference, fp32, batch 8, of dso-nas-cifar10-share", "the projection"):
        assert f"the time is over: {left}" in out


@pytest.fixture
def warm_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that part 2 runs find torch imported; a real call starts a Python for each."""

    def start(command: list[str], *, cwd: Path, env: dict[str, str], **pipes: IO[bytes]) -> warm.Popen:
        assert command[:3] == [sys.executable, "-m", "graphspec"]
        return warm.Popen(command[3:], cwd, env, **pipes)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(gpu_real, "subprocess", SimpleNamespace(Popen=start, TimeoutExpired=subprocess.TimeoutExpired))


@pytest.mark.usefixtures("warm_commands")
def test_searches_and_trainings_stop_by_the_clock_and_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--device", "cpu", "--tiny", "--out", str(tmp_path))
    assert gpu_real.main([*command, "--seconds", str(gpu_real.GRACE + 1)]) == 0
    assert capsys.readouterr().out.count("the time is over: seed ") == 2
    assert gpu_real.main([*command, "--seconds", "500"]) == 0
    out = capsys.readouterr().out
    rows = cells(out)[2:12]
    parts = ["search", "found", *gpu_real.PLAIN.values(), "random"]
    assert sorted(row[:2] for row in rows) == sorted([str(seed), part] for seed in (0, 1) for part in parts)
    assert all(0 <= float(row[3]) <= 1 and 0 < int(row[4]) <= 20_000 for row in rows)
    assert "the time is over" not in out


@pytest.mark.usefixtures("warm_commands")
def test_a_part_that_fails_is_told_of_and_ends_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--device", "cpu", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path), "--seconds", "500")
    assert gpu_real.main(command) == 1
    out = capsys.readouterr().out
    assert out.count("search: exit code 1: ") == 3
    assert "nowhere" in out


def test_the_script_runs_part_2(tmp_path: Path) -> None:
    done = script("2", "--device", "cpu", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "give --data: a folder or archive" in done.stderr


def test_captured_steps_are_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Recorder()
    for module in (gpu, gpu_checks):
        monkeypatch.setattr(module, "graphs_of", lambda _: graphs)
    spec, graph = gpu.load(ROOT / gpu.FULL, gpu.TINY)
    cpu = torch.device("cpu")
    found = [*gpu_checks.captured_checks(graph, spec.config.search, cpu, 4)]
    assert [one.error for one in found] == [0.0, 0.0]
    assert graphs.captures == 4
    assert [one.error for one in gpu_checks.retraining_checks(graph, cpu, 4)] == [0.0]
    assert graphs.captures == 5
    rows = list(gpu.timed(gpu.GRAPH, spec, graph, cpu, 8, tiny=True))
    assert [row.step for row in rows] == list(KINDS)
    assert graphs.captures == 7
    graphs.fails = "no memory"
    with pytest.raises(RuntimeError, match="not as CUDA graphs: no memory"):
        list(gpu.timed(gpu.GRAPH, spec, graph, cpu, 8, tiny=True))
    [_, called] = [*gpu_checks.captured_checks(graph, spec.config.search, cpu, 4)]
    assert not called.passed


def test_hours_are_those_of_all_epochs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(clock))  # 10 s for 2 steps and 10 s for a validation
    monkeypatch.setattr(gpu.SearchJob, "end_epoch", lambda *_: None)
    hours = gpu.projected_hours(*gpu.load(ROOT / gpu.SHARE, gpu.TINY), torch.device("cpu"), tiny=True)
    steps = [int(line.split(" steps of 5000.0 ms")[0].split()[-1]) for line in capsys.readouterr().out.splitlines()[:2]]
    assert hours == pytest.approx(sum(120 * (5 * count + 10) for count in steps) / 3600)


def test_a_wrong_result_ends_in_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("logits", 0.5, 0.1), Check("gates", float("nan"), 0.1), Check("pixels", 0.0, 0.0)]
    monkeypatch.setattr(gpu, "all_checks", lambda *_: checks)
    monkeypatch.setattr(gpu, "measure", lambda *_: [])
    monkeypatch.setattr(gpu, "projected_hours", lambda *_: 1.0)
    assert gpu.main(["--device", "cpu", "--tiny"]) == 1
    out = capsys.readouterr().out
    assert out.count("| NO |") == 2
    assert "WRONG RESULTS" in out


def test_a_variant_that_fails_is_named_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(variant: gpu.Variant, *arguments: object) -> object:
        if variant == gpu.BASE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        return real(variant, *arguments)  # type: ignore[arg-type]

    real = gpu.start
    monkeypatch.setattr(gpu, "start", start)
    monkeypatch.setattr(gpu, "VARIANTS", gpu.VARIANTS[:2])
    rows = gpu.measure(*gpu.load(ROOT / gpu.FULL, gpu.TINY), torch.device("cpu"), tiny=True, clock=Clock(100))
    assert [row.variant for row in rows] == [gpu.BEST.name] * 4
    assert f"| 8 | {gpu.BASE.name} | CUDA out of memory. Tried to allocate 2 GiB. |" in capsys.readouterr().out
    assert [bar.name for bar in gpu.bars(rows, 1.0)] == ["search of the share space, GPU hours"]


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = script("1")
    assert done.returncode == 1
    assert "sees no NVIDIA GPU; to try the program out: --device cpu --tiny" in done.stderr


def test_a_python_without_torch_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    done = script("2")
    assert done.returncode == 1
    assert "has no" in done.stderr
    assert " torch" in done.stderr
