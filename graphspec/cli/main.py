"""The entry point `graphspec`.

It imports nothing of `compiler` and `runtime` before it knows that they are ours, and no package of a user's.
"""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import graphspec


class CtrlC:
    """Raises KeyboardInterrupt, and ends the process at once when called again.

    Some libraries swallow the exception while they are imported: `heard` tells a job that it need not start.
    """

    heard = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        if self.heard:
            os._exit(130)
        self.heard = True
        raise KeyboardInterrupt


def main() -> None:
    """Run the command line; SystemExit with the exit code at the end."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, CtrlC())
    try:
        _run()
    except KeyboardInterrupt:  # also while modules are imported
        raise SystemExit(130) from None


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
