"""Processes for the command line that find torch imported: each is forked from one that imports and does nothing else.

Importing torch and torchvision takes seconds, and hundreds of commands are run. What belongs to graphspec is imported
by each process itself, with the folder, environment and arguments that it is given; so is onnxruntime, whose import
starts a thread that a forked process would lack.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTS = ("networkx", "onnx", "pydantic", "rich", "safetensors.torch", "sklearn.datasets", "torch.fx",
           "torch.distributed", "torchvision.transforms.v2", "typer", "yaml")  # fmt: skip


class Popen(subprocess.Popen[str]):
    """`python -m graphspec` with these arguments, as `subprocess.Popen` starts it, in text mode."""

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], **pipes: Any) -> None:
        super().__init__(arguments, cwd=cwd, env=env, text=True, **pipes)

    def _execute_child(self, args: Any, _a: Any, _b: Any, _c: Any, _d: Any, cwd: Any, env: Any, *rest: Any) -> None:
        _, _, _, child_in, _, _, child_out, _, child_error, *_ = rest
        own = [file if file >= 0 else std for std, file in enumerate((child_in, child_out, child_error))]
        self._life = socket.socket(socket.AF_UNIX)
        self._life.connect(_source())
        order = json.dumps({"arguments": [*args], "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(self._life, [len(order).to_bytes(4)], own)
        self._life.sendall(order)
        self.pid = int.from_bytes(self._life.recv(4))
        self._child_created = True
        for file in {child_in, child_out, child_error} - {-1}:
            os.close(file)

    def _try_wait(self, flags: int) -> tuple[int, int]:
        """What `os.waitpid` would say: the source, whose child this is, sends it when the process has ended."""
        self._life.setblocking(not flags & os.WNOHANG)
        try:
            status = self._life.recv(4)
        except BlockingIOError:
            return 0, 0
        self._life.close()
        return self.pid, int.from_bytes(status)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def run(arguments: Sequence[str], cwd: Path, env: Mapping[str, str], **pipes: Any) -> subprocess.CompletedProcess[str]:
    """The same, when it has ended; what it printed is kept unless `pipes` say otherwise."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
    with Popen(arguments, cwd, env, **pipes) as process:
        out, errors = process.communicate()
    return subprocess.CompletedProcess([*arguments], process.returncode, out, errors)


# -- the process that the others are forked from --------------------------------------------------------------------


@functools.cache
def _source() -> str:
    """Where it listens; started by the first that asks."""
    folder = tempfile.mkdtemp()
    place = f"{folder}/source"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen(100)
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        source = subprocess.Popen(
            [sys.executable, __file__, str(listening.fileno())], pass_fds=[listening.fileno()], env=environ
        )
    atexit.register(source.kill)
    return place


def _serve(listening: socket.socket) -> dict[str, Any]:
    """Fork a process for each order, and tell its end; returns in the forked ones, with their order."""
    running: dict[int, socket.socket] = {}
    wakes, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as ready:
        ready.register(listening, selectors.EVENT_READ)
        ready.register(wakes, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is wakes:
                    wakes.recv(1000)
                    _tell_ends(running)
                    continue
                life, _ = listening.accept()
                head, files, _, _ = socket.recv_fds(life, 4, 3)
                order = json.loads(life.recv(int.from_bytes(head), socket.MSG_WAITALL))
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for std, file in enumerate(files):
                        os.dup2(file, std)
                    for end in (listening, life, wakes, wake, *running.values()):
                        end.close()
                    for file in files:
                        os.close(file)
                    return dict(order)
                for file in files:
                    os.close(file)
                running[pid] = life
                life.sendall(pid.to_bytes(4))


def _tell_ends(running: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with running.pop(ended[0]) as life, contextlib.suppress(OSError):
                life.sendall(ended[1].to_bytes(4))


def main() -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    order = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[:1] = [order["cwd"], *filter(None, order["env"].get("PYTHONPATH", "").split(":"))]
    sys.argv = ["graphspec", *order["arguments"]]
    runpy.run_module("graphspec", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
