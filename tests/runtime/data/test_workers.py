"""Processes that load images: little shared memory, a death, silence; folders that lead back, pipes and devices."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compiler.errors import RunError
from runtime.data.folders import list_images, refuse_empty
from runtime.data.workers import answers


class Numbers:
    """Arrays of the number that is asked for."""

    def __getitem__(self, request: int) -> tuple[Any, int]:
        return np.full((2, 3), request, np.uint8), request


class Dies:
    def __getitem__(self, request: int) -> tuple[Any, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(1), request


class LosesItsReader:
    """Does what multiprocessing's thread does where whoever was taking a tensor has gone."""

    def __getitem__(self, request: int) -> tuple[Any, int]:
        sys.excepthook(ConnectionResetError, ConnectionResetError("reset by peer"), None)
        return np.zeros(1), request


class Waits:
    def __getitem__(self, request: int) -> tuple[Any, int]:
        while True:  # whatever signals come
            time.sleep(60)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("free", [2.0**17, 1e12])
def test_answers_are_the_same_with_and_without_shared_memory(workers: int, free: float) -> None:
    with patch("runtime.data.workers._free", lambda folder: free):
        found = list(answers(Numbers(), range(20), workers, 2**20, pin=False))
    assert [number for _, number in found] == list(range(20))
    assert all(torch.equal(pixels, torch.full((2, 3), number, dtype=torch.uint8)) for pixels, number in found)
    shared = {pixels.is_shared() for pixels, _ in found}
    assert shared == {bool(workers and free > 1e9)}


def test_a_process_that_dies_is_named() -> None:
    with pytest.raises(RunError, match=r"loads images died, perhaps for its memory(.|\n)*try: a lower data.workers"):
        list(answers(Dies(), range(4), 1, 8, pin=False))


def test_a_process_prints_no_page_where_its_reader_has_gone(capfd: pytest.CaptureFixture[str]) -> None:
    assert len(list(answers(LosesItsReader(), range(4), 1, 8, pin=False))) == 4
    assert "reset by peer" not in capfd.readouterr().err


def test_a_process_that_says_nothing_is_given_up() -> None:
    with (
        patch.multiple("runtime.data.workers", WAIT=1.0, LOOK=0.5),
        pytest.raises(RunError, match="has given nothing for 1 s"),
    ):
        list(answers(Waits(), range(4), 1, 8, pin=False))


def test_too_little_shared_memory_for_workers_is_said() -> None:
    with patch("runtime.data.workers._free", lambda folder: 65536):
        assert len(list(answers(Numbers(), range(4), 0, 6, pin=False))) == 4
        with pytest.raises(RunError, match=r"^/dev/shm has 65,536 bytes left(.|\n)*try: --set data.workers=0"):
            answers(Numbers(), range(4), 2, 6, pin=False)


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name)


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    images(tmp_path / "cat", "a.png", "b.png")
    for name, target in (("lost.png", "nowhere.png"), ("round.png", "round.png"), ("zero.png", "/dev/zero")):
        (tmp_path / "cat" / name).symlink_to(target)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    found = list_images(tmp_path)
    assert [len(paths) for paths in found.images.values()] == [2]
    assert set(str(found.passed).split(", 1 ")) == {
        "2 links to nothing (cat/lost.png, cat/round.png)", "pipe (cat/pipe.png)", "device (cat/zero.png)"
    }  # fmt: skip


@settings(max_examples=60)
@given(
    links=st.lists(
        st.tuples(
            st.sampled_from(["train", "train/cat", "train/dog/deep", "far/inner"]),
            st.sampled_from([".", "train", "train/cat", "train/dog", "train/dog/deep", "test", "test/cat", "far"]),
        ).filter(lambda link: link != ("train", "far")),  # two classes of the same images: below
        max_size=6,
    ),
    is_apart=st.booleans(),
)
def test_no_link_adds_an_image_of_the_set_again(links: list[tuple[str, str]], is_apart: bool) -> None:
    """Wherever links lie and lead, also where the part itself or a class (here: far) is a link to elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        root, away = Path(folder) / "set", Path(folder) / "away"
        images((away if is_apart else root) / "train" / "cat", "a.png", "b.png")
        if is_apart:
            root.mkdir()
            (root / "train").symlink_to(away / "train")
        images(root / "train" / "dog" / "deep", "c.png")
        images(root / "test" / "cat", "t.png")
        images(Path(folder) / "elsewhere" / "inner", "far.png")
        (root / "train" / "far").symlink_to(Path(folder) / "elsewhere")
        places = {"far": root / "train" / "far"}
        for number, (place, target) in enumerate(links):
            at = root / "train" / place if place.startswith("far") else root / place
            (at / f"link{number}").symlink_to(places.get(target, root / target).resolve())
        found = list_images(root / "train")
        names = {name: [Path(path).name for path in paths] for name, paths in found.images.items()}
        assert names == {"cat": ["a.png", "b.png"], "dog": ["c.png"], "far": ["far.png"]}
        assert found.passed.counts.total() == len(links)


def test_two_classes_cannot_share_a_folder_elsewhere(tmp_path: Path) -> None:
    images(tmp_path / "elsewhere", "a.png")
    (tmp_path / "set" / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "set" / "train" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"no image is in dog; passed over: 1 link to what is there already \(dog\)"):
        refuse_empty(list_images(tmp_path / "set" / "train"))
