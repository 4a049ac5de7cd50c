"""Searches and trainings on one GPU, three seeds side by side. Part 2 of `benchmarks/gpu.sh`.

    python -m benchmarks.gpu_real --data FOLDER [--out FOLDER] [--seconds N] [--device cpu --tiny]

Each seed searches `cifar10_small` on the images in FOLDER (`train/<class>/`, `test/<class>/`; or an archive of it), at
batch 512, and trains what was found; then a random network of the space, inverted bottlenecks and a ResNet-20 of the
same size, of 0.3 M parameters at most, for as many epochs. Lines are printed as they come. When the time is over what
runs is stopped and keeps its checkpoint: another call with the same --out goes on. Bar: a search under 60 seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Bar, Clock, bar_table, machine_line, table
from benchmarks.gpu import line, parsed
from graphspec import api
from graphspec.trials import total_epochs

SPEC, SEEDS = "specs/cifar10_small.yaml", (0, 1, 2)
SETTINGS = (
    "symbols.width=64", "budget.params=300k", "budget.flops=null", "search.batch_size=512", "search.pretrain_epochs=5",
    "search.epochs=15", "retrain.batch_size=512", "retrain.epochs=60", "retrain.lr=0.2", "retrain.schedule.warmup=2",
    "data.crop_padding=4", "data.flip=true", "data.workers=8",
)  # fmt: skip
TINY = (
    "input=[3, 8, 8]", "symbols.width=8", "network=[stem, near, down, {keep: 1}, head]",
    "data={name: fake, fake_size: 64}", "search.batch_size=8", "search.pretrain_epochs=1", "search.epochs=1",
    "retrain.epochs=1", "retrain.batch_size=8", "budget.params=20k",
)  # fmt: skip
HEADER = ("seed", "part", "seconds", "accuracy", "params", "FLOPs")
PLAIN = {"inverted": "inverted bottlenecks", "residual": "ResNet-20"}
SEARCH = "search"
GRACE = 20.0  # seconds for a checkpoint


@dataclass(frozen=True)
class Part:
    """A command of graphspec, and the folder of the job that it runs, where that is timed."""

    name: str
    command: tuple[str, ...]
    job: Path | None = None

    def figures(self) -> list[Any] | None:
        """Accuracy, parameters and multiply-adds; None as long as it is not done."""
        result = None if self.job is None else self.job / "result.json"
        if result is None or not result.is_file():
            return None
        found = json.loads(result.read_text(encoding="utf-8"))
        return [found["accuracy"], found["found"]["params"], found["found"]["flops"]]


@dataclass
class Chain:
    """The parts of a seed, one after the other."""

    seed: int
    parts: Iterator[Part]
    folder: Path
    part: Part | None = None
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    is_fresh: bool = True  # whether the part was not begun by an earlier call
    failed: bool = False
    rows: list[list[Any]] = field(default_factory=list)

    def go_on(self) -> bool:
        """Begin the next part if none runs, and note what has ended; False at the end, or after a failure."""
        if self.process is not None:
            if self.process.poll() is None:
                return True
            self._end(self.process.returncode)
        self.part = next(self.parts, None)
        if self.part is None:
            return False
        self.is_fresh = self.part.job is None or not self.part.job.exists()
        with (self.folder / f"seed-{self.seed}.log").open("ab") as log:
            command = [sys.executable, "-m", "graphspec", *self.part.command]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            self.began = time.monotonic()
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        return True

    def _end(self, code: int) -> None:
        assert self.part is not None
        if code:
            said = (self.folder / f"seed-{self.seed}.log").read_text(encoding="utf-8", errors="replace").strip()
            print(line((self.seed, f"{self.part.name}: exit code {code}: {said.splitlines()[-2:]}", *[None] * 4)))
            self.parts, self.failed = iter(()), True
        elif figures := self.part.figures():
            seconds = time.monotonic() - self.began if self.is_fresh else None
            self.rows.append([self.seed, self.part.name, seconds, *figures])
            print(line(self.rows[-1]), flush=True)

    def ask(self) -> None:
        """Ask what runs to stop; it leaves a checkpoint."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Wait until it has stopped."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            self.process.kill()


def parts_of(seed: int, data: Sequence[str], folder: Path, device: str) -> Iterator[Part]:
    """What a seed does, as far as it is not done yet."""
    found, drawn = folder / f"found-s{seed}", folder / f"random-s{seed}"
    again, on = "--resume", ("--device", device)
    for run in (found, drawn):
        if not (run / "graph.json").is_file():
            settings = [word for setting in (*data, f"seed={seed}") for word in ("--set", setting)]
            yield Part("compile", ("compile", str(ROOT / SPEC), "--out", str(run), *settings))
    yield Part(SEARCH, ("search", str(found), again, *on), found / "search")
    yield Part("found", ("retrain", str(found), again, *on), found / "retrain")
    for name, title in PLAIN.items():
        chosen = ("--plain", name, "--seeds", str(seed))
        yield Part(title, ("baseline", str(found), *chosen, *on), found / "baseline" / f"{name}-s{seed}" / "retrain")
    yield Part("draw", ("search", str(drawn), "--strategy", "random", "--match", str(found), again, *on))
    longer = ("--from", "scratch", "--set", f"retrain.epochs={total_epochs(api.open_run(found))}")
    yield Part("random", ("retrain", str(drawn), again, *longer, *on), drawn / "retrain")


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and train until the time is over, and print; the exit status."""
    more = {"data": "folder or archive of images", "out": "folder to keep all in; default: build/gpu"}
    args = parsed(__doc__, arguments, **more)
    if args is None:
        return 1
    if args.data is None and not args.tiny:
        print("give --data: a folder or archive with train/<class>/ and test/<class>/ of CIFAR-10", file=sys.stderr)
        return 1
    clock, folder = Clock(args.seconds - GRACE), (args.out or ROOT / "build" / "gpu").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    data = TINY if args.tiny else (*SETTINGS, "data.name=folder", f"data.root={args.data.absolute()}")
    seeds = SEEDS[:2] if args.tiny else SEEDS
    print(f"{SPEC}, {len(seeds)} seeds side by side\n\n{table(HEADER, ())}", flush=True)
    chains = [Chain(seed, parts_of(seed, data, folder, args.device), folder) for seed in seeds]
    going = list(chains)
    try:
        while going and clock.left > 0:
            going = [chain for chain in going if chain.go_on()]
            time.sleep(0.2)
    finally:
        for chain in chains:  # all at once: one has a grace, not each after the others
            chain.ask()
        for chain in chains:
            chain.stop()
    for chain in going:
        print(f"\nthe time is over: seed {chain.seed} goes on with {chain.part.name if chain.part else 'the rest'}")
    rows = [row for chain in chains for row in chain.rows]
    seconds = [row[2] for row in rows if row[1] == SEARCH and row[2]]
    bars = [Bar("a search of cifar10_small, seconds, the longest", max(seconds), 60.0)] if seconds else []
    print(f"\n{bar_table(bars)}\n\n{machine_line()}")
    return int(any(chain.failed for chain in chains))


if __name__ == "__main__":
    raise SystemExit(main())
