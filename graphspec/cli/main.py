"""The entry point `graphspec`.

It imports nothing of `compiler` and `runtime` before it knows that they are ours, and no package of a user's.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import graphspec


class Stop:
    """Handler of signals: the first says so and raises KeyboardInterrupt, the second ends the process at once.

    Some libraries swallow the exception while they are imported: `heard` tells a job that it need not start.
    """

    heard = 0  # the signal

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Where a job runs, it has handlers of its own in this one's place."""
        if self.heard:
            os._exit(128 + signum)
        self.heard = signum
        with suppress(OSError):  # nobody may be reading any more
            os.write(2, f"stopped by {signal.Signals(signum).name}\n".encode())
        raise KeyboardInterrupt


def main() -> None:
    """Run the command line; SystemExit with the exit code at the end."""
    stop = Stop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(signum, stop)
    try:
        _run()
    except BaseException:  # what a library makes of the interrupt while it is imported, too
        if stop.heard:  # Python ends by SIGINT where code that a library compiles was interrupted
            os._exit(128 + stop.heard)
        raise


def _run() -> None:
    _refuse_shadowed()
    if "OMP_WAIT_POLICY" not in os.environ:  # threads that wait for each other keep other programs from ending soon
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when torch is imported; changes no result
    from graphspec.cli.app import run

    run()


def _refuse_shadowed() -> None:
    """SystemExit with a message (exit code 1) if `compiler` or `runtime` is not the package beside graphspec."""
    home = Path(graphspec.__file__).resolve().parent.parent
    for name in ("compiler", "runtime"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != home / name / "__init__.py":
            raise SystemExit(
                f"error: {found or 'nothing'} is imported as {name!r}, "
                f"but graphspec needs its own package of that name\n"
                f"  try: the command `graphspec` instead of `python -m graphspec`, another working directory, "
                f"or rename yours"
            )
