"""Searches that are killed, stopped or began with an earlier version go on, and end as if nothing had been."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from compiler.errors import RunError
from compiler.ir.text import from_json
from graphspec import api
from runtime.jobs.run_search import SearchResult
from tests import warm
from tests.runtime.search.test_search import FINAL, ONE_BLOCK, SHORT, final_files, search, searched
from tests.tiny import TINY, command, environment, graphspec, write_spec

__all__ = ["searched"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

OFTEN = ("--set", "search.checkpoint.minutes=0.01")


Moment = Callable[["subprocess.Popen[str]", Path], None]


def while_writing(process: subprocess.Popen[str], checkpoints: Path) -> None:
    """Until a checkpoint is being written."""
    while process.poll() is None and not list(checkpoints.glob(".*.tmp")):
        time.sleep(0.0005)


def at_a_prune(process: subprocess.Popen[str], checkpoints: Path) -> None:
    """Until edges have been pruned and the checkpoint after it is still to come."""
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("pruned") and line:
        pass


def a_random_moment_later(process: subprocess.Popen[str], checkpoints: Path) -> None:
    """Until a random moment after the next checkpoint."""
    before = set(checkpoints.glob("*.json"))
    while process.poll() is None and not set(checkpoints.glob("*.json")) - before:
        time.sleep(0.005)
    time.sleep(random.Random(20).random() * 0.3)


def test_a_search_killed_at_bad_moments_ends_bit_identical(searched: Path, tmp_path: Path) -> None:
    with chdir(tmp_path):
        api.compile(write_spec(tmp_path))
    checkpoints = tmp_path / "runs" / "latest" / "search" / "checkpoints"
    moments: tuple[Moment, ...] = (while_writing, at_a_prune, a_random_moment_later)
    kills = 0
    for moment in moments:
        process = warm.Popen(["search", "--resume", *OFTEN], tmp_path, environment(), stderr=subprocess.PIPE)
        moment(process, checkpoints)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    graphspec(tmp_path, "search", "--resume", *OFTEN)
    assert final_files(tmp_path) == final_files(searched)


def killed_at_a_prune(folder: Path) -> None:
    """Kill the search of the run in `folder` after it has pruned, then go on with it."""
    process = warm.Popen(["search", *OFTEN], folder, environment(), stderr=subprocess.PIPE)
    at_a_prune(process, folder / "runs" / "latest" / "search" / "checkpoints")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    graphspec(folder, "search", "--resume", *OFTEN)


def test_pruning_within_an_epoch_survives_a_kill(tmp_path: Path) -> None:
    """Of an epoch's 20 steps every 6th is followed by a look: none of the looks is at the end of the first epoch."""
    settings = ("search.prune.every=0.3", "search.pretrain_epochs=1", "search.epochs=2", "search.gates.gamma=0.3")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    metrics = search(alone, *settings) / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert records[1]["flops"] < records[0]["flops"], "pruned within the epoch"
    with chdir(killed):
        api.compile(write_spec(killed), overrides=settings)
    killed_at_a_prune(killed)
    assert final_files(killed) == final_files(alone)


def test_a_search_goes_on_between_two_looks_within_an_epoch(tmp_path: Path) -> None:
    """Of an epoch's 20 steps every 6th is followed by a look, the second one that finds a gate zero closes its edge."""
    settings = ("search.prune.every=0.3", "search.prune.patience=2", "search.gates.gamma=0.3")
    every_step = ("search.checkpoint.minutes=1e-9", "search.checkpoint.keep=1000")
    part = search(tmp_path, "search.pretrain_epochs=1", "search.epochs=2", *settings, *every_step)
    finished = final_files(tmp_path)
    states = {path: json.loads(path.read_bytes())["state"] for path in sorted((part / "checkpoints").glob("*.json"))}
    edges = {path: len(from_json(state["job"]["graph"]).edges()) for path, state in states.items()}
    chosen = next(
        path
        for path, state in states.items()
        if state["position"]["step"] and edges[path] < max(edges.values()) and any(state["job"]["zero_looks"].values())
    )
    assert edges[chosen] > min(edges.values()), "there is more to prune"
    for path in states:
        if path.name > chosen.name:
            path.unlink()
            path.with_suffix(".safetensors").unlink()
    for name in ("arch.yaml", "graph.json", "graph.txt", "weights.safetensors", "result.json"):
        (part / name).unlink()
    with chdir(tmp_path):
        api.search("runs/latest", overrides=every_step, resume=True, quiet=True)
    assert final_files(tmp_path) == finished


def test_a_resumed_search_uses_as_many_threads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fake = ("data.name=fake", "data.fake_size=48")
    settings = (*SHORT, *fake, "search.checkpoint.minutes=1e-9", "search.checkpoint.keep=1000")
    torch.set_num_threads(2)
    part = search(tmp_path, *settings, text=ONE_BLOCK)
    finished = final_files(tmp_path)
    torch.set_num_threads(1)
    for said in (None, "1"):
        checkpoints = sorted((part / "checkpoints").iterdir())
        half = checkpoints[len(checkpoints) // 4 * 2 :]
        for path in (*half, *(part / name for name in FINAL if name != "metrics.jsonl")):
            path.unlink(missing_ok=True)
        if said:
            monkeypatch.setenv("OMP_NUM_THREADS", said)
        with chdir(tmp_path):
            api.search("runs/latest", overrides=settings, resume=True)
        assert torch.get_num_threads() == 1
        record = json.loads((part / "environment.json").read_text())
        assert record["threads"] == (1 if said else 2)
        assert ("goes on with OMP_NUM_THREADS=1, not 2" in capsys.readouterr().err) == bool(said)
        assert said or final_files(tmp_path) == finished


def test_a_search_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    """It called the strategy apg_nag, memory access mac, and knew no options."""
    many = "search.checkpoint.keep=1000"
    text = TINY.replace("search:\n", "search:\n  strategy: apg_nag\n").replace("lr: 0.1}", "lr: 0.1, adaptive: mac}")
    part = search(tmp_path, many, text=text)
    finished = final_files(tmp_path)
    for file in (part / "config.json", part.parent / "config.json"):
        config = json.loads(file.read_text())
        assert (config["search"]["strategy"], config["search"]["gates"]["adaptive"]) == ("dso", "memory_access")
        config["search"]["strategy"], config["search"]["gates"]["adaptive"] = "apg_nag", "mac"
        del config["search"]["options"]
        file.write_text(json.dumps(config))
    for path in sorted((part / "checkpoints").iterdir())[-6:]:  # of the last three epochs
        path.unlink()
    for name in ("arch.yaml", "graph.json", "graph.txt", "weights.safetensors", "result.json"):
        (part / name).unlink()
    with chdir(tmp_path):
        api.search("runs/latest", overrides=[many], resume=True, quiet=True)
    assert final_files(tmp_path) == finished


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))


def test_after_a_signal_and_a_full_disk_the_checkpoint_is_there(tmp_path: Path) -> None:
    with chdir(tmp_path):
        api.compile(write_spec(tmp_path))
    checkpoints = tmp_path / "runs" / "latest" / "search" / "checkpoints"
    settings = ("--set", "search.epochs=500")
    process = warm.Popen(["search", *settings], tmp_path, environment(), stderr=subprocess.PIPE)
    while process.poll() is None and not list(checkpoints.glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "graphspec search runs/tiny-001-s0 --resume\n" in errors
    assert "Traceback" not in errors
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    assert before
    full = subprocess.run(
        command("search", "--resume", "--quiet"), cwd=tmp_path, env=environment(), preexec_fn=limit_files,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert full.returncode == 1, full.stderr
    assert "cannot write" in full.stderr
    assert "`ulimit -f` allows" in full.stderr
    assert "Traceback" not in full.stderr
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before


def test_resume_takes_settings_that_change_no_result(tmp_path: Path) -> None:
    folder = search(tmp_path, *SHORT)
    harmless = ["data.workers=5", "data.download=true", "search.checkpoint.keep=7", "search.checkpoint.minutes=3"]
    with chdir(tmp_path):
        again = api.search(overrides=[*SHORT, *harmless], resume=True, quiet=True)
        assert again == SearchResult.of(json.loads((folder / "result.json").read_text()))
        with pytest.raises(RunError, match=r"changed spec: search\.clip"):
            api.search(overrides=[*SHORT, *harmless, "search.clip=3"], resume=True, quiet=True)
