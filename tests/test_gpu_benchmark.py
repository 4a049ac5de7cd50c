"""The GPU benchmark, tried out on the CPU: everything but CUDA's own parts runs, and what is computed is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu_checks import Check

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*arguments, "--device", "cpu", "--tiny"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = run("bash", "benchmarks/gpu.sh", "--python", sys.executable, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_computed_is_right(report: dict[str, Any]) -> None:
    assert len(report["checks"]) > 30
    assert [row["name"] for row in report["checks"] if not row["passed"]] == []


def test_every_step_that_a_cpu_can_take_is_timed(report: dict[str, Any]) -> None:
    variants = [v for v in (*gpu.FIRST, *gpu.REST) if not v.needs_cuda()]
    full = [(row["variant"], row["step"]) for row in report["rows"] if row["space"] == "full"]
    assert full == [(v.name, kind) for v in variants for kind in ("weight", "gate")]
    assert all(row["median_seconds"] > 0 and row["kernels"] > 100 for row in report["rows"])
    assert {row["space"] for row in report["rows"]} == {"full", "share"}
    assert report["left_out"] == [f"full: {gpu.COMPILED.name}"]


def test_the_search_is_projected_from_what_was_measured(report: dict[str, Any]) -> None:
    search = report["search"]
    whole = [s["epochs"] * (s["steps_per_epoch"] * s["step"] + s["end"]) for s in search["stages"].values()]
    assert [s["epochs"] for s in search["stages"].values()] == [120, 120]
    assert search["hours"] == pytest.approx(sum(whole) / 3600, rel=1e-9)


def test_no_budget_leaves_everything_out_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    space = gpu.Space.of("full", gpu.FULL, tiny=True)
    report = gpu.Report(gpu.torch.device("cpu"), deadline=0.0, tiny=True, as_json=False)
    gpu.steps(report, space, gpu.FIRST[:2])
    assert report.rows == []
    assert report.left_out == [f"full: {gpu.BASE}", f"full: {gpu.BEST}"]
    assert capsys.readouterr().out == ""


def test_a_wrong_result_ends_in_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("logits", 0.5, 0.1), Check("gates", float("nan"), 0.1), Check("pixels", 0.0, 0.0)]
    monkeypatch.setattr(gpu, "all_checks", lambda *_: checks)
    assert gpu.main(["--device", "cpu", "--tiny"]) == 1
    out = capsys.readouterr().out
    assert out.count("| NO |") == 2
    assert "nothing was timed" in out


def test_without_a_gpu_it_says_how_to_try_it() -> None:
    if gpu.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--python", sys.executable], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "sees no NVIDIA GPU" in done.stderr
    assert "--device cpu --tiny" in done.stderr


def test_a_python_without_torch_is_told_apart(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    done = run("bash", "benchmarks/gpu.sh", "--python", str(bare))
    assert done.returncode == 1
    assert "has no torch" in done.stderr
