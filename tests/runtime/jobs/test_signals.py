"""Signals, delivered by the system to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from compiler.errors import GraphspecError
from runtime.jobs.signals import Interrupted, StopFlag

# Says when it is ready, works until asked to stop, then writes what stands for a checkpoint.
JOB = """
import sys
from runtime.jobs.signals import Interrupted, StopFlag

with StopFlag() as stop:
    print("ready", flush=True)
    while stop.signum is None:
        pass
    print("checkpoint", flush=True)
    if sys.argv[1] == "stuck":
        while True:
            pass
    sys.exit(Interrupted(stop.signum, "graphspec search --resume").exit_code)
"""

SIGNALS = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])


def start(how: str) -> subprocess.Popen[str]:
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    return job


@SIGNALS
def test_the_first_signal_lets_the_job_write_its_checkpoint(signum: signal.Signals) -> None:
    with start("well") as job:
        job.send_signal(signum)
        out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (128 + signum, "checkpoint\n")
    assert err == f"\n{signum.name}: writing a checkpoint after this step; once more to end at once\n"


@SIGNALS
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(signum: signal.Signals, second: signal.Signals) -> None:
    with start("stuck") as job:
        assert job.stdout is not None
        job.send_signal(signum)
        assert job.stdout.readline() == "checkpoint\n"
        job.send_signal(second)
        _, err = job.communicate(timeout=60)
    assert job.returncode == -second  # a shell shows 128 + second
    assert "Traceback" not in err


@SIGNALS
def test_the_flag_says_which_signal_came(signum: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with StopFlag() as stop:
        assert stop.signum is None
        os.kill(os.getpid(), signum)
        assert stop.signum is not None
    stopped = Interrupted(stop.signum, "graphspec search runs/digits-001-s0 --resume")
    assert isinstance(stopped, GraphspecError)
    assert stopped.exit_code == 128 + signum
    assert str(stopped) == (
        f"stopped by {signum.name} after writing a checkpoint\n"
        "  go on with: graphspec search runs/digits-001-s0 --resume"
    )
    assert capfd.readouterr().err.count("writing a checkpoint") == 1


def test_the_former_handlers_come_back() -> None:
    former = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with suppress(Interrupted), StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        raise Interrupted(stop.signum, "x")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == former


def test_a_reader_that_is_gone_is_no_trouble() -> None:
    kept = os.dup(2)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        os.dup2(writer, 2)
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signum is not None
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)


def test_a_forked_helper_ends_by_default() -> None:
    code = """
import os, signal
from runtime.jobs.signals import StopFlag
with StopFlag() as stop:
    if (child := os.fork()) == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.waitpid(child, 0)[1], stop.signum is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{signal.SIGTERM.value} False\n", "")


def test_outside_the_main_thread_nothing_is_changed() -> None:
    former, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopFlag() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.signum is not None))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(former, False)]
