"""The GPU benchmark, tried out on the CPU: everything but CUDA's own parts runs, and what is computed is right."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from benchmarks import gpu, gpu_steps
from benchmarks.gpu_checks import Check
from benchmarks.gpu_steps import Variant
from runtime.search.supernet import Supernet

ROOT = Path(__file__).parent.parent


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "benchmarks/gpu.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        status = gpu.main(["--device", "cpu", "--tiny", "--json"])
    assert status == 0, told.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue())
    return found | {"told": told.getvalue()}


def test_what_is_computed_is_right(report: dict[str, Any]) -> None:
    assert len(report["checks"]) > 30
    assert [row["name"] for row in report["checks"] if not row["passed"]] == []


def test_every_step_that_a_cpu_can_take_is_timed(report: dict[str, Any]) -> None:
    variants = [v for v in (*gpu.FIRST, *gpu.NEXT, *gpu.LAST) if not v.needs_cuda()]
    full = [(row["variant"], row["step"]) for row in report["rows"] if row["space"] == "full"]
    assert full == [(v.name, kind) for v in variants for kind in ("weight", "gate")]
    assert all(row["median_seconds"] > 0 for row in report["rows"])
    assert all(row["kernels"] > 100 for row in report["profiles"])
    profiled = [(v.name, kind) for v in gpu.FIRST if not v.needs_cuda() for kind in gpu.KINDS]
    assert [(row["variant"], row["step"]) for row in report["profiles"]] == profiled
    assert {row["space"] for row in report["rows"]} == {"full", "share"}
    assert report["left_out"] == [f"full: {variant.name}" for variant in gpu.COMPILED]


def test_the_search_is_projected_from_what_was_measured(report: dict[str, Any]) -> None:
    search = report["search"]
    whole = [s["epochs"] * (s["steps_per_epoch"] * s["step"] + s["end"]) for s in search["stages"].values()]
    assert [s["epochs"] for s in search["stages"].values()] == [120, 120]
    assert search["hours"] == pytest.approx(sum(whole) / 3600, rel=1e-9)


def test_no_budget_leaves_everything_out_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    space = gpu.Space.of("full", gpu.FULL, tiny=True)
    report = gpu.Report(torch.device("cpu"), deadline=0.0, tiny=True, as_json=False)
    gpu.steps(report, space, gpu.FIRST[:2])
    assert report.rows == []
    assert report.left_out == [f"full: {gpu.BASE.name}", f"full: {gpu.BEST.name}"]
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch's own tracer
def test_compiled_steps_are_measured_and_what_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, compiled = gpu.COMPILED[:2]

    def start(variant: Variant, *arguments: Any) -> Supernet:
        if variant == broken:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        return gpu_steps.start(variant, *arguments)

    monkeypatch.setattr(gpu, "start", start)
    monkeypatch.setattr(gpu, "COMPILED", (broken, compiled))
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=aot_eager))
    assert gpu.main(["--device", "cpu", "--tiny", "--compiled-rows"]) == 0
    lines = [f"{gpu.ROW}{{half a line", *capsys.readouterr().out.splitlines(keepends=True)]
    report = gpu.Report(torch.device("cpu"), deadline=0.0, tiny=True, as_json=False)
    space = gpu.Space.of("full", gpu.FULL, tiny=True)
    done = [gpu.compiled_row(report, space, text) for text in lines]
    assert done == [set(), {broken.name}, {compiled.name}, {compiled.name}]
    assert [(row["variant"], row["step"]) for row in report.rows] == [(compiled.name, kind) for kind in gpu.KINDS]
    assert f"| full | {broken.name} | CUDA out of memory. Tried to allocate 2 GiB. |" in capsys.readouterr().out


def test_a_wrong_result_ends_in_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("logits", 0.5, 0.1), Check("gates", float("nan"), 0.1), Check("pixels", 0.0, 0.0)]
    monkeypatch.setattr(gpu, "all_checks", lambda *_: checks)
    monkeypatch.setattr(gpu, "run", lambda _: None)
    assert gpu.main(["--device", "cpu", "--tiny"]) == 1
    out = capsys.readouterr().out
    assert out.count("| NO |") == 2
    assert "WRONG RESULTS" in out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_hangs_is_stopped_with_what_was_found(options: list[str]) -> None:
    """A main thread that waits in C, as for a GPU, runs no Python and hears no signal."""
    program = """
import threading
from benchmarks import gpu
from benchmarks.gpu_checks import Check
gpu.GRACE = 0.0
gpu.all_checks = lambda *_: [Check("logits", 0.0, 0.1)]
gpu.run = lambda report: threading.Event().wait()
"""
    command = f"{program}\ngpu.main(['--device', 'cpu', '--tiny', '--budget-seconds', '1', *{options}])"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("stopped: the time is up\n")
    assert "logits" in done.stdout
    if options:
        assert [check["name"] for check in json.loads(done.stdout)["checks"]] == ["logits"]


def test_without_a_gpu_it_says_how_to_try_it() -> None:
    done = script("--python", sys.executable)
    assert done.returncode == 1
    assert "sees no NVIDIA GPU" in done.stderr
    assert "--device cpu --tiny" in done.stderr


def test_a_python_without_torch_is_told_apart(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    done = script("--python", str(bare))
    assert done.returncode == 1
    assert "has no torch" in done.stderr


def test_the_script_hands_its_arguments_on() -> None:
    done = script("--python", sys.executable, "--device", "cpu", "--no-such-option")
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-option" in done.stderr
