"""The GPU benchmark, tried out on the CPU: everything runs, and what is computed is right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_checks import Check

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "benchmarks/gpu.sh", *arguments]
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def cells(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]


def test_the_script_checks_and_times_everything() -> None:
    done = script("--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stderr
    checks, steps = done.stdout.split("\nsteps of ")
    results = cells(checks)[2:]
    assert len(results) > 30
    assert {row[-1] for row in results} == {"yes"}
    rows = cells(steps)[2 : 2 + 2 * len(gpu.VARIANTS)]
    assert [row[:2] for row in rows] == [[v.name, kind] for v in gpu.VARIANTS for kind in gpu.KINDS]
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)
    assert "search: 120 epochs of " in steps
    assert "| search of the share space, GPU hours | <= 3 | " in steps


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
    rows = gpu.measure(*gpu.load(ROOT / gpu.FULL, gpu.TINY), torch.device("cpu"), tiny=True)
    assert [row.variant for row in rows] == [gpu.BEST.name] * 2
    assert f"| {gpu.BASE.name} | CUDA out of memory. Tried to allocate 2 GiB. |" in capsys.readouterr().out
    assert [bar.name for bar in gpu.bars(rows, 1.0)] == ["search of the share space, GPU hours"]


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = script()
    assert done.returncode == 1
    assert "sees no NVIDIA GPU; to try the program out: --device cpu --tiny" in done.stderr


def test_a_python_without_torch_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    done = script()
    assert done.returncode == 1
    assert "has no" in done.stderr
    assert " torch" in done.stderr
