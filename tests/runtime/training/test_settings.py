"""No setting of a search is ignored: each of them changes the numbers that a few steps train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from compiler.language.config import SearchConfig, Section
from compiler.lowering.groups import exits, recomputed_blocks
from graphspec import api
from runtime.data.dataset import load_dataset
from runtime.jobs.logs import Console
from runtime.search.search_job import SearchJob
from runtime.strategies.base import Context
from runtime.strategies.dso import Dso
from runtime.training.stages import Position
from tests.tasks import class_task
from tests.tiny import TINY, write_spec

pytestmark = pytest.mark.slow

BASE = (
    "data.fake_size=96", "search.batch_size=16", "search.pretrain_epochs=2", "search.epochs=2",
    "search.gates.clip=null", "search.gates.lr=0.5", "search.gates.gamma=0.5",
)  # fmt: skip
STEPS = [(stage, epoch, step) for stage in (0, 1) for epoch in (0, 1) for step in (0, 1)]

SCHEDULES = ("{kind: step, milestones: [0.3]}", "{kind: warm_restarts, first_period: 1}", "{kind: KIND, warmup: 1}")
WEIGHTS = (
    "batch_size=8", "steps_per_epoch=3", "lr=0.05", "schedule={kind: constant}",
    "schedule={kind: cosine, minimum: 0.05}",
    *(f"schedule={schedule.replace('KIND', 'cosine')}" for schedule in SCHEDULES),
    "momentum=0.5", "weight_decay=0.1", "clip=0.001", "label_smoothing=0.1", "accumulate=2", "precision=bf16",
    "weight_part=0.7", "lowering=reference", "optimizer=adamw", "clip_norm=0.01",
)  # fmt: skip
GATES = (
    "weight_steps=2", "gates.lr=0.1", "gates.schedule={kind: cosine}",
    *(f"gates.schedule={schedule.replace('KIND', 'constant')}" for schedule in SCHEDULES),
    "gates.momentum=0.5", "gates.gamma=0.1", "gates.clip=0.01", "gates.nonnegative=false",
    "gates.adaptive=memory_access", "gates.adaptive=latency",
)  # fmt: skip
DATA = ("data.flip=true", "data.crop_padding=2", "data.mean=[0.1]", "data.std=[0.9]", "data.validation=0.3", "seed=1")


def trained(folder: Path, *settings: str) -> tuple[SearchJob, dict[str, Tensor]]:
    """A search of the tiny space on fake images after a few steps of both stages; what it has trained."""
    spec, graph = api.load(write_spec(folder, TINY.replace("digits", "fake")), [*BASE, *settings])
    dataset = load_dataset(spec.config.data, (1, 8, 8), class_task(10), seed=spec.config.seed)
    context = Context(graph, spec.config, dataset, torch.device("cpu"), 1.0, Console(quiet=True), folder)
    job = SearchJob(Dso(context))
    for stage, epoch, step in STEPS:
        job.step(job.stages[stage], Position(stage, epoch, step))
    return job, {name: tensor.clone() for name, tensor in job.tensors().items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return trained(tmp_path_factory.mktemp("plain"))[1]


def differ(one: dict[str, Tensor], two: dict[str, Tensor], part: str) -> bool:
    return any(not torch.equal(tensor, two[name]) for name, tensor in one.items() if part in name)


def test_the_same_settings_train_the_same_numbers(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    again = trained(tmp_path)[1]
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("setting", [*(f"search.{s}" for s in WEIGHTS), *DATA])
def test_a_setting_of_weights_or_data_changes_the_weights(
    tmp_path: Path, plain: dict[str, Tensor], setting: str
) -> None:
    assert differ(plain, trained(tmp_path, setting)[1], ".conv.weight")


@pytest.mark.parametrize("setting", [f"search.{s}" for s in GATES])
def test_a_setting_of_gates_changes_the_gates(tmp_path: Path, plain: dict[str, Tensor], setting: str) -> None:
    assert differ(plain, trained(tmp_path, setting)[1], "gate")


def test_recompute_changes_no_number_but_runs_block_by_block(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    job, found = trained(tmp_path, "search.recompute=true")
    assert all(torch.allclose(tensor, found[name], atol=1e-5) for name, tensor in plain.items())
    chosen = recomputed_blocks(job.context.graph)
    assert {block.id for exit_id, (_, block) in exits(job.context.graph).items() if exit_id in chosen} == {
        name for name, part in job.net.module.named_modules() if name and isinstance(part, fx.GraphModule)
    }


ELSEWHERE = {
    "strategy": "tests/test_run_commands.py", "random_params": "tests/test_run_commands.py",
    "options": "tests/runtime/strategies/test_installed.py",
    "pretrain_epochs": "tests/runtime/search/test_search.py", "epochs": "tests/runtime/search/test_search.py",
    "recalibrate_batches": "tests/runtime/search/test_search.py", "compile": "tests/compiler/lowering/test_fx.py",
    "sync_batch_norm": "tests/runtime/processes/test_world.py", "recompute": "above",
    "gates.exempt_last_input": "tests/runtime/strategies/test_penalties.py",
    "prune.every": "tests/runtime/search/test_search.py", "prune.patience": "tests/runtime/search/test_search.py",
    "checkpoint.minutes": "tests/runtime/training/test_loop.py",
    "checkpoint.keep": "tests/runtime/rundir/test_checkpoint.py",
}  # fmt: skip


def keys(section: type[Section], prefix: str = "") -> set[str]:
    found = set()
    for name, field in section.model_fields.items():
        inner = field.annotation
        is_section = isinstance(inner, type) and issubclass(inner, Section) and name != "schedule"
        found |= keys(inner, f"{prefix}{name}.") if is_section else {prefix + name}
    return found


def test_no_setting_is_forgotten_here() -> None:
    assert keys(SearchConfig) == {s.partition("=")[0] for s in (*WEIGHTS, *GATES)} | ELSEWHERE.keys()
