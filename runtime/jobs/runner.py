"""Running a job in its run directory: search and retrain share everything but the job itself."""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from compiler.drawing.scene import number_of
from compiler.errors import GraphspecError, RunError, one_line
from compiler.ir.graph import Graph
from compiler.ir.text import text, to_json
from compiler.language.config import Configuration, TrainingConfig
from compiler.language.overrides import changes
from runtime.data.dataset import Dataset, load_dataset
from runtime.data.facts import facts_of, write_facts
from runtime.data.remarks import tell
from runtime.jobs.advice import check_settings
from runtime.jobs.logs import Console, MetricsLog
from runtime.jobs.options import JobOptions
from runtime.jobs.signals import Interrupted, StopFlag
from runtime.processes.launch import Launch, refuse_processes
from runtime.processes.world import ALONE, World
from runtime.reporting.page import write_report
from runtime.rundir.checkpoint import CheckpointStore
from runtime.rundir.directory import JobDir, Opened, RunDir, environment
from runtime.rundir.facts import check_facts, read_facts
from runtime.rundir.files import read_json, remove, write_bytes, write_json, write_text
from runtime.rundir.given import read_settings
from runtime.rundir.records import Environment, Result
from runtime.tasks.table import task_of
from runtime.training.heap import freed_memory_kept
from runtime.training.loop import READS_EVERY, Job, Loop
from runtime.training.step import choose_device
from runtime.training.threads import fitting_threads


@dataclass(frozen=True)
class Workplace:
    """What a job gets to work with."""

    opened: Opened
    dataset: Dataset
    device: torch.device
    console: Console
    folder: JobDir
    world: World


REPORT_SECONDS = 30.0
MOST_THREADS = 1025  # more than any processor has
FULL = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")  # in errors of a full memory
HARMLESS = ("data.workers", "data.download", "data.root")  # with checkpoint.*: settings that no result depends on

SAME_ON_CPU = dict.fromkeys(("auto", "fp32", "tf32"), "fp32")  # precisions

EXTENDS = ("retrain.epochs", "retrain.patience")  # settings that may change where epochs are added

J = TypeVar("J", bound=Job)
MakeJob = Callable[[Workplace], J]
Finish = Callable[[Workplace, J], Mapping[str, Any]]


def run_job(name: str, opened: Opened, options: JobOptions, make: MakeJob[J], finish: Finish[J]) -> dict[str, Any]:
    """Run a job to its end and write its result; the result of a finished one is read, not made again.

    RunError if there is unfinished work and neither `resume` nor `overwrite` is asked for, or the configuration of
    what is resumed has changed; Interrupted on a signal. Where torchrun has started several processes they share the
    job.
    """
    device = choose_device(options.device)
    world = World.join(device)
    attempt = _Attempt(name, opened, options, world)
    try:
        result = attempt.run(
            lambda: attempt.train(device, make, finish), fits=options.fit_threads and device.type == "cpu"
        )
    except Interrupted:  # all stop together
        world.leave()
        raise
    world.leave()
    return result


def run_drawing(
    name: str, opened: Opened, options: JobOptions, draw: Callable[[Opened, JobDir, Console], dict[str, Any]]
) -> dict[str, Any]:
    """As `run_job`, for a job without training: `draw` writes what it finds and gives the result."""
    refuse_processes(f"{name} without training", f"graphspec {name} without torchrun")
    attempt = _Attempt(name, opened, options, ALONE)

    def run() -> dict[str, Any]:
        attempt.clear()
        result = draw(opened, attempt.folder, attempt.console)
        _write_config(attempt.folder, opened.spec.config)
        write_json(attempt.folder.result, result)
        return result

    return attempt.run(run)


@dataclass(frozen=True)
class _Attempt:
    """One go at a job."""

    name: str
    opened: Opened
    options: JobOptions
    world: World

    @property
    def folder(self) -> JobDir:
        return JobDir(self.opened.run.path / self.name)

    @property
    def training(self) -> TrainingConfig:
        return self.opened.spec.config.search if self.name == "search" else self.opened.spec.config.retrain

    @property
    def console(self) -> Console:
        """Where it speaks; of several processes one does."""
        return Console(self.options.quiet, silent=self.options.silent or not self.world.is_main)

    def run(self, job: Callable[[], dict[str, Any]], *, fits: bool = False) -> dict[str, Any]:
        """Do the job with the run locked, unless it is finished already; the result. `fits`: with threads that fit."""
        with ExitStack() as stack:

            def prepare() -> dict[str, Any] | None:
                stack.enter_context(self.opened.run.locked())
                return self._prepared()

            done = self.world.decided(prepare)
            if done is not None:
                return done
            if self.options.recalled:
                self.console.line(f"as given before: {self.options.recalled}")
            with _full_memory_explained(self.name), self._threads(fits):
                return job()

    @contextmanager
    def _threads(self, fits: bool) -> Iterator[None]:
        """Within, torch has as many threads as before, on which results depend; `OMP_NUM_THREADS` goes first."""
        now, file = torch.get_num_threads(), self.folder.environment

        def number() -> int:
            before = read_json(file, Environment) if self.options.resume and file.is_file() else {}
            if before.get("threads") or not fits or "OMP_NUM_THREADS" in os.environ:
                return before.get("threads") or now
            return fitting_threads(self.opened.graph, self.training.batch_size, self.console.line)

        threads = self.world.decided(number)
        if threads != now and "OMP_NUM_THREADS" in os.environ:
            self.console.warn(f"goes on with OMP_NUM_THREADS={now}, not {threads} as before: results will differ")
        elif threads in range(1, MOST_THREADS):
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(now)

    def _prepared(self) -> dict[str, Any] | None:
        """Make the folder ready for what is asked for; the result of a job that is finished already."""
        name, folder, opened, options = self.name, self.folder, self.opened, self.options
        if folder.is_finished and not (options.resume and self._added_epochs()) and not options.overwrite:
            return self._finished()
        if self._is_anew():
            return None
        if not options.resume:
            raise RunError(
                f"{folder.path}: holds an unfinished {name}\n"
                f"  try: {resume_command(name, opened, options)}   to go on, or --overwrite to start anew"
            )
        more = EXTENDS if self._added_epochs() else ()
        check_config(name, folder, opened.spec.config, options.device, more)
        return None

    def _added_epochs(self) -> int:
        """By how many epochs this goes beyond what an earlier part of it ran with."""
        return 0 if self._is_anew() else added_epochs(self.name, self.folder, self.opened.spec.config)

    def _extend(self) -> None:
        """Let a job that is to have more epochs be unfinished, and say how it goes on."""
        if added := self._added_epochs():
            total = self.opened.spec.config.retrain.epochs
            self.console.line(
                f"{number_of(added, 'epoch')} more, {total} in all: learning rate and drop-path go on as in a training "
                f"of {total} epochs"
            )
            remove(self.folder.result)  # first: without it the job is not finished, whatever happens now
            remove(self.folder.config)

    def _is_anew(self) -> bool:
        return self.options.overwrite or not self.folder.has_results

    def clear(self) -> None:
        """Remove what the job left before, unless it goes on; called when nothing is wrong with what is asked for."""
        if self._is_anew():
            self.folder.clear()

    def _finished(self) -> dict[str, Any]:
        if not self.options.resume:
            raise RunError(
                f"{self.folder.path}: the {self.name} of this run is finished\n"
                f"  try: the next command, --overwrite to do it again, or graphspec compile SPEC for a new run"
            )
        check_config(self.name, self.folder, self.opened.spec.config, self.options.device)
        self.console.line(f"the {self.name} of {self.opened.run.path} is complete already")
        return read_json(self.folder.result, Result)

    def train(self, device: torch.device, make: MakeJob[J], finish: Finish[J]) -> dict[str, Any]:
        """Make the job, train it from its last checkpoint or the beginning, and write what it reached."""
        opened, options, folder, console, world = self.opened, self.options, self.folder, self.console, self.world
        spec, config, main = opened.spec, opened.spec.config, world.is_main
        code, threads = options.trust_code, torch.get_num_threads()
        is_anew = world.decided(self._is_anew)
        known = None if is_anew else read_facts(folder)
        data = known.applied_to(config.data) if known else config.data
        dataset = load_dataset(data, spec.input, task_of(spec, opened.graph), seed=config.seed, trust_code=code)
        for line in (*(listing.line() for listing in dataset.listings), *dataset.notes):
            console.line(line)
        told = tell(dataset, console.warn)
        if is_anew:
            for doubt in check_settings(spec, opened.graph, len(dataset.train.targets), self.name):
                console.warn(doubt)
        facts = facts_of(dataset, config.data)
        check_facts(opened.run, self.name, facts, console.warn, is_anew=is_anew)
        world.decided(self.clear)
        place = Workplace(opened, dataset, device, console, folder, world)
        job = make(place)
        if main:
            self._extend()
            _write_config(folder, config)
            write_json(folder.environment, environment(config.seed) | {"processes": world.size, "threads": threads})
            write_facts(folder, known, facts, dataset, console.line)
        checkpoint = self.training.checkpoint
        store = CheckpointStore(folder.checkpoints, checkpoint.keep, console.warn)
        log = MetricsLog(folder.path if main else None, console.warn)
        command = resume_command(self.name, opened, options)
        report = LiveReport(opened.run, console, is_kept=main)
        with StopFlag(speaks=main) as stop, freed_memory_kept():
            loop = Loop(job, world, store, log, console, stop, config.seed, checkpoint, command, report.refresh)
            loop.reads_every = READS_EVERY if device.type == "cuda" else 1
            if options.resume and not loop.resume():
                console.line("no checkpoint yet: starting from the beginning")
            loop.run()
        _tell_skipped(dataset, console, world)
        tell(dataset, console.warn, told)
        result = dict(finish(place, job))
        if main:
            write_json(folder.result, result)
        report.write()
        return result


@contextmanager
def _full_memory_explained(name: str) -> Iterator[None]:
    """RunError where a device has no memory left, in spite of what was measured before."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in FULL):
            raise
        raise RunError(
            f"the {name} has run out of memory: {str(error).splitlines()[0]}\n"
            f"  try: --resume with nothing else on this device; or --overwrite with --set {name}.recompute=true or a "
            f"smaller {name}.batch_size"
        ) from error


def resume_command(name: str, opened: Opened, options: JobOptions, more: Sequence[str] = ()) -> str:
    """What to type to go on with a job that runs now; its run knows what it was given."""
    command = [*Launch.here().prefix, "graphspec", name, str(opened.run.path), *more, "--resume"]
    command += ["--trust-code"] if options.trust_code else []
    return shlex.join(command)


def check_config(name: str, folder: JobDir, config: Configuration, device: str, may_differ: Sequence[str] = ()) -> None:
    """RunError naming the keys of the job that differ from those an earlier part of it ran with."""
    if not folder.config.is_file():
        return
    before, now = read_settings(folder.config), config.model_dump(mode="json")
    for settings in (before, now) if choose_device(device).type == "cpu" else ():
        settings[name]["precision"] = SAME_ON_CPU.get(settings[name]["precision"], "bf16")
    changed = changes(before, now)
    keys = [each.key for each in changed if each.path[0] in ("seed", "task", "data", "budget", name)]
    harmless = (*HARMLESS, *may_differ)
    relevant = [key for key in keys if key not in harmless and not key.startswith(f"{name}.checkpoint.")]
    if relevant:
        raise RunError(
            f"{folder.path}: cannot go on with a changed spec: {', '.join(relevant)}\n"
            f"  try: without these changes, or --overwrite to start anew"
        )


def added_epochs(name: str, folder: JobDir, config: Configuration) -> int:
    """By how many epochs a retraining is to go beyond those that an earlier part of it ran with."""
    if name != "retrain" or not folder.config.is_file():
        return 0
    before: int = read_settings(folder.config)["retrain"]["epochs"]
    return max(0, config.retrain.epochs - before)


def _write_config(folder: JobDir, config: Configuration) -> None:
    """Write down what the job runs with; called when nothing is wrong with it, so that a mistake leaves no folder."""
    if not folder.config.is_file():
        write_json(folder.config, config.model_dump(mode="json"))


def _tell_skipped(dataset: Dataset, console: Console, world: World) -> None:
    """Name and count the images that any process has left out."""
    skipped: dict[str, str] = {}
    for found in world.gathered(dataset.skipped):
        skipped |= found
    for path, reason in skipped.items():
        console.warn(f"left out {one_line(path)}: {reason}")
    if skipped:
        console.warn(f"left out {len(skipped)} unreadable images in all")


@dataclass
class LiveReport:
    """The run's report, written anew while the job runs, at most every `REPORT_SECONDS`."""

    run: RunDir
    console: Console
    is_kept: bool = True  # otherwise another process writes it
    written: float = 0.0

    def refresh(self) -> None:
        """Write it if the last one is old enough."""
        if time.monotonic() - self.written > REPORT_SECONDS:
            self.write()

    def write(self) -> None:
        """Write it; whatever is wrong with a report is a warning, the job goes on."""
        if not self.is_kept:
            return
        try:
            write_report(self.run)
        except Exception as error:  # of a file that someone changed, or of the report itself
            said = error if isinstance(error, (GraphspecError, OSError)) else repr(error)
            self.console.warn(f"no report: {said}")
        self.written = time.monotonic()


def write_network(folder: JobDir, graph: Graph, tensors: Mapping[str, Tensor]) -> str:
    """Write a job's final graph (JSON and text) and its tensors by name; the SHA-256 of the file of the tensors."""
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(copies)
    write_bytes(folder.weights, content)
    write_text(folder.graph_text, text(graph))
    write_text(folder.graph_json, to_json(graph))
    return hashlib.sha256(content).hexdigest()
