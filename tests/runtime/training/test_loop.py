"""The training loop: when checkpoints are written, how it stops, what it says."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compiler.errors import RunError
from compiler.language.config import CheckpointConfig
from runtime.jobs.logs import Console, MetricsLog
from runtime.jobs.signals import Interrupted, StopFlag
from runtime.processes.world import ALONE, World
from runtime.rundir.checkpoint import CheckpointStore
from runtime.training.loop import READS_EVERY, Loop
from runtime.training.stages import Position, Stage

Hook = Callable[["Walk", Stage, Position], None]


def nothing(job: Walk, stage: Stage, at: Position) -> None:
    """No hook."""


class Walk:
    """A job that adds a random number in every step; hooks disturb it."""

    name = "search"

    def __init__(self, in_step: Hook = nothing, at_end: Hook = nothing) -> None:
        self.stages = (Stage("first", 1, 3, 8), Stage("empty", 0, 3, 8), Stage("second", 2, 2, 8))
        self.place, self.loss = torch.zeros(2), 1.0
        self.in_step, self.at_end = in_step, at_end

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        self.place += torch.rand(2)
        self.in_step(self, stage, at)
        return {"train_loss": torch.tensor(self.loss)}

    def rates(self, stage: Stage, at: Position) -> Mapping[str, float]:
        return {"search.lr": 0.25}

    def end_epoch(self, stage: Stage, at: Position, means: Mapping[str, float], seconds: float) -> dict[str, Any]:
        self.at_end(self, stage, at)
        return dict(means)

    def is_over(self, stage: Stage, epochs: int) -> bool:
        return epochs >= stage.epochs

    def histograms(self) -> Mapping[str, Tensor]:
        return {}

    def describe(self, record: Mapping[str, Any]) -> str:
        return "an epoch"

    def parameters(self) -> Iterable[Tensor]:
        return [self.place]

    def tensors(self) -> dict[str, Tensor]:
        return {"place": self.place}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.place = tensors["place"]


def run(folder: Path, job: Walk, minutes: float = 0.0, console: Console | None = None, reads_every: int = 1) -> Loop:
    warn = Console(quiet=True).warn
    with StopFlag() as stop:
        loop = Loop(
            job=job,
            world=ALONE,
            store=CheckpointStore(folder / "checkpoints", 2, warn),
            metrics=MetricsLog(folder, warn),
            console=console or Console(quiet=True),
            stop=stop,
            seed=3,
            config=CheckpointConfig(minutes=minutes),
            resume_command="again",
            after_epoch=lambda: None,
            reads_every=reads_every,
        )
        loop.resume()
        loop.run()
    return loop


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    job = Walk()
    run(tmp_path_factory.mktemp("undisturbed"), job)
    return job.place


def once(stage_name: str, step: int, signum: int) -> Hook:
    def hook(job: Walk, stage: Stage, at: Position) -> None:
        if (stage.name, at.epoch) == (stage_name, 0) and at.step == step:
            os.kill(os.getpid(), signum)

    return hook


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["in_step", "at_end"])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, undisturbed: Tensor, where: str, signum: int, code: int
) -> None:
    hook = once("second", 0 if where == "in_step" else 2, signum)
    with pytest.raises(Interrupted, match="again") as stopped:
        run(tmp_path, Walk(**{where: hook}))
    assert stopped.value.exit_code == code
    job = Walk()
    steps: list[Position] = []
    job.in_step = lambda job, stage, at: steps.append(at)
    run(tmp_path, job)
    assert steps[0] == (Position(2, 0, 1) if where == "in_step" else Position(2, 1, 0))
    assert torch.equal(job.place, undisturbed)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("change", [
    {"position": {"stage": 99, "epoch": 0, "step": 0}}, {"position": {"stage": -1, "epoch": 0, "step": 0}},
    {"position": {"stage": 0, "epoch": 7, "step": 0}}, {"position": {"stage": True, "epoch": 0, "step": 0}},
    {"metrics": {"../../../x": 1}}, {"metrics": {"metrics": -1, "timings": 0}}, {"sums": {"train_loss": "x"}},
    {"sums": []}, {"job": 5}, {"position": None},
])  # fmt: skip
def test_state_that_no_job_has_left_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, Walk(once("second", 0, signal.SIGTERM)))
    store = CheckpointStore(tmp_path / "checkpoints", 2, lambda line: None)
    newest = store.load_latest()
    assert newest is not None
    store.save(newest.number + 1, newest.tensors, newest.state | change)
    with pytest.raises(RunError, match=r"json: cannot go on: the checkpoint is none of this job: .*\n  try: "):
        run(tmp_path, Walk())
    assert not (tmp_path.parent / "x.jsonl").exists()


def test_tensors_of_another_job_are_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", 2, lambda line: None)
    state = {"job": {}, "position": {"stage": 0, "epoch": 0, "step": 1}, "sums": {}}
    store.save(1, {}, state | {"metrics": {"metrics": 0, "timings": 0}})
    with pytest.raises(RunError, match="the checkpoint is none of this job: KeyError"):
        run(tmp_path, Walk())


@pytest.mark.parametrize(("minutes", "written"), [(0.0, 3), (1e-12, 3 + 3 + 2 * 2), (60.0, 3)])
def test_checkpoints_come_by_epoch_and_by_the_clock(tmp_path: Path, minutes: float, written: int) -> None:
    assert run(tmp_path, Walk(), minutes).written == written
    assert len(list((tmp_path / "checkpoints").glob("*.json"))) == 2


def test_processes_compare_what_they_train_after_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, list[Tensor]]] = []

    def check_same(world: World, when: str, parameters: Iterable[Tensor]) -> None:
        compared.append((when, list(parameters)))
        if len(compared) == 3:
            raise RunError("drifted apart")

    monkeypatch.setattr(World, "check_same", check_same)
    job = Walk()
    with pytest.raises(RunError, match="drifted apart"):
        run(tmp_path, job)
    ends = ("epoch 1 of first", "epoch 1 of second", "epoch 2 of second")
    assert compared == [(f"by the end of {end}", [job.place]) for end in ends]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2, "an epoch that went wrong is not recorded"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_job(tmp_path: Path, loss: float) -> None:
    def hook(job: Walk, stage: Stage, at: Position) -> None:
        job.loss = loss if (stage.name, at.step) == ("second", 1) else 1.0

    with pytest.raises(RunError) as stopped:
        run(tmp_path, Walk(in_step=hook))
    for part in (f"train_loss became {loss}", "step 2 of epoch 1 (second)", "search.lr 0.25", "00000001.json"):
        assert part in str(stopped.value)


def test_a_loss_that_is_not_finite_stops_the_job_within_fifty_steps(tmp_path: Path) -> None:
    steps: list[int] = []

    def hook(job: Walk, stage: Stage, at: Position) -> None:
        steps.append(at.step)
        job.loss = math.nan if at.step == 7 else 1.0

    job = Walk(in_step=hook)
    job.stages = (Stage("long", 2, 200, 8),)
    with pytest.raises(RunError, match=r"train_loss became nan at step 8 of epoch 1 \(long\).*none yet"):
        run(tmp_path, job, minutes=1e-12, reads_every=READS_EVERY)
    assert steps == [*range(READS_EVERY)]
    assert READS_EVERY <= 50


@pytest.mark.parametrize("reads_every", [2, 50])
def test_means_and_checkpoints_do_not_depend_on_when_losses_are_read(tmp_path: Path, reads_every: int) -> None:
    def hook(job: Walk, stage: Stage, at: Position) -> None:
        job.loss = 1 / (3 + at.epoch + at.step)

    for name, every in (("each", 1), ("late", reads_every)):
        run(tmp_path / name, Walk(in_step=hook), reads_every=every)
    files = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("each", "late")]
    assert files[0] == files[1]
    assert "train_loss" in files[0]
    with pytest.raises(Interrupted):  # at once, with the losses that were not read yet
        run(
            tmp_path / "stopped",
            Walk(lambda *now: (hook(*now), once("first", 1, signal.SIGTERM)(*now))),
            reads_every=50,
        )
    resumed = Walk(in_step=hook)
    run(tmp_path / "stopped", resumed, reads_every=50)
    assert (tmp_path / "stopped" / "metrics.jsonl").read_text() == files[0]


@pytest.mark.parametrize("step", [0, 1])  # before a checkpoint by the clock, and before that of the epoch
def test_tensors_that_are_not_finite_get_no_checkpoint(tmp_path: Path, step: int) -> None:
    def hook(job: Walk, stage: Stage, at: Position) -> None:
        if stage.name == "second" and at.step == step:
            job.place[1] = math.nan

    with pytest.raises(RunError, match=rf"place became .* at step {step + 1} of epoch 1 \(second\).*checkpoint is /"):
        run(tmp_path, Walk(in_step=hook), minutes=1e-12)
    kept = CheckpointStore(tmp_path / "checkpoints", 2, lambda line: None).load_latest()
    assert kept is not None
    assert bool(kept.tensors["place"].isfinite().all())


class Bar(Console):
    """Notes what its bar is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.total, self.done, self.told = 0, 0, list[str]()

    @contextmanager
    def progress(self, name: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        self.total, self.done = total, done

        def advance(images: int, now: str) -> None:
            self.done += images
            self.told.append(now)

        yield advance


def test_the_bar_is_that_of_the_whole_job(tmp_path: Path) -> None:
    bar = Bar()
    run(tmp_path / "whole", Walk(), console=bar)
    assert bar.done == bar.total == (3 + 2 * 2) * 8
    assert bar.told[2:5] == ["first 1/1, step 3/3", "second 1/2, step 1/2", "second 1/2, step 2/2"]
    with pytest.raises(Interrupted):
        run(tmp_path / "resumed", Walk(in_step=once("second", 0, signal.SIGTERM)))
    run(tmp_path / "resumed", Walk(), console=bar)
    assert bar.done == bar.total
    assert len(bar.told) == 7 + 3
