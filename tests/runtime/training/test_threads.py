"""How many threads a job computes with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler.elaborate.builder import load
from runtime.training import threads
from runtime.training.threads import fitting_threads, threads_for
from tests.tiny import write_spec

SPECS = Path(__file__).parents[3] / "specs"


@pytest.mark.parametrize(
    ("name", "images", "expected"), [("digits", 32, 1), ("digits", 512, 8), ("cifar10_small", 64, 8)]
)
def test_large_steps_get_all_threads(name: str, images: int, expected: int) -> None:
    assert threads_for(load(SPECS / f"{name}.yaml")[1], images, 8) == expected


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000\n", 2), ("max 100000\n", 8), ("", 8)])
def test_a_container_has_the_threads_of_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    assert threads_for(load(SPECS / "cifar10_small.yaml")[1], 64, 8) == expected


def test_the_choice_is_said_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, said, before = load(write_spec(tmp_path))[1], list[str](), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for name, inside in (("OMP_NUM_THREADS", 2), ("SOMETHING_ELSE", 1)):
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            monkeypatch.setenv(name, "2")
            with fitting_threads(graph, 32, said.append):
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert said == ["computing with 1 thread, not 2; OMP_NUM_THREADS sets another number"]
