"""The Python API: what the command line does, as functions with typed results.

    import graphspec
    compiled = graphspec.compile("specs/digits.yaml")
    found = graphspec.search(compiled.run)

Every function takes a `RunDir` or a path to one (None: the latest), and overrides as `--set` takes them or as a mapping
(`{"search.epochs": 5}`). Errors are `compiler.errors.GraphspecError`.
torch is imported by the functions that train, and by no other.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from compiler.errors import RunError
from compiler.garbage import collector_paused
from compiler.ir.graph import Graph
from compiler.ir.text import graph_hash, json_and_hash, text, to_json
from compiler.language.layers import dump
from compiler.language.overrides import Override, Overrides, overrides_of
from compiler.language.parse import SPEC, parse_file
from compiler.language.spec import Spec
from graphspec.cost_report import CostReport, cost_report
from runtime.data.filled import load_filled, said_by_data
from runtime.data.survey import Survey, survey
from runtime.jobs.advice import check_settings
from runtime.jobs.options import JobOptions
from runtime.processes.launch import Launch, refuse_processes
from runtime.rundir.directory import RUNS, START, Opened, RunDir
from runtime.rundir.directory import Compiled as RunFiles
from runtime.rundir.files import checked, remove, write_text
from runtime.rundir.given import Given, given_before, given_to, record_given
from runtime.rundir.network import read_architecture, read_graph_and_version
from runtime.rundir.start import file_for
from runtime.rundir.study import Study, checked_seeds, copy_search, found_params, found_sizes
from runtime.strategies.table import check_strategy
from runtime.tasks.base import Task
from runtime.tasks.table import task_of

if TYPE_CHECKING:
    from runtime.export.run_export import ExportResult
    from runtime.jobs.run_retrain import RetrainResult
    from runtime.jobs.run_search import SearchResult
    from runtime.strategies.base import Strategy

Target = RunDir | str | os.PathLike[str] | None
SUFFIXES = (".yaml", ".yml")  # of spec files


@dataclass(frozen=True)
class CompiledSpec:
    """A checked spec: its graph, its costs, what is known of its data, doubts and (unless dry) its run directory."""

    spec: Spec
    graph: Graph
    costs: CostReport
    data: str
    warnings: tuple[str, ...]
    run: RunDir | None


def load(path: str | os.PathLike[str], overrides: Overrides = ()) -> tuple[Spec, Graph]:
    """Parse and elaborate a spec file; SpecError with every mistake in it.

    `classes`, `input` or its channels may be left out (RunError if the data is not there to say them).
    """
    return load_filled(path, overrides_of(overrides))


@collector_paused()
def compile(  # noqa: A001  (the verb of the command line)
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    dry_run: bool = False,
    root: Path = RUNS,
) -> CompiledSpec:
    """Check a spec, count its costs and write a run directory under `root` (or at `out`).

    SpecError, RunError or PassError if it cannot be searched; the data is looked at as far as `survey` goes.
    """
    spec, graph = load(path, overrides)
    check_strategy(spec)
    task = task_of(spec, graph)
    graph_json, digest = json_and_hash(graph)
    costs = cost_report(graph, spec.config.search, digest)
    data = _survey(spec, task)
    says = "; it says ".join(filter(None, (data.says, said_by_data(spec))))
    warnings = (*data.warnings, *check_settings(spec, graph, data.training))
    files = files_of(spec, graph, graph_json)
    run = None if dry_run else RunDir.create(files, Path(out) if out else None, root)
    return CompiledSpec(spec, graph, costs, says, warnings, run)


def _survey(spec: Spec, task: Task) -> Survey:
    """What is known of the data; that it does not fit is a doubt only where the spec names no data."""
    try:
        return survey(spec.config.data, spec.input, task)
    except RunError as error:
        if spec.root.find(("data", "name"))[2] == 2:
            raise
        return Survey(f"{spec.config.data.name}, because the spec names none", warnings=(str(error),))


def files_of(spec: Spec, graph: Graph, graph_json: str) -> RunFiles:
    """What a new run directory of a spec holds."""
    return RunFiles(
        name=spec.name,
        seed=spec.config.seed,
        spec=spec.text,
        resolved=dump(spec.root.plain() | ({"weights": START} if spec.weights else {})),
        config=spec.config.model_dump_json(indent=2) + "\n",
        graph_json=graph_json,
        graph_text=text(graph),
        weights=file_for(spec, graph) if spec.weights else None,
    )


def open_run(target: Target = None, overrides: Overrides = ()) -> Opened:
    """Open a run directory, compile a spec file into a new one, or open the latest (None).

    The graph is the one that was compiled; the spec is read again for its settings. RunError if the overrides change
    what the graph was made from.
    """
    if spec_file := _spec_file(target):
        refuse_processes("compiling", f"graphspec compile {spec_file}, then torchrun with the run")
        compiled = compile(spec_file, overrides=overrides)
        assert compiled.run is not None
        return Opened(compiled.run, compiled.spec, compiled.graph)
    run = _run(target)
    typed = overrides_of(overrides)
    spec = parse_file(checked(run.resolved), typed)
    changed = any(override.path[0] in SPEC.names for override in typed)
    if changed and _structure(spec) != _structure(parse_file(run.resolved)):
        raise RunError(
            f"{run.path}: the overrides {' '.join(map(str, typed))} give another graph than the one compiled "
            f"there\n  try: graphspec compile SPEC with the same --set"
        )
    spec = replace(spec, weights=str(run.weights) if spec.weights else "")  # the copy, whatever the file says
    return Opened(run, spec, _compiled_graph(run))


def _run(target: Target) -> RunDir:
    return target if isinstance(target, RunDir) else RunDir.latest() if target is None else RunDir.open(Path(target))


def recalled(
    job: str, target: Target, overrides: Overrides, options: JobOptions, seeds: Sequence[int] | None
) -> tuple[tuple[Override, ...], JobOptions, Given]:
    """Overrides and options of a job: what was given before, unless it is given otherwise now; and the former alone."""
    redone = (seeds or (None,)) if options.overwrite else ()
    before = Given() if _spec_file(target) else given_before(_run(target), job, resume=options.resume, redone=redone)
    device = before.device if options.device == "auto" else options.device
    return (*before.overrides, *overrides_of(overrides)), replace(options, device=device, recalled=str(before)), before


@contextmanager
def opened_at(target: Target, overrides: Overrides) -> Iterator[Opened]:
    """As `open_run`; a run that is compiled here goes again if the job fails before it has left anything in it."""
    before = None
    if _spec_file(target):
        with suppress(RunError):
            before = RunDir.latest()
    opened = open_run(target, overrides)
    try:
        yield opened
    except BaseException:
        if _spec_file(target):
            opened.run.withdraw(before)
        raise


@contextmanager
def _opened_for(
    job: str, target: Target, given: Sequence[Override], options: JobOptions, match: Path | None = None
) -> Iterator[Opened]:
    """As `opened_at`; what the job is given is written down."""
    with opened_at(target, given) as opened:
        if Launch.here().is_main:
            typed = () if _spec_file(target) else given  # otherwise they are compiled into the run
            record_given(opened, job, typed, options.device, match, overwrite=options.overwrite)
        yield opened


def _compiled_graph(run: RunDir) -> Graph:
    """The graph as it was compiled; a file of version 1 knows no choices, which then follow from the spec."""
    graph, version = read_graph_and_version(run.graph_json)
    if version > 1:
        return graph
    again = load(run.resolved)[1]
    return again if graph_hash(again) == graph_hash(graph) else graph


def _structure(spec: Spec) -> dict[str, Any]:
    """What the graph is made from, as written; the first value of the gates is a setting."""
    written = spec.root.plain()
    gates = {key: value for key, value in (written.get("gates") or {}).items() if key != "init"}
    return {**{key: written.get(key) for key in SPEC.names}, "gates": gates}


def _read(target: Target, overrides: Overrides) -> tuple[Spec, Graph]:
    """The spec and graph of a spec file or a run; nothing is written."""
    if spec_file := _spec_file(target):
        return load(spec_file, overrides)
    opened = open_run(target, overrides)
    return opened.spec, opened.graph


@overload
def search(target: Target = None, *, seeds: None = None, **options: Any) -> SearchResult: ...
@overload
def search(target: Target = None, *, seeds: Sequence[int], **options: Any) -> Study[SearchResult]: ...
def search(
    target: Target = None,
    *,
    seeds: Sequence[int] | None = None,
    match: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    strategy: type[Strategy] | None = None,
    **options: Any,
) -> SearchResult | Study[SearchResult]:
    """Search the space of a run; `options` are those of `runtime.jobs.options.JobOptions`.

    With `seeds`, once for each, in runs below the run. `match` is the run whose size the random strategy draws at (with
    `seeds` and a run of several seeds, that of the same seed). `strategy` is a class to search with in place
    of the one that the spec names.
    """
    chosen = None if seeds is None else _checked(seeds, overrides)
    given, job, before = recalled("search", target, overrides, JobOptions(**options), chosen)
    match = before.match if match is None and chosen else match
    path, found = (None, None) if match is None else (Path(match).absolute(), _match(target, given, match))
    if found is not None and chosen is None:
        given = (*given, Override.of("search.random_params", found_params(found), "--match"))
    sizes = found_sizes(found, chosen) if found is not None and chosen is not None else {}
    with _opened_for("search", target, given, job, path) as opened:
        from runtime.jobs.run_search import SearchResult, run_search  # and with it torch
        from runtime.jobs.run_study import StudyJob, refuse_study

        if chosen is None:
            refuse_study(opened, "search")
            return run_search(opened, job, strategy)
        run_one = partial(run_search, strategy=strategy)
        return StudyJob("search", opened, chosen, job, run_one, SearchResult.of, sizes).run()


@overload
def retrain(target: Target = None, *, seeds: None = None, **options: Any) -> RetrainResult: ...
@overload
def retrain(target: Target = None, *, seeds: Sequence[int], **options: Any) -> Study[RetrainResult]: ...
def retrain(
    target: Target = None, *, seeds: Sequence[int] | None = None, overrides: Overrides = (), **options: Any
) -> RetrainResult | Study[RetrainResult]:
    """Train the found network from scratch; `options` are those of `runtime.jobs.options.JobOptions`.

    With `seeds`, once for each: what the search of the same seed found, or the one network that the run found.
    """
    chosen = None if seeds is None else _checked(seeds, overrides)
    given, job, _ = recalled("retrain", target, overrides, JobOptions(**options), chosen)
    with _opened_for("retrain", target, given, job) as opened:
        from runtime.jobs.run_retrain import RetrainResult, run_retrain  # and with it torch
        from runtime.jobs.run_study import StudyJob, refuse_study

        if chosen is None:
            refuse_study(opened, "retrain")
            return run_retrain(opened, job)
        return StudyJob("retrain", opened, chosen, job, run_retrain, RetrainResult.of).run()


def _checked(seeds: Sequence[int], overrides: Overrides) -> tuple[int, ...]:
    refuse_processes("--seeds", "a run of its own for each seed: graphspec compile SPEC --seed N")
    if any(override.path == ("seed",) for override in overrides_of(overrides)):
        raise RunError("one seed (--seed, --set seed=N) and several (--seeds) are asked for\n  try: one of the two")
    return checked_seeds(seeds)


def _match(target: Target, overrides: Overrides, match: str | os.PathLike[str]) -> RunDir:
    """The run that gives the size; RunError if nothing is drawn at it."""
    spec, _ = _read(target, overrides)
    if spec.config.search.strategy != "random":
        raise RunError(
            f"--match {Path(match)}: only a random network is drawn at a size, and search.strategy is "
            f"{spec.config.search.strategy}\n  try: --strategy random"
        )
    return RunDir.open(Path(match))


SMOKE: dict[str, Any] = {
    "data.name": "fake", "data.mean": None, "data.std": None, "data.in_memory": None,
    "search.batch_size": 4, "search.accumulate": 1, "retrain.accumulate": 1,
    "search.pretrain_epochs": 1, "search.epochs": 1, "search.prune.every": 1,
    "search.steps_per_epoch": None, "retrain.steps_per_epoch": None,
    "search.recalibrate_batches": 1, "search.schedule.warmup": 0, "search.gates.schedule.warmup": 0,
    "retrain.batch_size": 8, "retrain.epochs": 1, "retrain.schedule.warmup": 0,
}  # fmt: skip
"""Two steps of every stage on fake data: what `--smoke` sets."""


def smoke(target: Target = None, last: str = "search", *, overrides: Overrides = (), **options: Any) -> tuple[str, ...]:
    """Run two steps of every stage up to `last` (search or retrain) on fake data, in a folder that is removed again.

    Where the run has found or been given a network, only that one is retrained. Gives the jobs that ran.
    """
    refuse_processes("--smoke", "it without torchrun")
    run, (spec, _) = None if _spec_file(target) else open_run(target).run, _read(target, overrides)
    data, steps = spec.config.data, 2 * spec.config.search.weight_steps
    images = max(4 * steps / spec.config.search.weight_part, 8 / (1 - spec.config.search.weight_part))
    size = math.ceil((images + 1) / (1 - data.validation)) + spec.classes
    said = {} if run else {"classes": spec.classes, "input": list(spec.input)}  # fake data cannot say them
    settings = (*overrides_of(overrides), *overrides_of({**SMOKE, **said, "data.fake_size": size}))
    options = {**options, "resume": False, "overwrite": False}
    with tempfile.TemporaryDirectory(prefix="graphspec-smoke-") as folder:
        spec, graph = _read(target, settings)
        trial = RunDir.create(files_of(spec, graph, to_json(graph)), Path(folder) / "run", Path(folder))
        if last == "retrain" and run:
            copy_search(run.search, trial.search)
            for file in (trial.search.config, trial.search.data):  # fake data and short stages are no facts of the run
                remove(file)
        # without gates, or with a network found before, there is nothing to search before retraining
        searches = last == "search" or (bool(graph.gates()) and not trial.search.arch.is_file())
        if searches:
            search(trial, **options)
        if last == "retrain":
            retrain(trial, **options)
    return (*(("search",) if searches else ()), *(("retrain",) if last == "retrain" else ()))


def _spec_file(target: Target) -> Path | None:
    """The path of a spec file; None if the target is a run."""
    path = None if target is None or isinstance(target, RunDir) else Path(target)
    return path if path and path.is_file() and path.suffix in SUFFIXES else None


def export(target: Target = None, *, overrides: Overrides = (), **options: Any) -> ExportResult:
    """Emit the network as ONNX and check it; `options` are those of `runtime.export.run_export.ExportOptions`."""
    from runtime.export.run_export import ExportOptions, run_export
    from runtime.jobs.run_study import refuse_study

    wanted = ExportOptions(**options)
    before = None if _spec_file(target) else given_to(_run(target), wanted.source)
    with opened_at(target, (*(before.overrides if before else ()), *overrides_of(overrides))) as opened:
        refuse_study(opened, "export")
        return run_export(opened, wanted)


@dataclass(frozen=True)
class Derived:
    """A found block re-stacked in another network: a run directory ready for retrain, and what was done."""

    run: RunDir
    notes: tuple[str, ...]


def derive(
    architecture: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    block: str | None = None,
    overrides: Overrides = (),
) -> Derived:
    """Bring the blocks of an arch.yaml into the network of another spec; ArchitectureError if they do not fit."""
    from compiler.architecture.derive import derive as derive_architecture

    found = read_architecture(Path(architecture))
    spec, graph = load(into, overrides)
    files = files_of(spec, graph, to_json(graph))
    spec_hash = hashlib.sha256(files.resolved.encode()).hexdigest()
    derived = derive_architecture(found, graph, block, spec_hash=spec_hash)  # refuses before anything is written
    run = RunDir.create(files)
    write_text(run.search.arch, derived.to_yaml())
    return Derived(run, derived.notes)
