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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTS = ("networkx", "onnx", "pydantic", "rich", "safetensors.torch", "sklearn.datasets", "torch.fx",
           "torch.distributed", "torch.utils.tensorboard", "torchvision.transforms.v2", "typer", "yaml")  # fmt: skip
LONGEST = 1_000_000  # bytes of an order


class Popen(subprocess.Popen[str]):
    """`python -m graphspec` with these arguments, as `subprocess.Popen` starts it, in text mode."""

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], **pipes: Any) -> None:
        super().__init__(arguments, cwd=cwd, env=env, text=True, **pipes)

    def _execute_child(self, args: Any, _a: Any, _b: Any, _c: Any, _d: Any, cwd: Any, env: Any, *rest: Any) -> None:
        _, _, _, child_in, _, _, child_out, _, child_error, *_ = rest
        own = [file if file >= 0 else std for std, file in enumerate((child_in, child_out, child_error))]
        order = json.dumps({"arguments": [*args], "cwd": str(cwd), "env": dict(env)}).encode()
        self._life, other = socket.socketpair()
        with other:
            socket.send_fds(_source(), [order], [other.fileno(), *own])
        self.pid = int.from_bytes(self._life.recv(4))
        self._child_created = True
        self._close_pipe_fds(*rest[3:9])  # the ends that are the child's; files of the caller stay open

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
def _source() -> socket.socket:
    """Takes orders; started by the first that asks, and ends with this process."""
    ours, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with orders:
        command = [sys.executable, __file__, str(orders.fileno())]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a thread would not be forked
        source = subprocess.Popen(command, pass_fds=[orders.fileno()], env=environ)

    def end() -> None:
        ours.close()
        source.wait()

    atexit.register(end)
    return ours


def _serve(orders: socket.socket) -> dict[str, Any]:
    """Fork a process for each order, and tell its end; returns in the forked ones, with their order."""
    running: dict[int, socket.socket] = {}
    wakes, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as ready:
        ready.register(orders, selectors.EVENT_READ)
        ready.register(wakes, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is wakes:
                    wakes.recv(1000)
                    _tell_ends(running)
                    continue
                order, files, _, _ = socket.recv_fds(orders, LONGEST, 4)
                if not order:
                    sys.exit()
                life, pid = socket.socket(fileno=files.pop(0)), os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for std, file in enumerate(files):
                        os.dup2(file, std)
                    for end in (orders, life, wakes, wake, *running.values()):
                        end.close()
                for file in files:
                    os.close(file)
                if not pid:
                    return dict(json.loads(order))
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
