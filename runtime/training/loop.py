"""The one training loop: stages of epochs of steps, checkpoints, resume, signals, logs; in one process or in many.

A job's random choices are functions of its position, so a resumed job ends bit-identical on CPU.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor

from compiler.errors import GraphspecError, RunError
from compiler.language.config import CheckpointConfig
from compiler.language.findings import first_of
from runtime.jobs.logs import Advance, Console, MetricsLog
from runtime.jobs.signals import Interrupted, StopFlag
from runtime.processes.world import World
from runtime.rundir.checkpoint import CheckpointStore
from runtime.rundir.records import State
from runtime.seeds import mix, reseed
from runtime.tasks.base import Task
from runtime.training.stages import Position, Stage

READS_EVERY = 50  # steps on a GPU after which losses are read: so many later at most a job stops that has diverged


class Job(Protocol):
    """What the loop runs."""

    name: str
    task: Task
    stages: tuple[Stage, ...]

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        """One step; scalars to average over the epoch, still to be read. The job is stopped if one is not finite."""

    def rates(self, stage: Stage, at: Position) -> Mapping[str, float]:
        """The learning rates of a step, each by the key of its setting."""

    def end_epoch(self, stage: Stage, at: Position, means: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Validate and whatever else an epoch ends with; the epoch's record. No times in it: it must be repeatable."""

    def is_over(self, stage: Stage, epochs: int) -> bool:
        """Whether a stage ends after so many epochs."""
        return epochs >= stage.epochs

    def histograms(self) -> Mapping[str, Tensor]:
        """Values whose distribution TensorBoard shows at the end of an epoch."""
        return {}

    def describe(self, record: Mapping[str, Any]) -> str:
        """One line for people from an epoch's record."""
        return (
            f"{record['stage']} {record['epoch']:>3}  loss {record['train_loss']:.3f}  "
            f"validation {record['loss']:.3f} {self.task.text(record)}"
        )

    def parameters(self) -> Iterable[Tensor]:
        """What training changes and is the same in all processes: weights and gates."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything numeric a resumed job needs."""

    def state(self) -> dict[str, Any]:
        """Everything else it needs, as JSON."""

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Become the job that gave these."""


def _cpu_seconds() -> float:
    """What this process and its children have used so far."""
    return math.fsum(os.times()[:4])


@dataclass
class Loop:
    """Runs a job to its end. Of several processes the main one reads and writes checkpoints; if one stops, all do."""

    job: Job
    world: World
    store: CheckpointStore
    metrics: MetricsLog
    console: Console
    stop: StopFlag
    seed: int
    config: CheckpointConfig
    resume_command: str  # what to type after an interruption
    after_epoch: Callable[[], None]
    position: Position = field(default_factory=Position)
    sums: dict[str, float] = field(default_factory=dict)
    written: int = 0  # checkpoints so far: their running number
    saved_at: float = field(default_factory=time.monotonic)  # when the last one was written
    cpu: float = field(default_factory=_cpu_seconds)  # used by the process at the last epoch
    reads_every: int = 1  # steps; to read a loss is to wait for the device
    unread: list[tuple[Position, Mapping[str, Tensor]]] = field(default_factory=list)  # losses of the steps since

    def resume(self) -> bool:
        """Continue from the newest whole checkpoint; False if there is none."""
        tensors: dict[str, Tensor] = {}

        def newest() -> dict[str, Any] | None:
            checkpoint = self.store.load_latest()
            tensors.update(checkpoint.tensors if checkpoint else {})
            return {"number": checkpoint.number, "state": checkpoint.state} if checkpoint else None

        found = self.world.decided(newest)
        if found is None:
            return False
        tensors = self.world.from_main(tensors)
        self.written = found["number"]
        try:
            state = State.model_validate(found["state"])
            self.position, self.sums = self._checked(Position(**dict(state.position))), state.sums
            self.job.restore(tensors, state.job)
        except GraphspecError:
            raise
        except Exception as error:  # whatever a job says of state that is not its own
            what = first_of(error) if isinstance(error, ValidationError) else repr(error)
            raise RunError(
                f"{self.store.latest_path}: cannot go on: the checkpoint is none of this job: {what}\n"
                f"  try: --overwrite to start anew"
            ) from error
        self.metrics.rewind(dict(state.metrics))
        return True

    def _checked(self, at: Position) -> Position:
        """The position; IndexError or ValueError if the job never stands there."""
        stage = (*self.job.stages, Stage("the end", 0, 0, 0))[at.stage]
        if at.epoch > stage.epochs or at.step > stage.steps_per_epoch:
            raise ValueError(f"it stands at {at}")
        return at

    def run(self) -> None:
        """Run what is left; Interrupted (after a checkpoint) on a signal, RunError if a number is not finite."""
        with self.console.progress(self.job.name, *self._images()) as advance:
            while self.position.stage < len(self.job.stages):
                stage = self.job.stages[self.position.stage]
                if self.job.is_over(stage, self.position.epoch):
                    self.position = Position(self.position.stage + 1)
                    continue
                self._epoch(stage, advance)
                self._save(stage)
                self._heed(int(self.world.tables([self.stop.signum or 0]).max()))  # of any process
                self.after_epoch()
        if self.world.is_main and self.written:
            self.store.remove_others(self.written)  # a kill may have left some after the last one was written

    def _images(self) -> tuple[int, int]:
        """How many images all stages go through, and how many of them it has been."""
        stages, at = self.job.stages, self.position
        done = sum(stage.images(stage.epochs) for stage in stages[: at.stage])
        done += sum(stage.images(at.epoch, at.step) for stage in stages[at.stage : at.stage + 1])
        return sum(stage.images(stage.epochs) for stage in stages), done

    def _epoch(self, stage: Stage, advance: Advance) -> None:
        started, first = time.perf_counter(), self.position.step
        name = f"{stage.name} {self.position.epoch + 1}/{stage.epochs}"
        while self.position.step < stage.steps_per_epoch:
            self._step(stage)
            advance(stage.images_per_step, f"{name}, step {self.position.step}/{stage.steps_per_epoch}")
            if not self._reads_now(stage):
                continue
            signum = self._read(stage)
            waited = time.monotonic() - self.saved_at
            if signum or (self.config.minutes and waited > 60 * self.config.minutes):
                self._save(stage)
            self._heed(signum)
        seconds = time.perf_counter() - started
        self._checked_tensors(stage)  # before pruning and validation look at them
        self._end_epoch(stage, seconds, stage.steps_per_epoch - first)

    def _heed(self, signum: int) -> None:
        """Stop if a signal came; a checkpoint is written already."""
        if signum:
            stop = Interrupted(signum, self.resume_command)
            stop.told = not self.world.is_main
            raise stop

    def _step(self, stage: Stage) -> None:
        at = self.position
        reseed(mix(self.seed, f"{self.job.name}.step", at.stage, at.epoch, at.step))
        self.unread.append((at, self.job.step(stage, at)))
        self.position = Position(at.stage, at.epoch, at.step + 1)

    def _reads_now(self, stage: Stage) -> bool:
        """Of several processes all read after the same steps."""
        is_due = len(self.unread) >= self.reads_every or self.position.step == stage.steps_per_epoch
        return is_due or bool(self.world.size == 1 and self.stop.signum)

    def _read(self, stage: Stage) -> int:
        """Read the losses; the signal that a process got in the meantime, 0 if none did."""
        keys = [(at, key) for at, losses in self.unread for key in losses]
        own = [float(loss) for _, losses in self.unread for loss in losses.values()]
        self.unread.clear()
        table = self.world.tables([*own, self.stop.signum or 0])
        *means, _ = table.mean(0).tolist()
        for (at, key), number in zip(keys, means, strict=True):
            if not math.isfinite(number):
                raise self._diverged(stage, at, f"{key} became {number}")
            self.sums[key] = self.sums.get(key, 0.0) + number
        return int(table[:, -1].max())

    def _checked_tensors(self, stage: Stage) -> dict[str, Tensor]:
        """The job's tensors; RunError if one is not finite, so that every checkpoint is a good one."""
        tensors = self.job.tensors()
        finite = {name: tensor.isfinite().all() for name, tensor in tensors.items() if tensor.is_floating_point()}
        device = next(iter(finite.values())).device
        if not torch.stack([each.to(device) for each in finite.values()]).all():  # one look: each waits for the GPU
            name = next(name for name, each in finite.items() if not each)
            last = Position(self.position.stage, self.position.epoch, max(self.position.step - 1, 0))
            raise self._diverged(stage, last, f"{name} became infinite or not a number")
        return tensors

    def _diverged(self, stage: Stage, at: Position, what: str) -> RunError:
        rates = ", ".join(f"{key} {rate:g}" for key, rate in self.job.rates(stage, at).items())
        return RunError(
            f"{what} at step {at.step + 1} of epoch {at.epoch + 1} ({stage.name}); learning rate: {rates}; "
            f"the last good checkpoint is {self.store.latest_path or 'none yet'}\n"
            f"  try: a lower {self.job.name}.lr, or {self.job.name}.clip=5, and start anew with --overwrite"
        )

    def _end_epoch(self, stage: Stage, seconds: float, steps: int) -> None:
        at = self.position
        means = {key: total / stage.steps_per_epoch for key, total in self.sums.items()}
        per_step = seconds / max(steps, 1)
        place = {"stage": stage.name, "epoch": at.epoch + 1}
        record = place | self.job.end_epoch(stage, at, means, per_step)
        self.world.check_same(f"by the end of epoch {at.epoch + 1} of {stage.name}", self.job.parameters())
        for name, values in self.job.histograms().items():
            self.metrics.histogram(name, values)
        self.metrics.write(record)
        rate = stage.images_per_step / per_step
        before, self.cpu = self.cpu, _cpu_seconds()
        times = {"seconds": seconds, "images_per_second": rate, "cpu_seconds": self.cpu - before}
        self.metrics.write_timing(place | times)
        self.console.line(f"{self.job.describe(record)}  {seconds:.1f} s  {rate:.0f} images/s")
        self.sums = {}
        self.position = Position(at.stage, at.epoch + 1)

    def _save(self, stage: Stage) -> None:
        tensors = self._checked_tensors(stage)
        self.written += 1
        state = {
            "job": self.job.state(),
            "position": asdict(self.position),
            "sums": self.sums,
            "metrics": self.metrics.position(),
        }
        if self.world.is_main:
            self.store.save(self.written, tensors, state)
        self.saved_at = time.monotonic()
