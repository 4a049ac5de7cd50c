"""`python -m tests.faults [MOST]`: all faults, or `MOST` of each sort; counts and seconds, exit code 1 if any broke.

`--only WORD` takes those whose description holds the word.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults import damage, disk
from tests.faults.trials import states, warm

PROCESSES = 2


def tried(trials: Sequence[Any], problem: Callable[[Any], str]) -> dict[str, str]:
    """The trials that something is wrong with, by their description, and what is wrong."""
    readers = []
    for share in range(PROCESSES):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            found = {str(trial): found for trial in trials[share::PROCESSES] if (found := problem(trial))}
            with os.fdopen(writer, "w") as pipe:
                json.dump(found, pipe)
            os._exit(0)
        os.close(writer)
        readers.append(reader)
    broken: dict[str, str] = {}
    for reader in readers:
        with os.fdopen(reader) as pipe:
            broken |= json.load(pipe)
        os.wait()
    return broken


def main() -> int:
    """Try them; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("most", nargs="?", type=int)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    warm()
    with tempfile.TemporaryDirectory(prefix="graphspec-faults-") as folder:
        runs = states(Path(folder))
        left, calls = disk.wanted(runs)
        sorts: dict[str, tuple[Sequence[Any], Callable[[Any], str]]] = {
            "kills and disk faults": (disk.faults(calls, options.most), lambda one: one.problem(runs, left)),
            "damaged runs x commands": (damage.damages(runs, options.most), lambda one: one.problem(runs)),
        }
        broken: dict[str, str] = {}
        for name, (trials, problem) in sorts.items():
            chosen = [trial for trial in trials if options.only in str(trial)]
            started = time.monotonic()
            found = tried(chosen, problem)
            seconds = time.monotonic() - started
            sys.stdout.write(f"{name}: {len(chosen)} trials, {len(found)} broken, {seconds:.0f} s\n")
            sys.stdout.flush()
            broken |= found
    for trial, what in broken.items():
        sys.stdout.write(f"\n{trial}\n  {what}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
