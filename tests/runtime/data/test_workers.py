"""Processes that load images: little shared memory, a death, silence; folders that lead back, pipes and devices."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from compiler.errors import RunError
from runtime.data.folders import list_images
from runtime.data.workers import answers


class Numbers:
    """Arrays of the number that is asked for."""

    def __getitem__(self, request: int) -> tuple[Any, int]:
        return np.full((2, 3), request, np.uint8), request


class Dies:
    def __getitem__(self, request: int) -> tuple[Any, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(1), request


class Waits:
    def __getitem__(self, request: int) -> tuple[Any, int]:
        signal.pause()
        return np.zeros(1), request


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("free", [0.0, 1e12])
def test_answers_are_the_same_with_and_without_shared_memory(workers: int, free: float) -> None:
    with patch("runtime.data.workers._free", lambda folder: free):
        found = list(answers(Numbers(), range(20), workers, 6, pin=False))
    assert [number for _, number in found] == list(range(20))
    assert all(torch.equal(pixels, torch.full((2, 3), number, dtype=torch.uint8)) for pixels, number in found)
    shared = {pixels.is_shared() for pixels, _ in found}
    assert shared == {bool(workers and free)}


def test_a_process_that_dies_is_named() -> None:
    with pytest.raises(RunError, match=r"loads images died, perhaps for its memory(.|\n)*try: a lower data.workers"):
        list(answers(Dies(), range(4), 1, 8, pin=False))


def test_a_process_that_says_nothing_is_given_up() -> None:
    with (
        patch.multiple("runtime.data.workers", WAIT=1.0, LOOK=0.5),
        pytest.raises(RunError, match="has given nothing for 1 s"),
    ):
        list(answers(Waits(), range(4), 1, 8, pin=False))


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name)


def test_links_that_lead_back_and_what_is_no_file_are_passed_over(tmp_path: Path) -> None:
    images(tmp_path / "cat", "a.png", "b.png")
    images(tmp_path / "dog" / "deep", "c.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "dog" / "deep" / "all").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    found = list_images(tmp_path)
    assert {name: len(paths) for name, paths in found.images.items()} == {"cat": 2, "dog": 1}
    assert found.passed == {"links to folders that are there already": 2, "links to nothing": 1, "pipes and devices": 1}
