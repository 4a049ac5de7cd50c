"""`--seeds`: run a job once for every seed of a study and sum up what they reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from compiler.errors import RunError
from runtime.jobs.logs import Console
from runtime.jobs.options import JobOptions
from runtime.jobs.runner import EXTENDS, LiveReport, added_epochs, check_config, resume_command
from runtime.jobs.signals import Interrupted
from runtime.rundir.directory import JobDir, Opened
from runtime.rundir.files import read_bytes
from runtime.rundir.study import (
    Study,
    copy_search,
    is_study,
    make_seed_run,
    rendered,
    results_of,
    summary_of,
    summary_table,
    write_summary,
)
from runtime.rundir.trials import compared
from runtime.tasks.table import TASKS

R = TypeVar("R")


@dataclass(frozen=True)
class StudyJob(Generic[R]):
    """A job of a study: which one, with which seeds and how."""

    name: str  # search or retrain
    opened: Opened  # the study's directory
    seeds: tuple[int, ...]
    options: JobOptions
    run_one: Callable[[Opened, JobOptions], object]
    read: Callable[[Mapping[str, Any]], R]  # a result from its JSON record
    sizes: Mapping[int, int] = field(default_factory=dict)  # that random networks are drawn at, by seed, in parameters

    def run(self) -> Study[R]:
        """Run it for every seed that is not finished.

        RunError before anything is changed if a seed cannot be run, or has results and neither `resume` nor
        `overwrite` is asked for; Interrupted on a signal, with the command that goes on with the study.
        """
        study, console = self.opened.run, Console(self.options.quiet)
        task = TASKS.load(self.opened.spec.config.task)
        with study.locked():
            self._check()
            if self.options.overwrite:
                self._clear()
            report = LiveReport(study, console)
            for number, seed in enumerate(self.seeds, start=1):
                console.line(f"seed {seed} ({number} of {len(self.seeds)})")
                self._run_seed(seed)
                write_summary(study, task)
                report.write()
        results = results_of(study, self.name)
        console.line(rendered(summary_table(self.name, task, results)))
        if self.name == "retrain" and (beside := compared(study, task)):
            console.line(beside)
            report.write()
        self._tell_next(console)
        return Study(
            run=str(study.path),
            seeds=tuple(results),
            results=tuple(self.read(result) for result in results.values()),
            summary=summary_of(self.name, task, list(results.values())),
        )

    def _run_seed(self, seed: int) -> None:
        opened = self.opened
        config = opened.spec.config.model_copy(update={"seed": seed})
        if seed in self.sizes:
            search = config.search.model_copy(update={"random_params": self.sizes[seed]})
            config = config.model_copy(update={"search": search})
        one = replace(opened, run=make_seed_run(opened.run, seed), spec=replace(opened.spec, config=config))
        try:
            self.run_one(one, replace(self.options, overwrite=False))
        except Interrupted as stop:
            raise Interrupted(stop.signum, self._resume_command()) from None
        except BaseException:
            one.run.withdraw(None)  # otherwise the run would be a study of nothing
            raise

    def _resume_command(self) -> str:
        return resume_command(self.name, self.opened, self.options, ["--seeds", ",".join(map(str, self.seeds))])

    def _folder(self, seed: int) -> JobDir:
        return JobDir(self.opened.run.seed_run(seed).path / self.name)

    def _check(self) -> None:
        """RunError if the study cannot run the job, has results that would be lost, or ran with other settings."""
        run = self.opened.run
        if self.name == "retrain":
            self._check_found()
        elif run.search.is_started:
            raise RunError(
                f"{run.path}: was searched without --seeds, so its seeds can only be retrained\n"
                f"  try: graphspec compile {run.resolved}   for a run of its own"
            )
        if not (self.options.resume or self.options.overwrite):
            started = [seed for seed in self.seeds if self._folder(seed).has_results]
            if started:
                raise RunError(
                    f"{run.path}: the {self.name} of seed {_listed(started)} has run or begun\n"
                    f"  try: {self._resume_command()}   to go on, or --overwrite to start anew"
                )
        redone = self.seeds if self.options.overwrite else ()
        for seed in run.seed_runs():
            if seed not in redone:
                folder, config = self._folder(seed), self.opened.spec.config
                more = EXTENDS if added_epochs(self.name, folder, config) else ()
                check_config(self.name, folder, config, self.options.device, ("seed", "search.random_params", *more))

    def _check_found(self) -> None:
        """RunError if a network to train is missing, or the study's own was found anew since its seeds began."""
        run = self.opened.run
        if not self.opened.graph.gates():
            return
        if not run.search.arch.is_file():
            missing = [seed for seed in self.seeds if not run.seed_run(seed).search.arch.is_file()]
            if missing:
                command = f"graphspec search {run.path} --seeds {','.join(map(str, missing))}"
                raise RunError(
                    f"{run.path}: nothing was found yet with seed {_listed(missing)}\n  try: {command} first"
                )
            return
        found = _bytes(run.search.arch)
        stale = [seed for seed, made in run.seed_runs().items() if _bytes(made.search.arch) != found]
        if set(stale) - set(self.seeds if self.options.overwrite else ()):
            raise RunError(
                f"{run.path}: was searched again since seed {_listed(stale)} was retrained\n"
                f"  try: --overwrite --seeds {','.join(map(str, run.seed_runs()))}"
            )

    def _clear(self) -> None:
        """Remove what the job left for all seeds, so that a study stopped half-way has no old results."""
        for seed in self.seeds:
            run = self.opened.run.seed_run(seed)
            if run.path.exists():
                with run.locked():
                    self._folder(seed).clear()
                    if self.opened.run.search.arch.is_file():
                        copy_search(self.opened.run.search, run.search)

    def _tell_next(self, console: Console) -> None:
        run = self.opened.run
        following = {
            "search": f"graphspec retrain {run.path} --seeds {','.join(map(str, self.seeds))}",
            "retrain": f"graphspec report {run.path}, or graphspec export {run.seed_run(self.seeds[0]).path}",
        }
        console.line(f"wrote {run.summary}; next: {following[self.name]}")


def refuse_study(opened: Opened, command: str) -> None:
    """RunError if the run is a study, of which a command on one network must name a seed's run."""
    runs = opened.run.seed_runs()
    if is_study(opened.run):
        every = f" --seeds {','.join(map(str, runs))}, or one of them:" if command != "export" else ""
        first = next(iter(runs.values()))
        raise RunError(
            f"{opened.run.path}: holds the runs of seed {_listed(list(runs))}\n"
            f"  try:{every} graphspec {command} {first.path}"
        )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _bytes(path: Path) -> bytes | None:
    return read_bytes(path) if path.is_file() else None
