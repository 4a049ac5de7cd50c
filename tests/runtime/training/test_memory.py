"""Two steps at small batches tell what a job takes, leave no trace, and a batch that cannot fit is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import runtime.training.memory
from benchmarks.common import account
from compiler import ops
from compiler.errors import RunError
from compiler.ir.graph import INPUT, Graph
from compiler.language.config import RetrainConfig, SearchConfig
from compiler.ops import Op
from graphspec import api
from runtime.rundir.directory import JobDir
from runtime.search.search_job import SearchJob
from runtime.search.supernet import Supernet
from runtime.training.allocated import OnCpu
from runtime.training.memory import Line, Trial, measured, noise, require_memory
from runtime.training.step import evaluate, weight_optimizer
from tests.fake_cuda import CUDA, fake_cuda, to_cuda
from tests.graphs import graph_of
from tests.tasks import class_task
from tests.tiny import write_spec

TASK = class_task(3)  # as many as the smallest network here gives
CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
MANY = 10**6  # images


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return api.load(write_spec(tmp_path), ())[1]


def trial_of(graph: Graph, **settings: Any) -> tuple[Trial, Supernet]:
    config = SearchConfig(**settings)
    net = Supernet.start(graph, TASK, config, CPU, seed=0, gate_init=1.0)
    return Trial(TASK, config, net.module, (net.weights,), net.step), net


def everything(net: Supernet) -> dict[str, Tensor]:
    random = {"random": torch.get_rng_state()}
    return random | {name: tensor.clone() for name, tensor in net.tensors().items()}


# -- measuring --------------------------------------------------------------------------------------------------------


def test_on_the_cpu_it_counts_what_torchs_profiler_does(graph: Graph) -> None:
    _, net = trial_of(graph)
    batch = noise(64, SHAPE, TASK, CPU)
    net.step(batch)
    peaks = []
    for count in (OnCpu(net.tensors().values()).peak, lambda run: account(run)[1]):
        net.module.zero_grad()
        peaks.append(count(lambda: net.step(batch)))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.03)


@pytest.mark.parametrize(
    "settings",
    [{}, {"lowering": "reference"}, {"recompute": True}, {"accumulate": 4}, {"precision": "bf16"}],
    ids=lambda settings: ", ".join(settings) or "plain",
)
def test_two_small_steps_tell_what_a_large_one_takes(graph: Graph, settings: dict[str, Any]) -> None:
    trial, net = trial_of(graph, batch_size=256, **settings)
    step, evaluation = measured(trial, CPU, SHAPE, 256)
    meter = OnCpu([*net.module.parameters(), *net.module.buffers()])
    meter.peak(lambda: net.step(noise(8, SHAPE, TASK, CPU)))  # makes the momenta
    assert step.at(256) == pytest.approx(meter.peak(lambda: net.step(noise(256, SHAPE, TASK, CPU))), rel=0.05)
    images = noise(256, SHAPE, TASK, CPU)
    assert evaluation.at(256) == pytest.approx(meter.peak(lambda: evaluate(TASK, net.module, [images])), rel=0.1)


@pytest.mark.parametrize("steps", [0, 2])
def test_everything_is_put_back_to_the_bit(graph: Graph, steps: int) -> None:
    """Weights, statistics, gates, what both optimizers keep, and random numbers; before the first step and later."""
    trial, net = trial_of(graph)
    for _ in range(steps):
        net.step(noise(8, SHAPE, TASK, CPU))
    before = everything(net)
    measured(trial, CPU, SHAPE, 64)
    after = everything(net)
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert net.module.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.weight_params.values())
    _, other = trial_of(graph)
    for _ in range(steps):
        other.step(noise(8, SHAPE, TASK, CPU))
    for each in (net, other):
        each.step(noise(8, SHAPE, TASK, CPU))
    found = net.tensors()
    assert all(torch.equal(tensor, found[name]) for name, tensor in other.tensors().items())


@pytest.mark.slow
def test_a_run_is_the_same_whether_it_was_measured_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop path and dropout draw random numbers in a retraining."""
    short = [
        "search.pretrain_epochs=1", "search.epochs=1", "retrain.epochs=1", "budget.params=null",
        "retrain.drop_path=0.2", "retrain.dropout=0.2",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, asked, measure = [], list[int](), measured

    def noted(trial: Trial, device: torch.device, shape: Any, batch: int) -> tuple[Line, Line]:
        asked.append(batch)
        return measure(trial, device, shape, batch)

    monkeypatch.setattr(runtime.training.memory, "measured", noted)
    for free in (None, 2**40):
        monkeypatch.setattr(runtime.training.memory, "available_memory", lambda device, free=free: free)
        run = api.compile(write_spec(tmp_path), overrides=short, out=tmp_path / str(free)).run
        assert run is not None
        api.search(run, quiet=True)
        api.retrain(run, quiet=True)
        found.append([folder.weights.read_bytes() for folder in (run.search, run.retrain)])
    assert found[0] == found[1]
    assert asked == [32, 64]


class Greedy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.stack([x] * 200).square().mean(0)


def greedy_row(attrs: Any, inputs: Any, output: Any) -> nn.Module:
    return Greedy()


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A custom op that takes much more memory than its output."""
    row = Op("greedy", "takes memory", infer=lambda a, ins: ins[0], torch=f"{__name__}:greedy_row")
    monkeypatch.setitem(ops.known_ops(), "greedy", row)
    yield "greedy"
    for cached in (ops.op, ops.read_attrs, ops.parts):
        cached.cache_clear()


def test_custom_ops_count(greedy: str) -> None:
    def image(op: str) -> float:
        nodes: Any = {
            "conv": ("conv", {"kernel": 3}, [(INPUT, "g/conv<in")]),
            "custom": (op, {}, ["conv"]),
            "pool": ("global_avg_pool", {}, ["custom"]),
            "logits": ("linear", {"channels": 3}, ["pool"]),
        }
        return measured(trial_of(graph_of(nodes))[0], CPU, (4, 6, 6), 64)[0].image

    assert image(greedy) - image("identity") > 200 * 4 * 6 * 6 * 4


def test_on_cuda_torchs_allocator_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that there is not, with an allocator that holds 1000 bytes, and 50 and 100 an image more in a step."""
    module, config = nn.Linear(4, 4), RetrainConfig()
    asked, forked = [0], list[Any]()

    def step(batch: tuple[Tensor, Tensor]) -> None:
        assert {tensor.device for tensor in batch} == {CUDA}
        asked.append(len(batch[1]))

    @contextmanager
    def fork(devices: Any) -> Iterator[None]:
        forked.append(devices)
        yield

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1050 + 100 * asked[-1])
    monkeypatch.setattr(torch.random, "fork_rng", fork)
    monkeypatch.setattr(runtime.training.memory, "evaluate", lambda task, module, batches: step(batches[0]))
    with fake_cuda(monkeypatch) as mode:
        to_cuda(module, mode)
        trial = Trial(TASK, config, module, (weight_optimizer(module, config),), step)
        found = measured(trial, CUDA, SHAPE, 64)
    assert asked == [0, 2, 4, 2, 4]
    assert found == (Line(50, 100), Line(50, 100))
    assert forked == [[CUDA]]


def test_a_line() -> None:
    line = Line.through([2, 4], [140, 180])
    assert line == Line(100, 20)
    assert (line.at(10), line.most(300), line.most(319), line.most(119)) == (300, 10, 10, 0)
    assert Line.through([1], [140]) == Line(140, 0)
    assert Line.through([2, 4], [180, 179]).image == 0


# -- the refusal ------------------------------------------------------------------------------------------------------

STEP, EVALUATION = Line(1000, 100), Line(500, 10)


@pytest.fixture
def require(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`require(free, config, ...)`: the check of a job that takes what `STEP` and `EVALUATION` say."""
    monkeypatch.setattr(runtime.training.memory, "measured", lambda *_: (STEP, EVALUATION))

    def check(free: int | None, config: Any, images: int = MANY, validation: float = 1e-6, processes: int = 1) -> None:
        monkeypatch.setattr(runtime.training.memory, "available_memory", lambda device: free)
        config_of_data = SimpleNamespace(validation=validation)
        dataset = SimpleNamespace(train=SimpleNamespace(targets=range(images)), config=config_of_data)
        place: Any = SimpleNamespace(
            device=CPU,
            world=SimpleNamespace(size=processes),
            folder=JobDir(tmp_path / "job"),
            dataset=dataset,
            opened=SimpleNamespace(spec=SimpleNamespace(input=SHAPE)),
        )
        require_memory(Trial(TASK, config, nn.Identity(), (), lambda batch: None), place)

    return check


def refusal(check: Callable[..., None], *args: Any, **settings: Any) -> str:
    with pytest.raises(RunError) as caught:
        check(*args, **settings)
    return str(caught.value)


def test_the_message_names_what_would_fit(require: Callable[..., None]) -> None:
    require(STEP.at(64), SearchConfig(batch_size=64))
    assert refusal(require, STEP.at(20) + 99, SearchConfig(batch_size=64)) == (
        "search.batch_size 64 does not fit: training takes 0 MiB at its peak, 0 MiB are available (cpu)\n"
        "  try: --set search.batch_size=20, the largest that fits; or --set search.accumulate=4, which takes a "
        "batch in parts; or --set search.recompute=true, which takes less memory and more time"
    )


def test_what_is_on_already_is_not_advised(require: Callable[..., None]) -> None:
    message = refusal(require, STEP.at(20), RetrainConfig(batch_size=64, accumulate=2, recompute=True))
    assert message.endswith(
        "--set retrain.batch_size=20, the largest that fits; or --set retrain.accumulate=7, which takes a batch in "
        "parts"
    )


def test_a_network_that_fits_at_no_batch_size(require: Callable[..., None]) -> None:
    message = refusal(require, 1000, SearchConfig(batch_size=8))
    assert message.endswith("try: a narrower network or smaller images: one image takes 0 MiB")


def test_no_batch_is_larger_than_the_data_set(require: Callable[..., None]) -> None:
    require(STEP.at(50), SearchConfig(batch_size=512), images=50)
    assert "does not fit" in refusal(require, STEP.at(50), SearchConfig(batch_size=512), images=51)


def test_several_processes_need_memory_for_their_slices(require: Callable[..., None]) -> None:
    require(STEP.at(32), SearchConfig(batch_size=64), processes=2)
    assert "batch_size=64," in refusal(require, STEP.at(32), SearchConfig(batch_size=68), processes=2)


def test_validation_counts(require: Callable[..., None]) -> None:
    """It takes 256 images at a time, in parts no more than a step."""
    config = SearchConfig(batch_size=2)
    require(EVALUATION.at(200), config, images=1000, validation=0.2)
    message = refusal(require, EVALUATION.at(255), config, images=1000, validation=0.3)
    assert "batch_size=" not in message
    assert "--set search.accumulate=2" in message
    require(EVALUATION.at(255), SearchConfig(batch_size=2, accumulate=2), images=1000, validation=0.3)


def test_evaluation_takes_no_more_images_than_a_step_where_memory_is_saved() -> None:
    found = [
        SearchConfig(batch_size=batch, **settings).evaluation_batch
        for batch in (64, 300)
        for settings in ({}, {"recompute": True}, {"accumulate": 7})
    ]
    assert found == [256, 64, 10, 300, 300, 43]


@pytest.mark.parametrize(("free", "config"), [(None, SearchConfig()), (1, SearchConfig(compile=True))])
def test_nothing_is_refused_where_nothing_is_known(require: Callable[..., None], free: int | None, config: Any) -> None:
    require(free, config)


def test_a_job_that_goes_on_is_not_asked_again(require: Callable[..., None], tmp_path: Path) -> None:
    assert "does not fit" in refusal(require, 1, SearchConfig())
    checkpoints = JobDir(tmp_path / "job").checkpoints
    checkpoints.mkdir(parents=True)
    (checkpoints / "1.json").touch()
    require(1, SearchConfig())


@pytest.mark.slow
def test_search_and_retrain_ask_before_they_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["search.pretrain_epochs=0", "search.epochs=1", "retrain.epochs=1", "budget.params=null"]
    run = api.compile(write_spec(tmp_path), overrides=short, out=tmp_path / "run").run
    assert run is not None
    for name, job, folder in (("search", api.search, run.search), ("retrain", api.retrain, run.retrain)):
        monkeypatch.setattr(runtime.training.memory, "available_memory", lambda device: 10**5)
        with pytest.raises(RunError, match=rf"{name}.batch_size \d+ does not fit"):
            job(run, quiet=True)
        assert not folder.path.exists()
        monkeypatch.setattr(runtime.training.memory, "available_memory", lambda device: 10**8)
        job(run, quiet=True)


def allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def say_what_cuda_says() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [allocate_too_much, say_what_cuda_says])
def test_memory_that_runs_out_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SearchJob, "step", lambda *_: fail())
    with pytest.raises(RunError, match=r"the search has run out of memory: .*llocate(?s:.*)smaller search.batch_size"):
        api.search(write_spec(tmp_path), quiet=True)
