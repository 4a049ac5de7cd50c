"""`graphspec retrain`: the recipe, what it starts from, what it leaves, and going on after an interruption."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.errors import GraphspecError, RunError
from compiler.ir.graph import Model
from compiler.ir.text import from_json
from compiler.language.config import BudgetConfig
from compiler.lowering.torch.batch_parts import DropPath
from compiler.lowering.torch.fx import lower, lower_model, outputs_by_name, weights_of
from compiler.passes.pipeline import compacted
from graphspec import api
from runtime.data.dataset import load_dataset
from runtime.jobs.run_retrain import Found, found_network
from runtime.rundir.directory import RunDir
from runtime.rundir.network import read_model
from runtime.training.retrain_job import RetrainJob
from runtime.training.stages import Position
from runtime.training.step import recalibrate
from tests import warm
from tests.tasks import class_task
from tests.tiny import TINY, environment, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SMALL = TINY.replace("{name: digits}", "{name: fake, fake_size: 96}") + "seed: 0\n"
MEAN = "stem.out.norm.running_mean"
SHORT = ["search.pretrain_epochs=1", "search.epochs=3", "search.batch_size=8", "retrain.batch_size=16"]
PARTS = ["retrain.drop_path=0.5", "retrain.dropout=0.4", "retrain.auxiliary_weight=0.4"]
RECIPE = [
    *PARTS,
    "retrain.cutout=3",
    "retrain.label_smoothing=0.1",
    "retrain.epochs=3",
    "retrain.schedule={kind: warm_restarts, first_period: 1, minimum: 0.0001}",
]
FINAL = ("graph.json", "graph.txt", "weights.safetensors", "metrics.jsonl", "result.json")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with a finished search; retraining it needs a folder of its own (`copy_of`)."""
    folder = tmp_path_factory.mktemp("searched")
    compiled = api.compile(write_spec(folder, SMALL), overrides=SHORT, root=folder / "runs")
    assert compiled.run is not None
    found = api.search(compiled.run, quiet=True)
    assert 0 < found.kept_gates < found.gates
    return compiled.run


def copy_of(run: RunDir, folder: Path) -> RunDir:
    target = folder / "run"
    for file in (f for f in run.path.rglob("*") if f.is_file() and "checkpoints" not in f.parts):
        copy = target / file.relative_to(run.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return RunDir.open(target)


def job_of(run: RunDir, overrides: Sequence[str] = ()) -> tuple[RetrainJob, Found]:
    opened = api.open_run(run, overrides)
    config, found = opened.spec.config, found_network(opened)
    graph, weights = found.model.graph, found.model.weights or None
    dataset = load_dataset(config.data, opened.spec.input, class_task(opened.spec.classes), seed=config.seed)
    return RetrainJob(graph, config, dataset, torch.device("cpu"), weights), found


def images(count: int = 6) -> Tensor:
    return torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(4))


def final_files(run: RunDir) -> dict[str, bytes]:
    return {name: (run.retrain.path / name).read_bytes() for name in FINAL}


# -- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [[], RECIPE, ["retrain.precision=bf16", *PARTS]], ids=["plain", "recipe", "bf16"])
def test_what_is_left_is_the_compact_network_and_its_figures(
    searched: RunDir, tmp_path: Path, settings: list[str]
) -> None:
    run = copy_of(searched, tmp_path)
    result = api.retrain(run, overrides=settings, quiet=True)
    found = json.loads(run.search.result.read_text())
    assert (result.supernet_accuracy, result.pruned_accuracy) == (found["full_accuracy"], found["accuracy"])
    assert result.test_images == 48
    assert 0 <= result.accuracy <= 1
    assert math.isfinite(result.loss)
    assert json.loads(run.retrain.result.read_text())["found"]["params"] == result.found.params < result.full.params
    graph = from_json(run.retrain.graph_json.read_text())
    assert not graph.gates()
    assert not {node.op for node in graph.nodes()} & {"drop_path", "dropout"}
    assert not [node.id for node in graph.nodes() if "auxiliary" in node.id]
    weights = safetensors.torch.load(run.retrain.weights.read_bytes())
    assert set(weights) == set(lower(graph).state_dict())
    assert sum(t.numel() for n, t in weights.items() if not n.endswith(("mean", "var"))) == result.found.params
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("momentum", [0.01, 0.3])
def test_statistics_that_a_network_brings_are_forgotten(tmp_path: Path, momentum: float) -> None:
    """Even in a training that is short for its batch norms."""
    text = SMALL.replace("stride: 2, from: in}\n  normal", f"stride: 2, momentum: {momentum}, from: in}}\n  normal")
    settings = ["retrain.epochs=15", "retrain.batch_size=16", "retrain.lr=1e-6"]
    spec, space = api.load(write_spec(tmp_path, text), settings)
    config, graph = spec.config, compacted(Model(space, dict.fromkeys(space.gates(), 1.0)), BudgetConfig())[0].graph
    brought = weights_of(lower(graph)) | {MEAN: np.full(8, 5.0, np.float32)}
    dataset = load_dataset(config.data, (1, 8, 8), class_task(10), seed=0)
    job = RetrainJob(graph, config, dataset, torch.device("cpu"), brought)
    (stage,) = job.stages
    for epoch, step in product(range(stage.epochs), range(stage.steps_per_epoch)):
        job.step(stage, Position(0, epoch, step))
    after = job.weights()[MEAN].clone()
    recalibrate(job.module, job.feed.loader.batches(0))
    assert torch.allclose(after, job.weights()[MEAN], atol=0.05)


def test_a_network_that_learned_nothing_is_told_of(
    searched: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The labels of the fake images are random."""
    api.retrain(copy_of(searched, tmp_path), quiet=True)
    assert " on 48 images is within the noise of chance (" in " ".join(capfd.readouterr().err.split())


def test_the_written_network_is_the_one_that_was_measured(searched: RunDir, tmp_path: Path) -> None:
    run = copy_of(searched, tmp_path)
    result = api.retrain(run, overrides=RECIPE, quiet=True)
    opened = api.open_run(run)
    dataset = load_dataset(opened.spec.config.data, opened.spec.input, class_task(opened.spec.classes), seed=0)
    module = lower_model(read_model(run.retrain)).eval()
    batches = list(dataset.evaluation_loader(None, 64).batches(0))
    with torch.no_grad():
        right = sum(int((module(x).argmax(1) == y).sum()) for x, y in batches)
    assert right / result.test_images == result.accuracy


def test_drop_path_grows_with_time_and_the_rate_follows_its_schedule(searched: RunDir) -> None:
    job, _ = job_of(searched, RECIPE)
    parts = [part for part in job.module.modules() if isinstance(part, DropPath)]
    stage = job.stages[0]
    assert parts
    assert stage.epochs == 3
    seen = []
    for at in (Position(0, 0, 0), Position(0, 1, 0), Position(0, 1, 2), Position(0, 2, 1)):
        job.step(stage, at)
        assert len({part.progress for part in parts}) == 1
        seen.append((parts[0].progress, job.optimizer.param_groups[0]["lr"]))
    steps = stage.steps_per_epoch
    assert [share for share, _ in seen] == pytest.approx([0, 1 / 3, (1 + 2 / steps) / 3, (2 + 1 / steps) / 3])
    rates = [0.05, 1e-4 + (0.05 - 1e-4) * (1 + math.cos(0)) / 2]  # the second period starts anew
    rates += [1e-4 + (0.05 - 1e-4) * (1 + math.cos(math.pi * 2 / (2 * steps))) / 2]
    assert [rate for _, rate in seen[:3]] == pytest.approx(rates)


def test_depth_decides_the_largest_probability(searched: RunDir) -> None:
    job, _ = job_of(searched, RECIPE)
    largest = [part.p for part in job.module.modules() if isinstance(part, DropPath)]
    assert max(largest) == 0.5
    assert largest == sorted(largest)
    assert largest[0] < 0.5


def test_the_loss_is_smoothed_and_the_auxiliary_head_is_weighted(
    searched: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["retrain.auxiliary_weight=0.4", "retrain.label_smoothing=0.1"]
    job, _ = job_of(searched, settings)
    x, y = job.feed.batch(0, 0)
    names, parameters = zip(*job.module.named_parameters(), strict=True)
    heads = job.module(x)
    assert list(heads) == ["output", "auxiliary"]
    joined = torch.cat([head.flatten(1) for head in heads.values()], dim=1)  # as one tensor: the same numbers
    main, second = (F.cross_entropy(head, y, label_smoothing=0.1) for head in joined.split(10, dim=1))
    expected = main + 0.4 * second
    gradients = torch.autograd.grad(expected, parameters)
    monkeypatch.setattr(job.optimizer, "step", lambda: None)  # it computes in the place of the gradients
    assert torch.equal(job.step(job.stages[0], Position())["train_loss"], expected.detach())
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        assert torch.equal(parameter.grad, gradient), name
    assert not torch.allclose(main, F.cross_entropy(heads["output"], y), atol=1e-4)


def test_norms_and_biases_do_not_decay(searched: RunDir) -> None:
    job, _ = job_of(searched, PARTS)
    names = {id(p): name for name, p in job.module.named_parameters()}
    decays = {names[id(p)]: g["weight_decay"] for g in job.optimizer.param_groups for p in g["params"]}
    assert set(decays) == set(names.values())
    spared = {name for name, decay in decays.items() if decay == 0}
    assert spared == {name for name in decays if ".norm." in name or name.endswith(".bias")}
    assert {decay for name, decay in decays.items() if name not in spared} == {3e-4}


def test_cutout_hides_a_square_of_training_images_only(searched: RunDir) -> None:
    plain, cut = job_of(searched)[0], job_of(searched, ["retrain.cutout=3"])[0]
    before, after = plain.feed.batch(0, 0)[0], cut.feed.batch(0, 0)[0]
    changed = (before != after).sum(dim=(1, 2, 3))
    assert int(changed.max()) <= 9
    assert int((changed > 0).sum()) > 0
    kept = [x for x, _ in plain.validation.batches(0)], [x for x, _ in cut.validation.batches(0)]
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


# -- what it starts from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [[], PARTS], ids=["plain", "parts"])
def test_inherited_weights_compute_what_the_pruned_supernet_does(searched: RunDir, settings: list[str]) -> None:
    job, found = job_of(searched, ["retrain.from=search", *settings])
    left = read_model(searched.search)
    supernet = lower_model(left)
    assert left.graph.gates()
    assert not found.model.graph.gates()
    with torch.no_grad():
        expected, given = supernet.eval()(images()), job.module.eval()
        logits = outputs_by_name(given(images()))["output"]
    assert float((logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_from_scratch_is_not_what_the_search_left(searched: RunDir) -> None:
    job, _ = job_of(searched)
    start = job.weights()
    left = safetensors.torch.load(searched.search.weights.read_bytes())
    name = next(n for n in start if n.endswith("pointwise.weight"))
    assert start[name].shape == left[name].shape
    assert not torch.equal(start[name], left[name])


def test_inheriting_ends_with_trained_weights(searched: RunDir, tmp_path: Path) -> None:
    run = copy_of(searched, tmp_path)
    result = api.retrain(run, overrides=["retrain.from=search", "retrain.epochs=1", *PARTS], quiet=True)
    assert result.width == 1.0
    left = safetensors.torch.load(run.search.weights.read_bytes())
    now = safetensors.torch.load(run.retrain.weights.read_bytes())
    assert any(not torch.equal(now[n], left[n]) for n in now if n in left and now[n].shape == left[n].shape)


def test_inherited_widths_must_fit_the_budget(searched: RunDir) -> None:
    params = json.loads(searched.search.result.read_text())["found"]["params"]
    job_of(searched, ["retrain.from=search", f"budget.params={params}"])
    with pytest.raises(RunError, match=f"{params:,} params are over the budget of {params - 1:,}"):
        found_network(api.open_run(searched, ["retrain.from=search", f"budget.params={params - 1}"]))
    assert not searched.retrain.is_started


def test_the_width_meets_the_budget(searched: RunDir) -> None:
    full = json.loads(searched.search.result.read_text())["found"]["params"]
    _, found = job_of(searched, [f"budget.params={full * 3}", "budget.round_to=1"])
    params = sum(t.numel() for n, t in lower(found.model.graph).named_parameters())
    assert 0.95 * full * 3 <= params <= full * 3
    assert found.width > 1
    with pytest.raises(GraphspecError, match="the reachable range goes from"):
        found_network(api.open_run(searched, ["budget.params=10"]))


def test_a_run_that_was_not_searched_is_an_error(tmp_path: Path) -> None:
    compiled = api.compile(write_spec(tmp_path, SMALL), root=tmp_path / "runs")
    with pytest.raises(RunError, match=r"nothing was found yet\n.*graphspec search"):
        api.retrain(compiled.run)
    assert compiled.run is not None
    assert not compiled.run.retrain.is_started


def test_a_network_without_gates_needs_no_search(tmp_path: Path) -> None:
    plain = SMALL.replace(", gated: true", "").replace("levels: {count: 2", "levels: {count: 1, gate_input: false")
    compiled = api.compile(write_spec(tmp_path, plain), overrides=["retrain.epochs=1"], root=tmp_path / "runs")
    assert not compiled.graph.gates()
    result = api.retrain(compiled.run, quiet=True)
    assert result.found == result.full
    assert result.supernet_accuracy is None
    with pytest.raises(RunError, match="no weights to inherit"):
        api.retrain(compiled.run, overrides=["retrain.from=search"], overwrite=True)


def test_a_random_network_is_drawn_and_retrained(searched: RunDir, tmp_path: Path) -> None:
    params = json.loads(searched.search.result.read_text())["found"]["params"]
    settings = ["search.strategy=random", f"search.random_params={params}", "retrain.epochs=1"]
    compiled = api.compile(write_spec(tmp_path, SMALL), overrides=settings, root=tmp_path / "runs")
    drawn = api.search(compiled.run, quiet=True)
    assert drawn.found.params <= params
    assert drawn.accuracy is None
    result = api.retrain(compiled.run, quiet=True)
    assert result.found == drawn.found
    assert result.pruned_accuracy is None
    with pytest.raises(RunError, match="no weights to inherit"):
        api.retrain(compiled.run, overrides=["retrain.from=search"], overwrite=True)


# -- interruptions ----------------------------------------------------------------------------------------------------


def test_a_signal_and_a_kill_leave_no_trace_in_the_result(searched: RunDir, tmp_path: Path) -> None:
    settings = [*RECIPE, "retrain.epochs=6", "retrain.precision=bf16", "retrain.checkpoint.minutes=0.0001"]
    whole, cut = copy_of(searched, tmp_path / "whole"), copy_of(searched, tmp_path / "cut")
    api.retrain(whole, overrides=settings, quiet=True)
    line = ["retrain", str(cut.path), "--resume", *(part for s in settings for part in ("--set", s))]
    rng = random.Random(3)
    for wanted, signum in ((1, signal.SIGTERM), (3, signal.SIGKILL)):  # after so many checkpoints
        process = warm.Popen(line, tmp_path, environment(), stderr=subprocess.PIPE)
        while process.poll() is None and newest(cut) < wanted:
            time.sleep(0.005)
        time.sleep(rng.random() / 50)
        process.send_signal(signum)
        _, errors = process.communicate()
        assert process.returncode in (-9, 143), errors
        assert ("--resume" in errors) == (signum == signal.SIGTERM), errors
        assert not cut.retrain.is_finished
    result = api.retrain(cut, overrides=settings, resume=True, quiet=True)
    assert {**result.__dict__, "run": ""} == {
        **api.retrain(whole, overrides=settings, resume=True, quiet=True).__dict__,
        "run": "",
    }
    left, right = final_files(cut), final_files(whole)
    assert all(left[name] == right[name] for name in FINAL if name != "result.json")


def newest(run: RunDir) -> int:
    """Running number of the newest checkpoint."""
    return max((int("".join(filter(str.isdigit, f.stem))) for f in run.retrain.checkpoints.glob("*.json")), default=0)


def test_seeds_decide_the_result(searched: RunDir, tmp_path: Path) -> None:
    made = []
    for seed in (0, 1):
        run = copy_of(searched, tmp_path / str(seed))
        api.retrain(run, overrides=["retrain.epochs=1", f"seed={seed}"], quiet=True)
        made.append(final_files(run)["weights.safetensors"])
    assert made[0] != made[1]


def test_another_network_than_the_checkpoints_is_refused(searched: RunDir) -> None:
    job, _ = job_of(searched)
    wider, _ = job_of(searched, ["budget.params=40k"])
    with pytest.raises(RunError, match=r"another one than the checkpoint's.*\n.*--overwrite"):
        wider.restore(job.tensors(), job.state())


def test_changed_settings_and_finished_work_are_refused(searched: RunDir, tmp_path: Path) -> None:
    run = copy_of(searched, tmp_path)
    first = api.retrain(run, overrides=["retrain.epochs=1"], quiet=True)
    with pytest.raises(RunError, match="--overwrite"):
        api.retrain(run, overrides=["retrain.epochs=1"])
    with pytest.raises(RunError, match=r"retrain\.lr"):
        api.retrain(run, overrides=["retrain.epochs=1", "retrain.lr=0.5"], resume=True)
    assert api.retrain(run, overrides=["retrain.epochs=1"], resume=True, quiet=True) == first


def test_a_part_without_a_place_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    flat = SMALL.replace(
        "network: [stem, {normal: 2}, reduce, {normal: 1}, head]", "network: [stem, {normal: 1}, head]"
    )
    flat = flat.replace("stride: 2, from: in}\n  normal", "from: in}\n  normal").replace(
        '"[1, H, W] -> [width, H/2, W/2]"', '"[1, H, W] -> [width, H, W]"'
    )
    settings = ["search.strategy=random", "search.random_params=1M", "retrain.epochs=1"]
    compiled = api.compile(write_spec(tmp_path, flat), overrides=settings, root=tmp_path / "runs")
    api.search(compiled.run, quiet=True)
    with pytest.raises(GraphspecError, match=r"no place(.|\n)*auxiliary_weight to 0"):
        api.retrain(compiled.run, overrides=["retrain.auxiliary_weight=0.4"], quiet=True)
    assert compiled.run is not None
    assert not compiled.run.retrain.is_started
    api.retrain(compiled.run, quiet=True)
