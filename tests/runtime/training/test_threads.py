"""How many threads a job computes with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from compiler.analysis.costs import total_cost
from compiler.elaborate.builder import load
from graphspec import api
from runtime.rundir.files import read_json
from runtime.rundir.records import Environment
from runtime.training import threads
from runtime.training.threads import faster, fitting_threads, threads_for
from tests.tiny import write_spec

SPECS = Path(__file__).parents[3] / "specs"


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def work(name: str, images: int) -> float:
    graph = load(SPECS / f"{name}.yaml")[1]
    return total_cost(graph).flops * images / len(graph)


@pytest.mark.parametrize(
    ("name", "images", "expected"), [("digits", 32, 1), ("digits", 512, 8), ("dso_nas_cifar10_small", 64, 8)]
)
def test_large_steps_may_get_all_threads(name: str, images: int, expected: int) -> None:
    assert threads_for(work(name, images), 8) == expected


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000\n", 2), ("max 100000\n", 8), ("", 8)])
def test_a_container_has_the_threads_of_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    assert threads_for(work("dso_nas_cifar10_small", 64), 8) == expected


@pytest.mark.parametrize("slow", [1, 2])
def test_the_faster_number_is_taken(two_threads: None, monkeypatch: pytest.MonkeyPatch, slow: int) -> None:
    passed = [0.0]  # seconds of a clock that only convolutions move

    def conv2d(x: Tensor, weights: Tensor, padding: int) -> Tensor:
        passed[0] += 0.02 if torch.get_num_threads() == slow else 0.01
        return torch.nn.functional.conv2d(x, weights, padding=padding)

    monkeypatch.setattr(threads, "conv2d", conv2d)
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: passed[0]))
    state = torch.get_rng_state()
    assert faster(1e6, 2) == 3 - slow
    assert torch.equal(torch.get_rng_state(), state)  # what is random in training does not depend on it


@pytest.mark.parametrize(
    ("images", "measured", "says"),
    [(32, None, "1 thread of 2;"), (10**7, 1, "1 thread of 2, as measured just now;"),
     (10**7, 2, "2 threads of 2, as measured just now;")],
)  # fmt: skip
def test_the_choice_is_said(
    tmp_path: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch, images: int, measured: int | None, says: str
) -> None:
    monkeypatch.setattr(threads, "faster", lambda work, most: measured)
    graph, said = load(write_spec(tmp_path))[1], list[str]()
    assert fitting_threads(graph, images, said.append) == measured or 1
    assert said == [f"computing with {says} OMP_NUM_THREADS sets another number"]
    assert torch.get_num_threads() == 2


def test_a_job_records_the_choice_and_goes_on_with_it(
    in_process: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threads, "WORK", 0)
    monkeypatch.setattr(threads, "faster", lambda work, most: 1)
    small = {"search.pretrain_epochs": 0, "search.epochs": 1, "data.name": "fake", "data.fake_size": 90}
    run = api.compile(write_spec(in_process), overrides=small).run
    assert run is not None

    def recorded(**options: object) -> int | None:
        before = torch.get_num_threads()
        api.search(run, **options)  # type: ignore[arg-type]
        assert torch.get_num_threads() == before
        return read_json(run.search.environment, Environment).get("threads")

    assert recorded(fit_threads=True) == 1
    assert "computing with 1 thread of 2, as measured" in capsys.readouterr().err
    monkeypatch.setattr("runtime.jobs.runner.fitting_threads", lambda *_: 1 / 0)
    run.search.result.unlink()
    assert recorded(fit_threads=True, resume=True) == 1
    torch.set_num_threads(1)  # two may take a minute beside busy programs
    assert recorded(overwrite=True) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert recorded(fit_threads=True, overwrite=True) == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    with pytest.raises(ZeroDivisionError):
        recorded(fit_threads=True, overwrite=True)
