"""A spec small enough to be searched in seconds, and ways to run the command line on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests import warm

TINY = """\
graphspec: 1
name: tiny
input: [1, 8, 8]
classes: 10
symbols: {width: 8}
ops:
  avg_pool_3x3: {op: avg_pool, kernel: 3, norm: batch, act: relu}
blocks:
  stem:
    type: "[1, H, W] -> [width, H/2, W/2]"
    nodes:
      out: {op: conv, kernel: 3, stride: 2, from: in}
  normal:
    type: "[C, H, W] -> [C, H, W]"
    levels: {count: 2, ops: [sep_conv_3x3, avg_pool_3x3]}
    nodes:
      mix: {op: project, from: [levels.*], gated: true}
      out: {op: add, from: [mix, in]}
  reduce:
    type: "[C, H, W] -> [2*C, H/2, W/2]"
    nodes:
      a: {op: conv, kernel: 1, stride: 2, from: in}
      b: {op: conv, kernel: 3, stride: 2, from: in}
      out: {op: add, from: [a, b], gated: true}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {op: global_avg_pool, from: in}
      out: {op: linear, from: pool}
network: [stem, {normal: 2}, reduce, {normal: 1}, head]
data: {name: digits}
search:
  pretrain_epochs: 2
  epochs: 4
  batch_size: 32
  gates: {gamma: 0.05, lr: 0.1}
  prune: {every: 1, patience: 1}
retrain: {epochs: 2, batch_size: 64}
"""


def write_spec(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def environment(site: Path | None = None) -> dict[str, str]:
    """Of a command; packages in `site` are installed there."""
    path = [str(Path(__file__).parent.parent), *([] if site is None else [str(site)])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path), "GRAPHSPEC_TEST": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "graphspec", *arguments]


def graphspec(cwd: Path, *arguments: str, code: int = 0, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line; the exit code must be `code`, and there must be no traceback."""
    done = warm.run(arguments, cwd, environment(site))
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
