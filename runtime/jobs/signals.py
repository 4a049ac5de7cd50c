"""Ctrl-C, SIGTERM and SIGHUP (the terminal is gone): the first asks the training loop to stop after its step, the
second ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from compiler.errors import GraphspecError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it, and a second signal leaves it no time to show it again


class Interrupted(GraphspecError):  # noqa: N818  the user asked for it: it is no error
    """A signal stopped the job after a checkpoint; `exit_code` is 128 + the signal's number, as a shell has it."""

    def __init__(self, signum: int, resume_command: str) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} after writing a checkpoint\n  go on with: {resume_command}")


class StopFlag:
    """A context in which the first of these signals sets `signum`, which the loop polls between steps.

    From then on they do what the system does by default, so that a second one ends the process even inside a
    long computation. With `speaks` it says so on stderr. Leaving the context puts the former handlers back. Outside
    the main thread Python delivers no signals: there the context changes nothing.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.signum: int | None = None
        self._speaks = speaks
        self._process = os.getpid()
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if any(getattr(signal.getsignal(each), "heard", 0) for each in STOPPING):  # by the command line, in its start
            raise KeyboardInterrupt
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
                    self._former[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *raised: object) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        for each in self._former:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != self._process:  # a forked helper has no checkpoint to write
            os.kill(os.getpid(), signum)
            return
        self.signum = signum
        if not self._speaks:
            return
        # Written past sys.stderr's buffer, which the interrupted code may be in the middle of writing to.
        text = f"\n{signal.Signals(signum).name}: writing a checkpoint after this step; once more to end at once\n"
        with suppress(OSError):  # nobody may be reading any more
            os.write(2, (text + _SHOW_CURSOR * os.isatty(2)).encode())
