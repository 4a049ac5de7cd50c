"""What training adds to plain steps: moving average, mixing, AdamW, the best epoch, early stopping, added epochs."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compiler.errors import GraphspecError, RunError
from compiler.language.config import Configuration, RetrainConfig
from compiler.lowering.torch.emit import tensor_name
from graphspec import api
from graphspec.rates import find_rate
from runtime.data.dataset import load_dataset
from runtime.jobs.run_retrain import found_network
from runtime.jobs.signals import Interrupted
from runtime.processes.world import ALONE, World
from runtime.rundir.directory import RunDir
from runtime.tasks.classification import Classification
from runtime.training.mixing import Mixing
from runtime.training.retrain_job import RetrainJob
from runtime.training.stages import Position
from runtime.training.step import clip_gradients
from tests.tasks import class_task
from tests.tiny import TINY, write_spec

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = (
    TINY.replace("{name: digits}", "{name: fake, fake_size: 64}")
    .replace(", gated: true", "")
    .replace("levels: {count: 2", "levels: {count: 1, gate_input: false")
)
SHORT = ["retrain.batch_size=16", "retrain.epochs=3", "data.validation=0.25"]
OPTIONS = [
    ["retrain.ema=0.9"],
    ["retrain.mixup=0.4", "retrain.cutmix=1", "retrain.label_smoothing=0.1", "data.class_weights={class1: 2}"],
    ["retrain.optimizer=adamw", "retrain.lr=0.003", "retrain.clip_norm=1"],
    ["retrain.keep=best", "retrain.patience=1", "retrain.ema=0.5"],
    ["retrain.all_images=true"],
    ["data.augment=trivial", "data.erasing=0.5"],
    ["retrain.augment=trivial"],
    ["data.augment=rand", "data.colour_jitter=0.3", "data.resized_crop=0.4"],
]


def run_of(folder: Path, settings: Sequence[str] = ()) -> RunDir:
    """A run of a network without gates on 48 fake training images."""
    folder.mkdir(exist_ok=True)
    compiled = api.compile(write_spec(folder, PLAIN), overrides=[*SHORT, *settings], root=folder / "runs")
    assert compiled.run is not None
    return compiled.run


def job_of(folder: Path, *settings: str) -> RetrainJob:
    opened = api.open_run(run_of(folder, settings))
    config = opened.spec.config
    dataset = load_dataset(config.data, opened.spec.input, class_task(10), seed=config.seed)
    return RetrainJob(found_network(opened).model.graph, config, dataset, torch.device("cpu"))


def trained(job: RetrainJob, epochs: int = 1) -> RetrainJob:
    stage = job.stages[0]
    for epoch in range(epochs):
        for step in range(stage.steps_per_epoch):
            job.step(stage, Position(0, epoch, step))
    return job


def files_of(run: RunDir) -> dict[str, bytes]:
    return {name: (run.retrain.path / name).read_bytes() for name in ("weights.safetensors", "metrics.jsonl")}


@pytest.mark.parametrize("settings", OPTIONS, ids=lambda settings: settings[0])
def test_a_stop_in_mid_epoch_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    whole, cut = (run_of(tmp_path / name, settings) for name in ("whole", "cut"))
    wanted = api.retrain(whole, quiet=True)
    step, steps = RetrainJob.weight_step, []

    def stopped(job: RetrainJob, batch: tuple[Tensor, Tensor]) -> Tensor:
        steps.append(step(job, batch))
        if len(steps) == 5:  # of 3 an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return steps[-1]

    with monkeypatch.context() as patched:
        patched.setattr("runtime.jobs.run_retrain.require_memory", lambda *_: None)  # it takes steps
        patched.setattr(RetrainJob, "weight_step", stopped)
        with pytest.raises(Interrupted):
            api.retrain(cut, quiet=True)
    result = api.retrain(cut, resume=True, quiet=True)
    assert files_of(cut) == files_of(whole)
    assert {**result.__dict__, "run": ""} == {**wanted.__dict__, "run": ""}


@pytest.mark.parametrize("settings", OPTIONS, ids=lambda settings: settings[0])
def test_no_setting_is_ignored(tmp_path: Path, settings: list[str]) -> None:
    plain, other = (trained(job_of(tmp_path / name, *more)).weights() for name, more in (("a", ()), ("b", settings)))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in plain.items())


def test_the_average_follows_the_weights_and_is_what_is_left(tmp_path: Path) -> None:
    job = job_of(tmp_path, "retrain.ema=0.9")
    stage = job.stages[0]
    expected: dict[str, Tensor] = {}
    for step in range(3):
        job.step(stage, Position(0, 0, step))
        now = {n: t.clone() for n, t in job.module.state_dict().items()}
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        expected = {n: decay * expected.get(n, t) + (1 - decay) * t for n, t in now.items()}
    left = job.outcome.state_dict()
    assert all(torch.allclose(left[n], expected[n], atol=1e-6) for n in expected)
    named = {tensor_name(path): tensor for path, tensor in left.items()}
    assert all(torch.equal(tensor, named[name]) for name, tensor in job.weights().items())


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 2, 6, 5, generator=generator), torch.arange(count) % 10


def mixing(world: World = ALONE, **settings: float) -> Mixing:
    return Mixing(class_task(), RetrainConfig.model_validate(settings), 5, world)


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_targets_are_blended_as_the_pixels_are(settings: dict[str, float]) -> None:
    x, y = batch(9)
    blended, shares = mixing(**settings)((x, y), 1, 2)
    partner = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6, 8])
    assert torch.equal(blended[8], x[8])
    assert torch.allclose(shares.sum(1), torch.ones(9))
    for row in range(8):
        own = float(shares[row, y[row]])
        part = ((blended[row] - x[partner[row]]) / (x[row] - x[partner[row]]))[0]  # of each pixel
        assert float(part.mean()) == pytest.approx(own, abs=1e-4)
        assert float(shares[row, y[partner[row]]]) == pytest.approx(1 - own, abs=1e-5)
    again = mixing(**settings)((x, y), 1, 2)[0]
    assert torch.equal(again, blended)
    assert not torch.equal(mixing(**settings)((x, y), 1, 3)[0], blended)


def test_two_processes_mix_as_one_does() -> None:
    x, y = batch()
    whole = mixing(mixup=0.5, cutmix=1.0)((x, y), 0, 0)
    halves = [
        mixing(World(rank, 2), mixup=0.5, cutmix=1.0)((x[part], y[part]), 0, 0)
        for rank, part in enumerate((slice(0, 4), slice(4, 8)))
    ]
    for position, tensor in enumerate(whole):
        assert torch.equal(torch.cat([half[position] for half in halves]), tensor)


@pytest.mark.parametrize("weights", [None, {"class1": 3.0, "class2": 0.5}])
def test_the_loss_of_blended_targets_is_the_blended_loss(weights: dict[str, float] | None) -> None:
    config = Configuration.model_validate({"data": {"class_weights": weights}})
    task = Classification(4, config).fitted(torch.arange(8) % 4, [f"class{number}" for number in range(4)])
    training, y, other = RetrainConfig(label_smoothing=0.1), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 2])
    output, share = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 1.0, 0.6])
    blended = task.shares(y) * share[:, None] + task.shares(other) * (1 - share[:, None])
    expected = sum(
        share[row] * task.loss(output[row : row + 1], y[row : row + 1], training)
        + (1 - share[row]) * task.loss(output[row : row + 1], other[row : row + 1], training)
        for row in range(3)
    )
    assert torch.allclose(task.loss(output, blended, training), torch.as_tensor(expected) / 3)


def test_the_norm_is_clipped_after_the_elements() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 40.0])
    clip_gradients([parameter], 4.0, 1.0)
    assert torch.allclose(parameter.grad, torch.tensor([0.6, 0.8]), atol=1e-5)


def validated(run: RunDir) -> list[tuple[float, float]]:
    records = [json.loads(line) for line in run.retrain.metrics.read_text().splitlines()]
    return [(record["accuracy"], -record["loss"]) for record in records]


def test_the_best_epoch_is_kept_and_patience_ends_the_training(tmp_path: Path) -> None:
    run = run_of(tmp_path, ["retrain.keep=best", "retrain.patience=2", "retrain.epochs=30", "retrain.lr=0.2"])
    result = api.retrain(run, quiet=True)
    seen = validated(run)
    best = max(range(len(seen)), key=lambda epoch: (*seen[epoch], -epoch)) + 1
    assert result.best_epoch == best
    assert result.epochs == len(seen) == best + 2 < 30
    assert result.validation_accuracy == seen[best - 1][0]


def test_all_images_leave_no_validation(tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", "retrain.all_images=true")
    assert len(job.feed.loader.rows) == 64
    run = run_of(tmp_path / "run", ["retrain.all_images=true"])
    result = api.retrain(run, quiet=True)
    assert result.validation_accuracy is None
    assert result.test_images == 32
    assert "accuracy" not in json.loads(run.retrain.metrics.read_text().splitlines()[0])


def test_a_finished_training_goes_on_for_more_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [run_of(tmp_path / name) for name in ("one", "two")]
    first, _ = (api.retrain(run, quiet=True) for run in runs)
    capfd.readouterr()
    more = api.retrain(runs[0], resume=True, overrides=["retrain.epochs=5"])
    assert "2 epochs more, 5 in all" in capfd.readouterr().err
    rates = [json.loads(line)["lr"] for line in runs[0].retrain.metrics.read_text().splitlines()]
    assert len(rates) == 5
    assert rates[3] > rates[2]  # the schedule of 5 epochs
    assert more.weights != first.weights
    assert api.retrain(runs[0], resume=True, quiet=True) == more

    step, steps = RetrainJob.weight_step, []

    def stopped(job: RetrainJob, batch: tuple[Tensor, Tensor]) -> Tensor:
        steps.append(step(job, batch))
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return steps[-1]

    with monkeypatch.context() as patched:
        patched.setattr(RetrainJob, "weight_step", stopped)
        with pytest.raises(Interrupted):
            api.retrain(runs[1], resume=True, quiet=True, overrides=["retrain.epochs=5"])
    assert not runs[1].retrain.is_finished
    api.retrain(runs[1], resume=True, quiet=True)
    assert files_of(runs[1]) == files_of(runs[0])


def test_fewer_epochs_and_lost_checkpoints_cannot_go_on(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    api.retrain(run, quiet=True)
    with pytest.raises(RunError, match=r"changed spec: retrain.epochs"):
        api.retrain(run, resume=True, overrides=["retrain.epochs=2"])
    for file in run.retrain.checkpoints.iterdir():
        file.unlink()
    with pytest.raises(RunError, match=r"changed spec: retrain.epochs"):
        api.retrain(run, resume=True, overrides=["retrain.epochs=5"])
    assert run.retrain.is_finished


def test_the_rate_is_a_tenth_of_that_of_the_lowest_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = write_spec(tmp_path, PLAIN.replace("name: fake, fake_size: 64", "name: digits"))
    found = find_rate(spec, overrides=["retrain.mixup=0.2"])
    lowest = found.rates[found.losses.index(min(found.losses))]
    assert found.rate == pytest.approx(lowest / 10, rel=0.5)
    assert 0.01 < found.rate < 1
    assert f"--set retrain.lr={found.rate:g}" in found.lines()[-1]
    assert find_rate(spec, overrides=["retrain.mixup=0.2"]) == found
    assert list(tmp_path.iterdir()) == [spec]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["retrain.all_images=true", "retrain.keep=best"], "needs validation, and retrain.all_images leaves none"),
        (["retrain.all_images=true", "retrain.patience=3"], "needs validation, and retrain.all_images leaves none"),
        (["retrain.ema=1"], "retrain.ema"),
        (["retrain.mixup=-1"], "retrain.mixup"),
        (["retrain.optimizer=lion"], "retrain.optimizer"),
        (["data.augment=much"], "data.augment"),
        (["retrain.augment=rand", "input=[4, 8, 8]"], "changes images of 1 or 3 channels, .* write none"),
        (["data.erasing=2"], "data.erasing"),
        (["data.resized_crop=1"], "data.resized_crop"),
    ],
)
def test_what_cannot_be_is_told_with_its_place(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(GraphspecError, match=message) as refused:
        api.load(write_spec(tmp_path, PLAIN), settings)
    assert re.match(r"(--set:\d|\S+tiny\.yaml:38):\d+: error: ", str(refused.value))
