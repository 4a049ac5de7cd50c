"""Checkpoints: what comes back is what went in, whatever is killed, damaged or full."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from torch import Tensor

from compiler.errors import RunError
from runtime.rundir.checkpoint import CheckpointStore
from tests.full_disk import fill_disk

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)

# One process that imports torch once and forks writers, so that many kills are cheap. `at` kills a writer inside its
# n-th call that changes the folder; `after` kills it from outside at random moments of a loop that never ends.
KILLS = """
import itertools, os, random, signal, sys, tempfile, time
from pathlib import Path
import torch
import runtime.rundir.checkpoint, runtime.rundir.files
from runtime.rundir.checkpoint import CheckpointStore

torch.set_num_threads(1)

def fail(line):
    raise AssertionError(line)

def save(store, number):
    store.save(number, {"w": torch.full((100_000,), float(number))}, {"number": number})

def check(store, low):
    found = store.load_latest()
    assert found is not None and found.number >= low, found
    assert found.state == {"number": found.number} and bool((found.tensors["w"] == found.number).all())
    return found.number

def forked(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    return child

def dying(function, die_at, calls=itertools.count()):
    def call(*args, **keywords):
        if next(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **keywords)
    return call

def at(folder):
    found = []
    for die_at in itertools.count():
        store = CheckpointStore(Path(folder) / str(die_at), 2, fail)
        save(store, 1)
        save(store, 2)
        def work():
            os.open, os.fsync, os.replace = (dying(f, die_at) for f in (os.open, os.fsync, os.replace))
            os.unlink = dying(os.unlink, die_at)
            save(store, 3)
        status = os.waitpid(forked(work), 0)[1]
        found.append(check(store, 2))
        save(store, 4)
        assert len(list(store.folder.iterdir())) == 4, list(store.folder.iterdir())
        if status == 0:
            return found
        assert status == signal.SIGKILL

def after(folder):
    store, pick, last = CheckpointStore(Path(folder), 2, fail), random.Random(0), 0
    save(store, last)
    for _ in range(15):
        def work():
            for number in itertools.count(last + 1):
                save(store, number)
        child = forked(work)
        time.sleep(pick.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        last = check(store, last)
    return last

print(globals()[sys.argv[1]](sys.argv[2]))
"""


class Store(CheckpointStore):
    """A store that remembers its warnings."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.warnings: list[str]
        object.__setattr__(self, "warnings", [])
        super().__init__(folder, keep, self.warnings.append)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def small(number: int) -> dict[str, Tensor]:
    return {"w": torch.full((3,), float(number))}


def flip_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_tensors_and_state_come_back_exactly(tmp_path: Path) -> None:
    seeded = torch.Generator().manual_seed(0)
    tensors = {f"t.{t}": torch.randint(0, 2, (2, 3), generator=seeded).to(t) for t in TYPES}
    tensors |= {"scalar": torch.tensor(0.1), "empty": torch.zeros(0, 4), "view": torch.arange(6.0).view(2, 3).t()}
    tensors |= {"shared": tensors["view"], "extremes": torch.tensor([-0.0, 3.4e38, 1e-45])}
    tensors["rng"] = seeded.get_state()
    tensors["last"] = torch.randn(2, 3, 4, 4, generator=seeded).to(memory_format=torch.channels_last).requires_grad_()
    state = {"z": 0.1, "a": {"names": ["λ", None, True], "big": 2**80}, "tiny": 5e-324}
    Store(tmp_path).save(3, tensors, state)
    found = Store(tmp_path).load_latest()
    assert found is not None
    assert (found.number, found.state, list(found.state)) == (3, state, ["z", "a", "tiny"])
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(found.tensors[name], tensor.detach(), rtol=0, atol=0)


SHAPES = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(st.none() | st.booleans() | NUMBERS | st.text(), st.lists, max_leaves=8)


@settings(max_examples=20)
@given(
    shapes=st.dictionaries(st.text(max_size=8), SHAPES, max_size=4),
    state=st.dictionaries(st.text(), VALUES, max_size=5),
)
def test_any_state_comes_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, ...]], state: dict[str, object]
) -> None:
    tensors = {name: torch.rand(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes.items()}
    store = Store(tmp_path_factory.mktemp("store"))
    store.save(0, tensors, state)
    found = store.load_latest()
    assert found is not None
    assert found.state == state
    assert list(found.state) == list(state)
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)


def test_a_saved_tensor_is_no_longer_tied_to_the_one_that_was_saved(tmp_path: Path) -> None:
    tensors = small(1)
    store = Store(tmp_path)
    store.save(1, tensors, {})
    tensors["w"].zero_()
    found = store.load_latest()
    assert found is not None
    found.tensors["w"].add_(1)  # what is read can be worked with
    assert found.tensors["w"].tolist() == [2.0] * 3


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    parameters = {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.int64), "c": torch.ones(1)}
    Store(tmp_path / "one").save(5, parameters, {"x": 1, "y": 0.1})
    Store(tmp_path / "two").save(5, dict(reversed(parameters.items())), {"x": 1, "y": 0.1})
    for name in ("00000005.json", "00000005.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    Store(tmp_path / "two").save(6, parameters, {})
    assert (tmp_path / "one/00000005.json").read_bytes() == (tmp_path / "two/00000005.json").read_bytes()


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=3)
    assert (store.load_latest(), store.latest_path) == (None, None)
    for number in (1, 2, 5, 9, 10):
        store.save(number, small(number), {})
    assert names(tmp_path) == [f"{n:08d}.{s}" for n in (5, 9, 10) for s in ("json", "safetensors")]
    assert store.latest_path == tmp_path / "00000010.json"


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.json", "12.json", "x.safetensors"):
        (tmp_path / name).write_text("mine")
    store = Store(tmp_path)
    for number in range(4):
        store.save(number, small(number), {})
    assert {"notes.json", "12.json", "x.safetensors"} <= set(names(tmp_path))
    assert store.warnings == []


@pytest.mark.parametrize("part", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["first bit", "last bit", "middle bit", "cut", "empty", "gone"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, part: str, damage: str) -> None:
    store = Store(tmp_path)
    store.save(1, small(1), {"epoch": 1})
    store.save(2, small(2), {"epoch": 2})
    path = tmp_path / f"00000002.{part}"
    size = path.stat().st_size
    if damage.endswith("bit"):
        flip_bit(path, {"first": 0, "last": size - 1, "middle": size // 2}[damage.split()[0]])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: {"cut": size - 5, "empty": 0}[damage]])
    found = store.load_latest()
    assert found is not None
    assert (found.number, found.state, found.tensors["w"].tolist()) == (1, {"epoch": 1}, [1.0] * 3)
    expected = 0 if (part, damage) == ("json", "gone") else 1  # without its JSON there is no such checkpoint
    assert len([w for w in store.warnings if "00000002.json is damaged" in w]) == len(store.warnings) == expected


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_damage_whatever_the_hash_says(tmp_path: Path, number: float) -> None:
    """A job writes none."""
    store = Store(tmp_path)
    store.save(1, small(1), {})
    store.save(2, {**small(2), "w": torch.tensor([0.0, number])}, {})
    found = store.load_latest()
    assert found is not None
    assert found.number == 1
    assert "w holds numbers that are not finite" in store.warnings[0]


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), part=st.sampled_from(["json", "safetensors"]))
def test_no_flipped_bit_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, part: str
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    store.save(1, small(1), {"epoch": 1, "loss": 0.25, "stage": "search"})
    path = store.folder / f"00000001.{part}"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"every checkpoint is damaged|a newer graphspec wrote it"):
        store.load_latest()


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(1, small(1), {})
    store.save(2, small(2), {})
    flip_bit(tmp_path / "00000001.safetensors", -1)
    flip_bit(tmp_path / "00000002.safetensors", -1)
    with pytest.raises(RunError, match="every checkpoint is damaged\n  try: start anew, with --overwrite"):
        store.load_latest()


def test_after_a_fallback_the_damaged_one_does_not_displace_a_whole_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(1, small(1), {})
    store.save(4, small(4), {})
    flip_bit(tmp_path / "00000004.safetensors", -1)
    store.save(2, small(2), {})
    assert [name for name in names(tmp_path) if name.endswith("json")] == ["00000001.json", "00000002.json"]
    found = store.load_latest()
    assert found is not None
    assert found.number == 2


def test_a_newer_format_is_an_error_and_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("runtime.rundir.checkpoint.FORMAT", 2)
        Store(tmp_path).save(1, small(1), {})
    with pytest.raises(RunError, match="a newer graphspec wrote it\n  try: update graphspec"):
        Store(tmp_path).load_latest()


def test_a_pickle_in_the_place_of_the_tensors_is_never_loaded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(1, small(1), {})
    torch.save(small(1), tmp_path / "00000001.safetensors")
    with pytest.raises(RunError, match="every checkpoint is damaged"):
        store.load_latest()


@pytest.mark.parametrize("part", ["json", "safetensors"])
def test_a_full_disk_leaves_the_former_checkpoints(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.save(1, small(1), {})
    store.save(2, small(2), {})
    with monkeypatch.context() as context:
        fill_disk(context, after=["safetensors", "json"].index(part))
        with pytest.raises(RunError, match=f"00000003.{part}: cannot write: No space left on device\n  try: free"):
            store.save(3, small(3), {})
    found = store.load_latest()
    assert found is not None
    assert (found.number, store.warnings) == (2, [])
    store.save(3, small(3), {})  # once there is space again
    assert len(names(tmp_path)) == 4


def test_state_that_json_cannot_hold_exactly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path).save(1, small(1), {"loss": float("nan")})
    assert names(tmp_path) == []


def killed(scenario: str, folder: Path) -> object:
    command = [sys.executable, "-c", KILLS, scenario, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_kill_inside_any_call_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Two files of five calls each, of which the ninth commits; then a look at the folder and the removal of two
    files; then nothing dies."""
    assert killed("at", tmp_path) == [2] * 9 + [3] * 8


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """15 random moments of a process that writes without pause."""
    assert isinstance(last := killed("after", tmp_path), int)
    assert last > 0
