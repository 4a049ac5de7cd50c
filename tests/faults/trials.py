"""Commands in forked children of a process that has imported everything, so that a trial costs a fraction of a second.

The parent itself runs no command: it stays without threads and without anything that a trial could inherit.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS, WALL_SECONDS = 10, 40  # a command that takes more hangs; the wall clock is that of a busy machine
FORGED = "x\nwrote all of it"  # a name that, printed as it is, would be a line of ours
CRASHED = 99  # exit code of a child with a traceback
SPEC = """\
graphspec: 1
name: tiny
input: [1, 8, 8]
classes: 3
symbols: {width: 4}
blocks:
  stem:
    type: "[1, H, W] -> [width, H/2, W/2]"
    nodes:
      out: {op: conv, kernel: 3, stride: 2, from: in}
  normal:
    type: "[C, H, W] -> [C, H, W]"
    levels: {count: 2, ops: [sep_conv_3x3, max_pool_3x3]}
    nodes:
      mix: {op: project, from: [levels.*], gated: true}
      out: {op: add, from: [mix, in]}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {op: global_avg_pool, from: in}
      out: {op: linear, from: pool}
network: [stem, {normal: 1}, head]
data: {name: fake, fake_size: 40}
search: {pretrain_epochs: 1, epochs: 2, batch_size: 8, gates: {gamma: 0.3, lr: 0.1}, prune: {every: 1, patience: 1}}
retrain: {epochs: 2, batch_size: 8}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int  # exit code, or minus the signal
    text: str  # what it printed

    @property
    def problem(self) -> str:
        """What is wrong with a command that may fail, but must say so; empty if nothing is."""
        if self.code in (-signal.SIGALRM, -signal.SIGXCPU):
            return f"hangs: {self.text[-300:]}"
        if "\n" + FORGED.splitlines()[1] in self.text or "\x1b[2J" in self.text:
            return f"prints what a file holds as it is: {self.text[-1500:]}"
        if self.code not in (0, 1) or "Traceback" in self.text:
            return f"ended with {self.code}: {self.text[-1500:]}"
        return "" if self.code == 0 or "error: " in self.text else f"failed without a word: {self.text[-300:]}"


def warm() -> None:
    """Import everything that a command needs."""
    import onnxruntime  # noqa: F401
    import torch

    import runtime.export.bench
    import runtime.export.run_export
    import runtime.inference.evaluate
    import runtime.jobs.run_retrain
    import runtime.jobs.run_search
    import runtime.jobs.run_study
    import runtime.reporting.page
    import runtime.strategies.dso

    fork = multiprocessing.get_context("fork")  # a server would import everything again in each trial
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment, misc]
    torch.set_num_threads(1)
    runtime.export.run_export.LATENCY_BATCHES = runtime.export.run_export.THREADS = (1,)


def run(folder: Path, *arguments: str, before: Callable[[], None] | None = None) -> Outcome:
    """Run a command in a child whose working folder is `folder`; `before` is called in the child first."""
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os._exit(_work(folder, arguments, output.fileno(), before))
        status = os.waitpid(child, 0)[1]
        output.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), output.read().decode("utf-8", "replace"))


def _work(folder: Path, arguments: Sequence[str], output: int, before: Callable[[], None] | None) -> int:
    from graphspec.cli.app import run as command

    os.chdir(folder)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = ["graphspec", *arguments]
    signal.alarm(WALL_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (_cpu_used() + CPU_SECONDS, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        if before:
            before()
        command()
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        return CRASHED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _cpu_used() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int(used.ru_utime + used.ru_stime) + 1


@contextmanager
def copied(source: Path) -> Iterator[Path]:
    """A copy of a folder, links as links, that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="graphspec-fault-") as folder:
        shutil.copytree(source, Path(folder) / "copy", symlinks=True)
        yield Path(folder) / "copy"


def contents(folder: Path, skipped: Sequence[str] = ()) -> dict[str, str]:
    """Every file below a folder with a digest of what it holds but for the folder's path; links by what they name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and not any(part in name for part in skipped):
            found[name] = hashlib.sha256(path.read_bytes().replace(str(folder.resolve()).encode(), b"")).hexdigest()
    return found


def states(folder: Path) -> dict[str, Path]:
    """Working folders by how far their run `run` is: compiled, stopped while searching, searched and so on."""
    made = {name: folder / name for name in ("start", "compiled", "searching", "searched", "retraining", "retrained")}
    made["finished"] = folder / "finished"
    steps = (
        ("start", "compiled", ("compile", "tiny.yaml", "--out", "run")),
        ("compiled", "searched", ("search", "run")),
        ("searched", "retrained", ("retrain", "run")),
        ("retrained", "finished", ("export", "run", "--int8")),
    )
    made["start"].mkdir()
    (made["start"] / "tiny.yaml").write_text(SPEC, encoding="utf-8")
    for before, after, command in steps:
        shutil.copytree(made[before], made[after], symlinks=True)
        done = run(made[after], *command)
        assert done.code == 0, done.text
    for command in ("evaluate", "report"):
        assert run(made["finished"], command, "run").code == 0
    for before, after, job in (("compiled", "searching", "search"), ("searched", "retraining", "retrain")):
        shutil.copytree(made[before], made[after], symlinks=True)
        stopped = run(made[after], job, "run", before=_stop_after_two_checkpoints)
        assert stopped.code == -signal.SIGKILL, stopped.text
    return made


def _stop_after_two_checkpoints() -> None:
    from runtime.rundir.checkpoint import CheckpointStore

    save = CheckpointStore.save

    def stopping(self: CheckpointStore, number: int, *what: object) -> None:
        save(self, number, *what)  # type: ignore[arg-type]
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    CheckpointStore.save = stopping  # type: ignore[method-assign]
