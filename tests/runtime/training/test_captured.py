"""Steps that are captured and replayed: the same numbers as steps that are called. Graphs are recorded on the CPU."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compiler.errors import RunError
from compiler.language.config import RetrainConfig, SearchConfig
from graphspec import api
from runtime.rundir.directory import RunDir
from runtime.training.average import Average
from runtime.training.captured import WARM_UP, Batch, Capture, Step
from runtime.training.step import set_rate, uses_bf16, weight_optimizer
from tests.recorded import Recorder
from tests.tiny import TINY, write_spec

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ("search.pretrain_epochs=1", "search.epochs=3", "search.batch_size=8", "retrain.batch_size=8", "seed=0")
SETTINGS = {
    "sgd": ("search.clip=1", "retrain.ema=0.9", "retrain.drop_path=0.4", "retrain.dropout=0.3", "data.drop_last=false"),
    "adamw": ("search.optimizer=adamw", "search.lr=0.003", "search.weight_steps=2", "search.prune.every=0.5",
              "search.gates.gamma=0.5", "search.epochs=5",
              "retrain.optimizer=adamw", "retrain.lr=0.003", "retrain.clip_norm=1", "retrain.mixup=0.2"),
    "widths": ("search.gates.adaptive=flops", "search.gates.gamma=auto", "budget.params=2k", "search.accumulate=2",
               "retrain.accumulate=2", "data.class_weights=balanced", "data.crop_padding=1"),
}  # fmt: skip
FILES = ("search/arch.yaml", "search/weights.safetensors", "search/metrics.jsonl",
         "retrain/weights.safetensors", "retrain/metrics.jsonl")  # fmt: skip


def trained(folder: Path, capture: Capture, patch: pytest.MonkeyPatch, settings: Sequence[str]) -> dict[str, bytes]:
    """What a search and a training leave whose steps run as `capture` has it."""
    folder.mkdir()
    text = TINY.replace("{name: digits}", "{name: fake, fake_size: 96, test: 0.2}")
    with patch.context() as patched:
        patched.setattr(Capture, "on", lambda *_: capture)
        compiled = api.compile(write_spec(folder, text), overrides=[*SHORT, *settings], root=folder / "runs")
        assert compiled.run is not None
        api.search(compiled.run, quiet=True)
        api.retrain(compiled.run, quiet=True)
    return {name: (RunDir.open(compiled.run.path).path / name).read_bytes() for name in FILES}


def called() -> Capture:
    """Steps are called, with the optimizers of captured ones."""
    capture = Capture(Recorder())
    capture.graphs = None
    return capture


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_replayed_steps_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    graphs = Recorder()
    replayed = trained(tmp_path / "replayed", Capture(graphs, pytest.fail), monkeypatch, settings)
    assert replayed == trained(tmp_path / "called", called(), monkeypatch, settings)
    assert graphs.captures >= 4, "weights and gates, again after pruning, and the training"
    assert graphs.replays > graphs.warmed


@pytest.mark.slow
def test_a_capture_that_fails_is_told_of_once_and_steps_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    failing = Capture(Recorder(fails="CUDA error: out of memory\nmore"), said.append)
    assert trained(tmp_path / "fails", failing, monkeypatch, ()) == trained(
        tmp_path / "called", called(), monkeypatch, ()
    )
    assert said == ["steps are started kernel by kernel, not as CUDA graphs: CUDA error: out of memory"]


@pytest.mark.parametrize(("settings", "processes", "why"), [
    ({}, 2, "DistributedDataParallel"), ({"compile": True}, 1, "torch.compile"),
])  # fmt: skip
def test_what_cannot_be_captured_is_told_of(settings: dict[str, bool], processes: int, why: str) -> None:
    said: list[str] = []
    config = RetrainConfig.model_validate(settings)
    capture = Capture.on(torch.device("cuda"), config, processes, said.append)
    assert (capture.graphs, capture.wanted, len(said)) == (None, False, 1)
    assert why in said[0]
    assert Capture.on(torch.device("cpu"), config, processes, pytest.fail).graphs is None


class Line:
    """A sum of inputs times a weight that a step makes larger."""

    def __init__(self) -> None:
        self.weight, self.calls = torch.ones(()), 0

    def step(self, batch: Batch) -> Tensor:
        self.calls += 1
        x, y = batch
        self.weight += 1
        return (x.sum() + y.sum()) * self.weight


def batch(images: int, value: float = 1.0) -> Batch:
    return torch.full((images, 2), value), torch.zeros(images, dtype=torch.int64)


def test_batches_of_another_size_are_called_and_the_graph_stays() -> None:
    line, graphs = Line(), Recorder()
    step = Step(line.step, Capture(graphs))
    sizes = [3, *[4] * (WARM_UP + 2), 3, 4, 4]  # the first one is an odd one: a job that goes on at an epoch's end
    found = [float(step(batch(size, n))) for n, size in enumerate(sizes)]
    assert found == [size * 2 * n * (n + 2) for n, size in enumerate(sizes)]
    assert (graphs.captures, graphs.warmed, graphs.replays) == (1, WARM_UP + 1, 4)
    assert line.calls == len(sizes) - 3, "the last of four replays are not called"


def test_a_capture_that_fails_gives_back_what_others_hold() -> None:
    """The steps that are called from then on need the memory."""
    graphs, said = Recorder(), list[str]()
    capture = Capture(graphs, said.append)
    first, second = Step(Line().step, capture), Step(Line().step, capture)
    for _ in range(WARM_UP + 1):
        first(batch(2))
    assert first.replay is not None
    held = weakref.ref(first.replay)
    graphs.fails = "CUDA error: out of memory"
    for _ in range(WARM_UP + 1):
        second(batch(2))
    gc.collect()
    assert (held(), first.inputs, second.inputs, len(said)) == (None, None, None, 1)
    assert float(first(batch(2))) == 4 * (WARM_UP + 3), "it is called"


def test_losses_stay_what_they_were() -> None:
    step = Step(Line().step, Capture(Recorder()))
    losses = [step(batch(1)) for _ in range(WARM_UP + 4)]
    assert [float(loss) for loss in losses] == [2.0 * (n + 2) for n in range(len(losses))]


def test_a_number_that_is_read_in_a_step_is_found() -> None:
    said: list[str] = []
    step = Step(lambda given: given[0].sum() * float(given[0].max()), Capture(Recorder(), said.append))
    for _ in range(WARM_UP + 2):
        assert float(step(batch(2))) == 4.0
    assert said == ["steps are started kernel by kernel, not as CUDA graphs: a number is read while recording"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rates_that_are_tensors_train_as_numbers_do(optimizer: str) -> None:
    config, found = SearchConfig.model_validate({"optimizer": optimizer}), []
    for captured in (False, True):
        module = nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
        weights = weight_optimizer(module, config, captured=captured)
        for n in range(5):
            set_rate(weights, 0.1 / (n + 1))
            weights.zero_grad()
            module(torch.linspace(0, n, 6).view(2, 3)).square().sum().backward()
            weights.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.2, 0.99])
def test_the_average_is_that_of_torch_to_the_bit(decay: float) -> None:
    def follow(averages: list[Tensor], values: list[Tensor], steps: Tensor) -> None:
        get_ema_multi_avg_fn(min(decay, (1 + int(steps)) / (10 + int(steps))))(averages, values, steps)

    module = nn.Sequential(nn.Linear(40, 7), nn.BatchNorm1d(7))
    ours, theirs = Average(module, decay), AveragedModel(module, multi_avg_fn=follow, use_buffers=True)
    for seed in range(30):
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (*module.parameters(), module[1].running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=random))
        ours.update_parameters(module)
        theirs.update_parameters(module)
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_precision_is_float32_on_the_cpu_unless_it_is_asked_for() -> None:
    device = torch.device("cpu")
    assert [uses_bf16(SearchConfig.model_validate({"precision": p}), device) for p in ("auto", "fp32", "bf16")] == [
        False, False, True
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("before", "is_same"), [("fp32", True), ("tf32", True), ("bf16", False)])
def test_a_run_from_before_precision_was_chosen_goes_on(tmp_path: Path, before: str, is_same: bool) -> None:
    compiled = api.compile(
        write_spec(tmp_path), overrides=["search.pretrain_epochs=1", "search.epochs=0"], root=tmp_path
    )
    assert compiled.run is not None
    found = api.search(compiled.run, quiet=True)
    for file in (compiled.run.config, compiled.run.search.config):
        config = json.loads(file.read_text())
        config["search"]["precision"] = before
        file.write_text(json.dumps(config))
    if is_same:
        assert api.search(compiled.run, resume=True, quiet=True) == found
    else:
        with pytest.raises(RunError, match=r"changed spec: search\.precision"):
            api.search(compiled.run, resume=True, quiet=True)
    assert math.isfinite(found.accuracy)
