"""What lies around a command: full disks, lost folders, few files and little memory, control characters, signals."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from compiler.errors import one_line, printable
from runtime.rundir.study import rendered
from tests import warm
from tests.tiny import TINY, command, environment, graphspec, write_spec

FULL = Path("/dev/full")


def run(cwd: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    settings = {"cwd": cwd, "env": environment(), "text": True, "stderr": subprocess.PIPE, "check": False} | options
    return subprocess.run(command(*arguments), **settings)  # type: ignore[call-overload, no-any-return]


def assert_one_message(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [("ops",), ("--help",), ("compile", "tiny.yaml", "--dry-run"), ("schema",)])
def test_output_to_a_full_device(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_spec(tmp_path)
    with FULL.open("w") as full:
        assert_one_message(run(tmp_path, *arguments, stdout=full), "No space left on device")


def test_a_working_directory_that_was_removed(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir {gone}; exec {' '.join(command('search', '--resume'))}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=gone, env=environment(), capture_output=True, text=True, check=False
    )
    assert_one_message(done)


def limited(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


def test_few_files(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    for files in (8, 40):
        done = run(
            tmp_path, "search", str(spec), "--smoke", preexec_fn=limited(resource.RLIMIT_NOFILE, files),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert_one_message(done, f"`ulimit -n` allows {files} open files")


def write_images(folder: Path, *classes: str) -> None:
    for part in ("train", "test"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), 40 * number).save(folder / part / name / f"{number}.png")


def test_too_few_files_for_worker_processes(tmp_path: Path) -> None:
    write_images(tmp_path / "set", "a", "b", "c")
    spec = write_spec(tmp_path)
    options = (
        "classes=3",
        "data.name=folder",
        "data.root=set",
        "data.in_memory=false",
        "data.workers=2",
        "search.epochs=60",
    )
    settings = [word for option in options for word in ("--set", option)]
    for files in (12, 40):
        limit = limited(resource.RLIMIT_NOFILE, files)
        done = run(tmp_path, "search", str(spec), *settings, preexec_fn=limit, stdout=subprocess.PIPE)
        wanted = ("processes beside this one need 96", f"`ulimit -n` allows {files} open files", "data.workers=0")
        assert_one_message(done, *wanted)


@pytest.mark.parametrize("mebibytes", [200, 800, 1600, 2400, 2830, 2900, 3020, 3200, 3400, 3600])
def test_little_memory(tmp_path: Path, mebibytes: int) -> None:
    """Some of these end torch or its threads from inside; which of them is a matter of its build."""
    spec, most = write_spec(tmp_path), mebibytes * 2**20
    done = run(tmp_path, "search", str(spec), "--smoke", preexec_fn=limited(resource.RLIMIT_AS, most))
    if done.returncode:
        assert_one_message(done, "the system refuses", f"`ulimit -v` allows {most:,} bytes of memory")
        assert len(done.stderr.splitlines()) < 10
    else:  # a build of torch that is small
        assert mebibytes > 800


def test_small_files(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    limit = limited(resource.RLIMIT_FSIZE, 1024)
    done = run(tmp_path, "compile", str(spec), "--out", "run", preexec_fn=limit, stdout=subprocess.PIPE)
    assert_one_message(done, "File too large", "`ulimit -f` allows 1,024 bytes a file")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    spec.chmod(0)
    assert_one_message(run(tmp_path, "compile", str(spec)), "Permission denied")


HOSTILE = "\x1b]0;owned\x07\x1b[31mred\r\u202etxt"


def test_text_is_printable() -> None:
    assert printable(HOSTILE) == r"\x1b]0;owned\x07\x1b[31mred\r\u202etxt"
    assert printable("naïve\tnäme\n漢字 🙂") == "naïve\tnäme\n漢字 🙂"


@pytest.mark.parametrize("command_name", ["compile", "show", "bench", "report"])
def test_names_reach_the_terminal_escaped(tmp_path: Path, command_name: str) -> None:
    hostile = tmp_path / HOSTILE.replace("/", "")
    hostile.write_text(TINY.replace("name: tiny", f'name: "{HOSTILE.encode("unicode_escape").decode()}"'))
    done = graphspec(tmp_path, command_name, str(hostile), code=1)
    assert not set(done.stdout + done.stderr) & set("\x1b\x07\r\u202e")
    assert r"\x1b" in done.stderr


LINES = "x\nwrote all of it\ty"


def test_names_forge_no_line(tmp_path: Path) -> None:
    """Of classes, images and what is passed over in a data folder, of a set and its root in a spec, of an argument."""
    data = tmp_path / "set"
    write_images(data, LINES, "b")
    for name in (f"{LINES}.png", f"{LINES}.mp3\nwrote all of it", f".{LINES}"):
        (data / "train" / "b" / name).write_bytes(b"none")
    (data / "train" / "b" / f"link{LINES}").symlink_to(data)
    (data / "train" / f".{LINES}").mkdir()
    spec = write_spec(tmp_path)
    options = ("classes=2", "data.name=folder", f"data.root={data}", "search.epochs=60")
    settings = [word for option in options for word in ("--set", option)]
    assert one_line(LINES) == r"x\nwrote all of it\ty"
    for more in ((), ("--set", "data.skip_corrupt=true")):
        done = warm.run(["search", str(spec), *settings, *more], tmp_path, environment())
        assert done.returncode == (0 if more else 1), done.stderr
        assert r"x\nwrote" in done.stderr
        assert "\nwrote all" not in done.stdout + done.stderr
    done = warm.run(["data", str(data)], tmp_path, environment())
    assert f"  {one_line(LINES)} train " in done.stdout
    assert "\nwrote all" not in done.stdout + done.stderr
    (data / "test" / "b").rename(data / "test" / f"c{LINES}")
    for option in (options[2], f"data.root={data}{LINES}", f"data.name={LINES}"):
        done = warm.run(["compile", str(spec), "--set", option], tmp_path, environment())
        assert "\nwrote all" not in done.stdout + done.stderr
    assert rendered([("class", "images"), (LINES, "3")]).splitlines()[1] == one_line(LINES) + "  3"


def test_an_argument_with_control_characters_is_refused(tmp_path: Path) -> None:
    done = graphspec(tmp_path, f"compile{HOSTILE}", code=1)
    assert "an argument has control characters" in done.stderr
    assert "\x1b" not in done.stderr


def started(folder: Path) -> subprocess.Popen[str]:
    """A search of many epochs that has left its first checkpoint."""
    spec = write_spec(folder, TINY.replace("epochs: 4", "epochs: 400"))
    graphspec(folder, "compile", str(spec), "--out", "run")
    job = warm.Popen(["search", "run"], folder, environment(), stderr=subprocess.PIPE)
    checkpoints, deadline = folder / "run" / "search" / "checkpoints", time.monotonic() + 120
    while not any(checkpoints.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return job


@pytest.mark.slow
def test_a_terminal_that_closes_leaves_a_checkpoint(tmp_path: Path) -> None:
    job = started(tmp_path)
    job.send_signal(signal.SIGHUP)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGHUP, said
    assert "stopped by SIGHUP after writing a checkpoint" in said


@pytest.mark.slow
def test_a_run_that_is_renamed_under_its_job(tmp_path: Path) -> None:
    job = started(tmp_path)
    (tmp_path / "run").rename(tmp_path / "moved")
    _, said = job.communicate(timeout=120)
    assert job.returncode == 1, said
    assert said.count("error:") == 1, said
    assert "error: run: the run was moved or removed while this command worked in it\n  try: " in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
    assert any((tmp_path / "moved" / "search" / "checkpoints").glob("*.json"))


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_while_modules_are_imported(tmp_path: Path, signum: signal.Signals) -> None:
    """Sent by the import of a module, each some way into the command."""
    for module in ("typer", "pydantic", "torch", "torch.utils.data", "runtime.jobs.run_search"):
        script = f"""
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), {int(signum)})
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["search", {str(write_spec(tmp_path))!r}]
from graphspec.cli.main import main
main()
"""
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 128 + signum, (module, done.stderr)
        assert done.stderr == f"stopped by {signum.name}\n"


@pytest.mark.parametrize("signum", SIGNALS)
def test_two_signals_end_a_command_at_once(tmp_path: Path, signum: signal.Signals) -> None:
    spec = write_spec(tmp_path)
    for delay in (0.2, 0.5, 1.0):
        job = subprocess.Popen(
            command("search", str(spec)), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
        )
        time.sleep(delay)
        for _ in range(2):
            job.send_signal(signum)
        _, said = job.communicate(timeout=120)
        if "init_import_site" in said:
            continue  # before our first line runs, Python speaks
        assert job.returncode in (128 + signum, -signum), said
        assert "Traceback" not in said
