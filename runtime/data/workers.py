"""Worker processes that answer requests one after the other, and what to say when they cannot.

Answers come back through shared memory. Where that is too small for those under way (64 MB is usual in a container, and
a full one stops the workers for ever), they come through pipes, which is slower.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader, default_convert

from compiler.errors import RunError, advice_on

AHEAD = 2  # answers that a worker makes before they are asked for
LOOK = 5.0  # seconds between looks at workers that say nothing: one may be dead
WAIT = 600.0  # seconds until they are given up
SHARED = "/dev/shm"
FILES, FILES_EACH = 64, 16  # open ones, of a job and more for each worker: twice what was found
LOCKS, LOCKS_EACH = 64 * 1024, 24 * 1024  # bytes of shared memory, of a loader and more for each worker: twice as well
HAVE_SENDERS = hasattr(signal, "sigwaitinfo")  # can be told apart by who sent them: not on macOS
UNHEARD = {signal.SIGINT, signal.SIGHUP} | ({signal.SIGTERM} if HAVE_SENDERS else set())
DIED = "died, perhaps for its memory"


def answers(source: Any, requests: Iterable[Any], workers: int, most: int, *, pin: bool) -> Iterator[Any]:
    """`source[request]` for each, in order: the first item a numpy array of at most `most` bytes, given as a tensor.

    Made by so many worker processes (0: in this one). RunError if one of them dies or all fall silent.
    """
    refuse_few_files(workers, "; or --set data.workers=0")
    free = _free(SHARED)
    if workers and free < LOCKS + LOCKS_EACH * workers:
        raise RunError(f"{SHARED} has {free:,} bytes left, too few for worker processes\n  try: --set data.workers=0")
    fits = free > (AHEAD + 1) * max(1, workers) * most
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        timeout=LOOK if workers else 0,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=default_convert if fits else _as_it_is,  # tensors travel through shared memory, arrays do not
        pin_memory=pin,
        generator=torch.Generator(),  # a seed for the workers is drawn from it, not from the run's random state
        worker_init_fn=_live_and_die_with_the_parent,
        # Forking a process that runs threads (torch's, CUDA's) can hang the child.
        multiprocessing_context=_worker_context() if workers else None,
    )
    with _sheltered() if workers else contextlib.nullcontext():
        iterator = iter(loader)
    return _explained(iterator)


def _explained(iterator: Iterator[Any]) -> Iterator[Any]:
    waited = 0.0
    while True:
        try:
            pixels, *rest = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            silent = "timed out" in str(error)
            waited += LOOK
            if silent and waited < WAIT:
                continue
            if "DataLoader" not in str(error):
                raise
            raise RunError(
                f"a process that loads images {f'has given nothing for {WAIT:.0f} s' if silent else DIED}: {error}\n"
                f"  try: a lower data.workers (0: none), or a smaller batch size"
            ) from error
        waited = 0.0
        yield (torch.as_tensor(pixels), *rest)


def refuse_few_files(processes: int, other: str = "") -> None:
    """RunError where so many more processes could run out of open files, in the middle of what they do."""
    needed = (FILES + FILES_EACH * processes) if processes else 0
    if needed > resource.getrlimit(resource.RLIMIT_NOFILE)[0] != resource.RLIM_INFINITY:
        raise RunError(f"processes beside this one need {needed} open files\n  try: {advice_on(errno.EMFILE)}{other}")


def _free(folder: str) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:  # systems without it share memory in another way
        return float("inf")


def _as_it_is(answer: Any) -> Any:
    return answer


@contextlib.contextmanager
def _sheltered() -> Iterator[None]:
    """What stops a job never reaches the processes started in here, which inherit the mask; for this one it waits. Nor
    do they import the user's script, whose top level would run once more in each.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, UNHEARD)
    resource_tracker.ensure_running()  # its start takes some out of the mask
    signal.pthread_sigmask(signal.SIG_BLOCK, UNHEARD)
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live_and_die_with_the_parent(_: int) -> None:
    """Outlive the signals that stop a job and often reach all of its processes (Ctrl-C, a terminal that closes,
    `timeout`, a batch system) while the parent still needs batches, but not the parent or its word: torch's own watch
    looks at the process that forked the worker, which here is the fork server.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, UNHEARD)  # for a fork server that others started, with interrupts
    sys.excepthook = _unsaid
    if parent := multiprocessing.parent_process():
        for end in (parent.join, lambda: _told_by(parent.pid))[: 1 + HAVE_SENDERS]:
            threading.Thread(target=_exit_after, args=[end], daemon=True).start()


def _unsaid(*_: object) -> None:
    """What fails in a worker is told by the parent. Only multiprocessing's thread that hands memory over comes here,
    with a traceback that whoever was taking it has gone.
    """


def _told_by(process: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass


def _exit_after(end: Callable[[], object]) -> None:
    end()
    os._exit(1)


def _worker_context() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "PIL.Image"])  # imported once, not once per worker
    return context


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
