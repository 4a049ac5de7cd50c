"""Run directories: where everything lies that a job leaves, and how one is made. It must not import torch."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.language.spec import Spec
from runtime.rundir import files
from runtime.rundir.files import MARKER, folder_of, guarded, read_json, remove, write_json, write_text
from runtime.rundir.records import Marker

RUNS = Path("runs")  # under the working directory
MAKES_ONE = "graphspec compile SPEC, which makes one"
START = "weights.safetensors"  # in a run, beside its spec
FORMAT = 1  # of a run directory; a change that older programs cannot read raises it
_PACKAGES = (
    "graphspec", "networkx", "numpy", "onnx", "onnxruntime", "pillow", "pydantic", "pyyaml", "rich", "safetensors",
    "scikit-learn", "tensorboard", "torch", "torchvision", "typer",
)  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """What `graphspec compile` puts into a run directory, as text."""

    name: str  # of the spec
    seed: int
    spec: str  # the spec file as given
    resolved: str  # the whole spec as YAML, `extends` and overrides merged in: what later commands read
    config: str  # the resolved configuration, JSON
    graph_json: str
    graph_text: str
    weights: bytes | None = None  # of the spec: a safetensors file


class _Below:
    """A path in the folder of its owner."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: JobDir | RunDir, kind: type) -> Path:
        return owner.path / self.name


@dataclass(frozen=True)
class JobDir:
    """The part of a run directory that belongs to one job: search or retrain."""

    path: Path
    config = _Below("config.json")  # what the job runs with
    environment = _Below("environment.json")  # versions and seed of the job, which may run elsewhere than `compile`
    data = _Below("data.json")  # the data set as the job found it when it first opened it: `runtime.rundir.facts`
    split = _Below("split.csv")  # the part of every file of a set that was divided, as a `table` of data
    samples = _Below("samples.safetensors")  # a few test images and their targets, for where the set is gone
    checkpoints = _Below("checkpoints")
    metrics = _Below("metrics.jsonl")  # a line an epoch, the same for the same seed
    timings = _Below("timings.jsonl")  # a line an epoch: how long it took
    strategy = _Below("strategy.json")  # a strategy's section of the report
    arch = _Below("arch.yaml")  # the found architecture, small and readable
    graph_json = _Below("graph.json")  # the job's final graph
    graph_text = _Below("graph.txt")  # the same, one line a node
    weights = _Below("weights.safetensors")  # final weights and gates
    result = _Below("result.json")  # final figures, written last: a job that has them is finished

    @property
    def is_started(self) -> bool:
        """Whether the job has left anything."""
        return bool(files.names_in(self.path))

    @property
    def has_results(self) -> bool:
        """Whether starting anew would lose something; a job that failed before its first checkpoint left nothing."""
        return any(name.endswith(".json") for name in files.names_in(self.checkpoints)) or self.arch.exists()

    @property
    def is_finished(self) -> bool:
        """Whether the job ran to its end."""
        return self.result.is_file()

    def clear(self) -> None:
        """Remove everything the job left, its result first, so that a half-cleared job never looks finished."""
        if not self.path.is_symlink():
            remove(self.result)
        remove(self.path)


@dataclass(frozen=True)
class RunDir:
    """A run directory; make one with `create`, `open` or `latest`."""

    path: Path
    spec = _Below("spec.yaml")  # as given
    resolved = _Below("spec.resolved.yaml")  # the spec with `extends` and overrides merged in
    weights = _Below(START)  # what training starts from, if the spec names weights
    config = _Below("config.json")  # the configuration as resolved
    environment = _Below("environment.json")  # versions and seed
    given = _Below("given.json")  # what each job was given besides: `runtime.rundir.given`
    graph_text = _Below("graph.txt")  # the whole search space, one line a node
    graph_json = _Below("graph.json")  # the same, written last: a run directory that has it is complete
    report = _Below("report.html")
    summary = _Below("seeds.json")  # what the runs of several seeds reached together
    export = _Below("export")  # folder of the exported model and its checks
    baseline = _Below("baseline")  # folder of runs of plain networks
    probe = _Below("probe")  # folder of runs of random and plain networks, trained briefly

    def seed_run(self, seed: int) -> RunDir:
        """The run of one seed of several; it need not be there."""
        return RunDir(self.path / "seeds" / str(seed))

    def seed_runs(self) -> dict[int, RunDir]:
        """The runs of several seeds below this one, by seed."""
        names = files.names_in(self.path / "seeds")
        return {seed: self.seed_run(seed) for seed in sorted(int(name) for name in names if name.isdecimal())}

    def trials(self, folder: Path) -> dict[str, RunDir]:
        """The runs in `baseline` or `probe`, by name."""
        return {name: RunDir(folder / name) for name in files.names_in(folder) if (folder / name / MARKER).is_file()}

    def siblings(self) -> list[RunDir]:
        """The runs of all seeds of the study that this one belongs to; none where it belongs to none."""
        above = self.path.absolute().parent
        return list(RunDir(above.parent).seed_runs().values()) if above.name == "seeds" else []

    @property
    def search(self) -> JobDir:
        """What the search leaves."""
        return JobDir(self.path / "search")

    @property
    def retrain(self) -> JobDir:
        """What retraining leaves."""
        return JobDir(self.path / "retrain")

    @staticmethod
    def create(compiled: Compiled, out: Path | None = None, root: Path = RUNS, *, name_latest: bool = True) -> RunDir:
        """Write a run directory at `out`, or at the next free `<root>/<name>-<number>-s<seed>`, and name it the latest.

        A kill at any moment leaves `<root>/latest` as it was or naming a complete run. RunError if `out` is not empty
        and not ours, or holds the results of a job.
        """
        if out is None:
            out = _next_free(compiled, root)
        _check_free(out)  # before a lock is put there
        run = RunDir(out)
        with run.locked(is_new=True):
            _check_free(out)
            write_json(run.path / MARKER, {"format": FORMAT, "name": compiled.name, "seed": compiled.seed})
            remove(run.graph_json)  # from here to the end the run is incomplete
            remove(run.given)
            remove(run.weights)
            for name in ("spec", "resolved", "config", "graph_text"):
                write_text(getattr(run, name), getattr(compiled, name))
            if compiled.weights is not None:
                files.write_bytes(run.weights, compiled.weights)
            write_json(run.environment, environment(compiled.seed))
            write_text(run.graph_json, compiled.graph_json)
        if name_latest:
            _name_latest(run, root)
        return run

    @staticmethod
    def open(path: Path) -> RunDir:
        """The run directory at `path` (also `<root>/latest`); RunError if there is none or it is incomplete."""
        with guarded(path, "read"):
            if path.is_file() and path.name == "latest":
                path = path.parent / files.read_text(path).strip()
            if not path.is_dir():
                files.refuse_pipe(path)
                found = "is a file, not a run directory" if path.exists() else "no such run directory"
                missing = path.suffix in (".yaml", ".yml") and not path.exists()
                found, next_step = ("no such spec", "the path of one") if missing else (found, MAKES_ONE)
                raise RunError(f"{path}: {found}\n  try: {next_step}")
            run = RunDir(files.shown(path.resolve()))
            _check_marker(run.path)
            if not run.graph_json.is_file():
                raise RunError(f"{run.path}: its compilation did not finish\n  try: graphspec compile SPEC again")
        return run

    @staticmethod
    def latest(root: Path = RUNS) -> RunDir:
        """The run made last; RunError if there is none."""
        link = root / "latest"
        if not os.path.lexists(link):
            raise RunError(f"no run yet: there is no {link} under {Path.cwd()}\n  try: graphspec compile SPEC first")
        if link.is_symlink() and not link.exists():
            raise RunError(
                f"{link} names {os.readlink(link)}, which is gone\n"
                "  try: give the run directory, or graphspec compile SPEC to make a new one"
            )
        return RunDir.open(link)

    def withdraw(self, before: RunDir | None) -> None:
        """Remove a run in which no job has left anything, and let `before` be the latest again; else leave it."""
        if not self.graph_json.exists():  # it was moved away
            return
        trials = (*self.trials(self.baseline).values(), *self.trials(self.probe).values())
        runs = (self, *self.seed_runs().values(), *trials)
        if any(job.has_results for run in runs for job in (run.search, run.retrain)):
            return
        root = self.path.parent
        with guarded(self.path):  # runs of seeds are never the latest
            if os.path.lexists(root / "latest") and RunDir.latest(root).path.samefile(self.path):
                (root / "latest").unlink() if before is None else _name_latest(before, root)
            remove(self.path)
            with suppress(OSError):  # it holds other runs
                root.rmdir()

    @contextmanager
    def locked(self, *, is_new: bool = False) -> Iterator[None]:
        """Keep other processes from working in this run; RunError if one does. A killed process holds no lock."""
        file = self.path / ".lock"
        with ExitStack() as stack:
            if not is_new:
                stack.enter_context(files.in_use(self.path))
            with guarded(file):
                descriptor = stack.enter_context(files.opened(file, os.O_RDWR | os.O_CREAT))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"{self.path}: another graphspec process works in this run\n"
                    "  try: wait for it, stop it, or compile the spec again for a run of its own"
                ) from error
            except OSError:
                pass  # some network disks have no locks: there it is up to the user
            jobs = (self.search, self.retrain)
            files.sweep(self.path, self.export, *(job.path for job in jobs), *(job.checkpoints for job in jobs))
            yield


@dataclass(frozen=True)
class Opened:
    """A run directory with its spec (overrides applied) and the graph of its whole search space."""

    run: RunDir
    spec: Spec
    graph: Graph


def environment(seed: int) -> dict[str, Any]:
    """What a run depends on besides its files: seed, platform and versions (null: not installed as a package)."""
    versions: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "seed": seed,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": versions,
    }


def _check_free(out: Path) -> None:
    """RunError if the folder holds something that compiling must not touch."""
    names = files.names_in(out)
    if all(re.fullmatch(rf"\.lock|\.{MARKER}\..*tmp", name) for name in names):  # what a killed `create` can leave
        return
    if MARKER not in names:
        raise RunError(f"{out}: is not empty, and graphspec did not make it\n  try: another folder, or an empty one")
    _check_marker(out)
    run = RunDir(out)
    below = run.export.exists() or run.seed_runs() or run.baseline.exists() or run.probe.exists()
    if run.search.is_started or run.retrain.is_started or below:
        raise RunError(f"{out}: holds the results of an earlier job\n  try: another folder, or remove this one")


def _next_free(compiled: Compiled, root: Path) -> Path:
    """A new folder for a run of this spec: numbers count up over all seeds."""
    pattern = re.compile(re.escape(compiled.name) + r"-(\d+)-s\d+")
    with guarded(root):
        root.mkdir(parents=True, exist_ok=True)
        taken = [int(match[1]) for entry in root.iterdir() if (match := pattern.fullmatch(entry.name))]
        number = max(taken, default=0)
        while True:
            number += 1
            path = root / f"{compiled.name}-{number:03d}-s{compiled.seed}"
            with suppress(FileExistsError), folder_of(path) as folder:  # another process was faster
                os.mkdir(path.name, dir_fd=folder)
                os.fsync(folder)
                return path


def _name_latest(run: RunDir, root: Path) -> None:
    """Let `<root>/latest` name `run`: a relative symbolic link, or its text in a file where links are not possible."""
    latest, target = root / "latest", os.path.relpath(run.path.resolve(), root.resolve())  # from where the link lies
    with guarded(latest), folder_of(latest, make=True) as folder:
        try:
            with files.temporary(latest.name, folder, is_folder=True) as (_, made):
                os.symlink(target, "link", dir_fd=made)
                os.replace("link", latest.name, src_dir_fd=made, dst_dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise
            write_text(latest, target + "\n")  # a file system without links
        os.fsync(folder)


def _check_marker(path: Path) -> None:
    """RunError unless the folder says that a graphspec of this format or an older one made it."""
    if not (path / MARKER).is_file():
        raise RunError(f"{path}: is no run directory: it has no {MARKER}\n  try: {MAKES_ONE}")
    made_with = read_json(path / MARKER, Marker)["format"]
    if made_with > FORMAT:
        raise RunError(
            f"{path}: a newer graphspec made it (format {made_with}, known: {FORMAT})\n  try: update graphspec"
        )
