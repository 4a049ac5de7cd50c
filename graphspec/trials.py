"""`baseline` and `probe`: plain networks beside what a run has found, and beside random networks of its space."""

from __future__ import annotations

import hashlib
import math
import shlex
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from compiler.analysis.limits import MEASURES, limits_of, listed, measured
from compiler.architecture.found import Architecture
from compiler.architecture.plain import DEFAULT, PLAIN, plain_spec
from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.ir.text import to_json
from compiler.language.overrides import Override, Overrides, overrides_of
from compiler.passes.prune_zero_edges import prune
from graphspec.api import Target, files_of, load, open_run, opened_at, recalled, retrain
from runtime.jobs.options import JobOptions
from runtime.processes.launch import refuse_processes
from runtime.rundir.directory import Compiled, Opened, RunDir
from runtime.rundir.files import read_json, read_text, remove, write_text
from runtime.rundir.records import Result
from runtime.rundir.study import checked_seeds, is_study
from runtime.rundir.trials import (
    RANDOM,
    Row,
    Trials,
    figures_of,
    found_row,
    outlook,
    row_of,
    verdict,
    write_trials,
)
from runtime.tasks.base import Metric, Task
from runtime.tasks.table import TASKS

SEEDS = (0, 1)
NETWORKS, EPOCHS = 16, 5
FIRST_ROUND = 4  # random networks; every further round doubles them
SCRATCH = {"retrain.from": "scratch", "retrain.distil.weight": 0.0}
VALIDATED = {"retrain.all_images": False}  # where networks are compared on the validation images
BEST = "best"  # instead of the names of plain networks


@dataclass
class Trainings:
    """Trainings in a folder of a run, each an ordinary run directory there."""

    opened: Opened
    folder: Path
    limit: dict[str, int]
    epochs: int
    again: str  # the command that goes on
    options: JobOptions
    trained: dict[str, dict[str, tuple[RunDir, Mapping[str, Any]]]] = field(default_factory=dict)  # by network

    @property
    def task(self) -> type[Task]:
        """Of the run."""
        return TASKS.load(self.opened.spec.config.task)

    @property
    def metric(self) -> Metric:
        """What decides."""
        return self.task.metrics[0]

    def start(self) -> None:
        """Say what will be trained, and remove earlier trainings if that is asked for."""
        from runtime.jobs.logs import Console

        if self.options.overwrite:
            remove(self.folder)
        Console(self.options.quiet).line(f"at {listed(self.limit)}, {self.epochs} epochs each")

    def plain(self, network: str, seed: int) -> None:
        """Train a plain network, unless it was."""
        with tempfile.TemporaryDirectory(prefix="graphspec-plain-") as folder:
            file = Path(folder) / f"{network}.yaml"
            write_text(file, plain_spec(self.opened.spec, network, self.limit, self.epochs, seed))
            spec, graph = load(file)
        self.train(network, seed, files_of(spec, graph, to_json(graph)))

    def drawn(self, network: str, seed: int, levels: Mapping[str, float]) -> None:
        """Train the network of the space that these levels stand for within the limit, unless it was."""
        from runtime.strategies.random import closed_at_random

        graph, budget = self.opened.graph, self.opened.spec.config.budget
        closed = closed_at_random(graph, budget, levels)
        gates = dict.fromkeys(prune(graph, closed).gates(), 1.0)
        files = files_of(self.opened.spec, graph, to_json(graph))
        digest = hashlib.sha256(files.resolved.encode()).hexdigest()
        found = Architecture.of(graph, gates, strategy="random", seed=seed, spec_hash=digest)
        self.train(network, seed, files, found.to_yaml())

    def train(self, network: str, seed: int, files: Compiled, architecture: str = "") -> None:
        """Train a network in a run of its own; one that was trained with the same settings is left as it is."""
        from runtime.jobs.logs import Console
        from runtime.jobs.signals import Interrupted

        run = RunDir(self.folder / f"{network}-s{seed}")
        if not run.graph_json.is_file():
            RunDir.create(files, run.path, name_latest=False)
        elif read_text(run.resolved) != files.resolved or (
            architecture and run.search.arch.is_file() and read_text(run.search.arch) != architecture
        ):
            raise RunError(f"{run.path}: was trained with other settings\n  try: {self.again} --overwrite")
        if architecture:
            write_text(run.search.arch, architecture)
        if not run.retrain.is_finished:
            Console(self.options.quiet).line(f"{network}, seed {seed}: {self.epochs} epochs in {run.path}")
            how = replace(self.options, resume=run.retrain.has_results, overwrite=False, recalled="")
            try:
                retrain(run, **vars(how))
            except Interrupted as stop:
                raise Interrupted(stop.signum, self.again) from None
        self.trained.setdefault(network, {})[run.path.name] = (run, read_json(run.retrain.result, Result))

    def scored(self, network: str) -> float:
        """The metric of its one training on the validation images."""
        ((_, result),) = self.trained[network].values()
        return float(result[f"validation_{self.metric.name}"])

    def rows(self, prefix: str = "") -> list[Row]:
        """What was trained so far, a row a network; `prefix` of the metric's name."""
        from runtime.jobs.run_retrain import found_network

        graphs = {
            n: [found_network(open_run(run)).model.graph for run, _ in some.values()]
            for n, some in self.trained.items()
        }
        return [row_of(n, some, prefix + self.metric.name, self.ms(graphs[n])) for n, some in self.trained.items()]

    def ms(self, graphs: Sequence[Graph]) -> list[float]:
        """Milliseconds of one image in onnxruntime on one thread; of equal graphs they are measured once."""
        from runtime.strategies.latency import network_latency

        return [1e3 * network_latency(graph, self.folder / "latencies.json") for graph in graphs]

    def write(self, said: str, what: str, rows: Sequence[Row], figures: Mapping[str, float]) -> Trials:
        """Put all of it into the run and its report."""
        from runtime.reporting.page import write_report

        title, form = f"{what} {self.metric.title}", self.metric.form
        trials = Trials(what=title, form=form, said=said, rows=list(rows), figures=dict(figures))
        write_trials(self.folder, trials)
        write_report(self.opened.run)
        return trials


def baseline(
    target: Target = None,
    *,
    epochs: int | None = None,
    seeds: Sequence[int] = SEEDS,
    networks: Sequence[str] = DEFAULT,
    overrides: Overrides = (),
    **options: Any,
) -> Trials:
    """Train plain networks of the size that a run has found, or of its budget, and compare; kept in `RUN/baseline`.

    `epochs`: default, those of search and retraining together. `networks`: families of
    `compiler.architecture.plain`, or `best` for the one that wins short trainings of them all.
    `options` are those of `runtime.jobs.options.JobOptions`; what is trained already is not trained again.
    """
    refuse_processes("baseline", "it without torchrun")
    chosen = checked_seeds(seeds)
    given, job, _ = recalled("retrain", target, overrides, JobOptions(**options), None)
    with opened_at(target, given) as opened:
        found = _found_graphs(opened)
        epochs, typed = epochs or total_epochs(opened), overrides_of(overrides)
        again = _command("baseline", opened, typed, epochs=epochs, seeds=join(chosen), plain=join(networks))
        trials = Trainings(opened, opened.run.baseline, _limit(opened, found), epochs, again, job)
        trials.start()
        if tuple(networks) == (BEST,):
            validated = open_run(opened.run, (*given, *overrides_of(VALIDATED)))
            networks = (_winner(replace(trials, opened=validated), chosen[0]),)
        for seed, network in product(chosen, networks):
            trials.plain(network, seed)
        rows = trials.rows()
        own = found_row(opened.run, trials.task, trials.ms(found))
        return trials.write(
            verdict(trials.metric, own, rows, trials.folder), "test", [*([own] if own else []), *rows], {}
        )


def probe(
    target: Target = None,
    *,
    networks: int = NETWORKS,
    epochs: int = EPOCHS,
    plain: Sequence[str] = DEFAULT,
    overrides: Overrides = (),
    **options: Any,
) -> Trials:
    """Train random networks of a space at its budget for a few epochs beside plain ones; kept in `RUN/probe`.

    They are compared on the validation images. Rounds double the random networks, up to so many, until the picture is
    clear. `options` as of `baseline`.
    """
    refuse_processes("probe", "it without torchrun")
    from runtime.strategies.random import random_levels

    given, job, _ = recalled("retrain", target, overrides, JobOptions(**options), None)
    with opened_at(target, given) as compiled:
        if not compiled.graph.gates():
            raise RunError(f"{compiled.run.path}: the space has no gates, so there is one network to draw")
        opened = open_run(compiled.run, (*given, *overrides_of({"retrain.epochs": epochs, **SCRATCH, **VALIDATED})))
        typed = overrides_of(overrides)
        again = _command("probe", opened, typed, networks=networks, epochs=epochs, plain=join(plain))
        trials = Trainings(opened, opened.run.probe, _limit(opened, ()), epochs, again, job)
        trials.start()
        for seed, network in product(SEEDS, plain):
            trials.plain(network, seed)
        count, clear = 0, False
        while count < networks and not clear:
            count, before = min(networks, max(FIRST_ROUND, 2 * count)), count
            for seed in range(before, count):
                trials.drawn(RANDOM, seed, random_levels(opened.graph, seed))
            *others, drawn = trials.rows("validation_")
            said, clear = outlook(trials.metric, drawn, others)
            made = trials.write(said, "validation", [drawn, *others], figures_of(trials.metric, drawn, others))
        return made


def _winner(trials: Trainings, seed: int) -> str:
    """The best family of plain networks by the validation images, after short trainings of all of them.

    Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): the better half trains for twice as long.
    """
    left = list(PLAIN)
    for halvings in range((len(left) - 1).bit_length(), 0, -1):
        epochs = max(1, trials.epochs >> halvings)
        short = replace(trials, folder=trials.folder / f"short-{epochs}", epochs=epochs, trained={})
        for network in left:
            short.plain(network, seed)
        scores = {network: short.scored(network) for network in left}
        left = sorted(left, key=scores.__getitem__, reverse=trials.metric.higher_is_better)[: (len(left) + 1) // 2]
    return left[0]


def _command(name: str, opened: Opened, given: Sequence[Override], **options: Any) -> str:
    """What to type to go on."""
    words = (word for option, value in options.items() for word in (f"--{option}", str(value)))
    return shlex.join(["graphspec", name, str(opened.run.path), *words, *(w for each in given for w in each.words)])


def join(items: Iterable[object]) -> str:
    """As a list is written in a command."""
    return ",".join(map(str, items))


def _found_graphs(opened: Opened) -> list[Graph]:
    """The networks that a run, or the runs of its seeds, have found, at the width that they are trained with."""
    from runtime.jobs.run_retrain import found_network

    runs = [open_run(run) for run in opened.run.seed_runs().values()] if is_study(opened.run) else [opened]
    there = [one for one in runs if one.run.search.arch.is_file() or not one.graph.gates()]
    return [found_network(one).model.graph for one in there]


def _limit(opened: Opened, found: Sequence[Graph]) -> dict[str, int]:
    """What plain networks may cost: as much as what was found, else the budget; RunError if there is neither."""
    limits = limits_of(opened.spec.config.budget)
    if found:
        measures = [limit.measure for limit in limits] or [each for each in MEASURES if each.name == "flops"]
        return {each.name: round(statistics.fmean(map(each.of, found))) for each in measures}
    if not limits:
        whole = listed(measured(opened.graph))
        raise RunError(
            f"{opened.run.path}: there is no size to compare at: the spec has no budget of parameters or multiply-adds"
            f"\n  try: --set budget.flops=N (the whole space has {whole})"
        )
    return {limit.measure.name: int(limit.most) for limit in limits}


def total_epochs(opened: Opened) -> int:
    """Epochs of retraining for as many steps as search and retraining together, where epochs are of so many steps."""
    from runtime.strategies.base import TrainingStrategy
    from runtime.strategies.table import STRATEGIES

    search, retrain = opened.spec.config.search, opened.spec.config.retrain
    if not (opened.graph.gates() and issubclass(STRATEGIES.load(search.strategy), TrainingStrategy)):
        return retrain.epochs
    epochs = search.pretrain_epochs + search.epochs
    if search.steps_per_epoch and search.cycles_per_epoch and retrain.steps_per_epoch:
        steps = epochs * search.steps_per_epoch + search.epochs * search.cycles_per_epoch
        epochs = math.ceil(steps / retrain.steps_per_epoch)
    return retrain.epochs + epochs
