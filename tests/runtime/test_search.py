"""`graphspec search` as a user runs it, on a network of a few thousand weights."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import yaml

from compiler.text import from_json
from tests.tiny import TINY, command, environment, graphspec, write_spec

FINAL = ("arch.yaml", "graph.json", "graph.txt", "weights.safetensors", "metrics.jsonl", "result.json")


def final_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "runs" / "latest" / "search" / name).read_bytes() for name in FINAL}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished search of the tiny spec; tests must not change it."""
    folder = tmp_path_factory.mktemp("searched")
    graphspec(folder, "compile", str(write_spec(folder)))
    graphspec(folder, "search")
    return folder


def test_search_prunes_and_writes_what_it_found(searched: Path) -> None:
    run = searched / "runs" / "latest"
    result = json.loads((run / "search" / "result.json").read_text())
    full = from_json((run / "graph.json").read_text())
    found = from_json((run / "search" / "graph.json").read_text())
    assert result["gates"] == len(full.gates())
    assert 0 < result["kept_gates"] == len(found.gates()) < len(full.gates())
    assert result["accuracy"] > 0.5  # ten classes, a few epochs
    weights = safetensors.torch.load((run / "search" / "weights.safetensors").read_bytes())
    gates = {
        g: float(v)
        for s, names in found.gate_scopes().items()
        for g, v in zip(names, weights[f"{s}.gates"], strict=True)
    }
    assert all(value > 0 for value in gates.values())
    document = yaml.safe_load((run / "search" / "arch.yaml").read_text())
    assert document["costs"]["found"]["params"] == result["found"]["params"]
    records = [json.loads(line) for line in (run / "search" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in records] == [("pretrain", 1), ("pretrain", 2)] + [
        ("search", n) for n in range(1, 5)
    ]
    assert all(len(r["gate_values"]) == len(full.gates()) for r in records)
    assert records[-1]["edges"] == found.edge_count()
    assert list((run / "search" / "tensorboard").iterdir())


def test_the_same_seed_gives_the_same_files(searched: Path, tmp_path: Path) -> None:
    graphspec(tmp_path, "compile", str(write_spec(tmp_path)))
    graphspec(tmp_path, "search")
    assert final_files(tmp_path) == final_files(searched)


def test_another_seed_gives_other_weights(searched: Path, tmp_path: Path) -> None:
    graphspec(tmp_path, "search", str(write_spec(tmp_path)), "--seed", "1", "--set", "search.epochs=1")
    assert final_files(tmp_path)["weights.safetensors"] != final_files(searched)["weights.safetensors"]


def test_a_search_killed_at_random_moments_ends_bit_identical(searched: Path, tmp_path: Path) -> None:
    graphspec(tmp_path, "compile", str(write_spec(tmp_path)))
    rng = random.Random(20)
    checkpoints = tmp_path / "runs" / "latest" / "search" / "checkpoints"
    kills = 0
    for wanted in (1, 3, 4, 5):  # let it come to this checkpoint, then kill it a random moment later
        process = subprocess.Popen(
            command("search", "--resume", "--set", "search.checkpoint.minutes=0.002"),
            cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and not any(int(p.stem) >= wanted for p in checkpoints.glob("*.json")):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    graphspec(tmp_path, "search", "--resume", "--set", "search.checkpoint.minutes=0.002")
    assert final_files(tmp_path) == final_files(searched)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, signum: int, code: int) -> None:
    graphspec(tmp_path, "compile", str(write_spec(tmp_path)), "--set", "search.epochs=500")
    checkpoints = tmp_path / "runs" / "latest" / "search" / "checkpoints"
    process = subprocess.Popen(command("search"), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(checkpoints.glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert list(checkpoints.glob("*.json"))


def test_resuming_a_finished_search_says_so(searched: Path) -> None:
    before = final_files(searched)
    assert "complete already" in graphspec(searched, "search", "--resume").stderr
    assert final_files(searched) == before


def test_resuming_with_a_changed_spec_names_the_keys(searched: Path) -> None:
    done = graphspec(searched, "search", "--resume", "--set", "search.gates.gamma=0.5", code=1)
    assert "search.gates.gamma" in done.stderr


def test_a_finished_search_is_not_overwritten_by_accident(searched: Path) -> None:
    assert "--overwrite" in graphspec(searched, "search", code=1).stderr


def test_overrides_that_change_the_graph_are_refused(searched: Path) -> None:
    assert "another graph" in graphspec(searched, "search", "--set", "symbols.width=12", code=1).stderr


def test_search_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    assert "graphspec compile" in graphspec(tmp_path, "search", code=1).stderr


def test_an_infinite_loss_stops_the_search(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    done = graphspec(tmp_path, "search", str(spec), "--set", "search.lr=1e30", code=1)
    assert "became" in done.stderr
    assert "step" in done.stderr
    assert "search.lr" in done.stderr


def test_a_network_without_gates_is_an_error(tmp_path: Path) -> None:
    text = TINY.replace("{count: 2, ops", "{count: 2, gated: false, gate_input: false, ops").replace(
        ", gated: true", ""
    )
    assert "no gates" in graphspec(tmp_path, "search", str(write_spec(tmp_path, text)), code=1).stderr


def test_nothing_pruned_is_a_warning(tmp_path: Path) -> None:
    done = graphspec(
        tmp_path, "search", str(write_spec(tmp_path)), "--set", "search.gates.gamma=0", "--set", "search.epochs=1"
    )
    assert "nothing was pruned" in done.stderr


def test_too_high_a_penalty_keeps_a_path_and_says_so(tmp_path: Path) -> None:
    settings = ["search.gates.gamma=50", "search.gates.exempt_last_input=false", "search.epochs=2"]
    done = graphspec(tmp_path, "search", str(write_spec(tmp_path)), *(a for s in settings for a in ("--set", s)))
    assert "kept" in done.stderr
    graph = from_json((tmp_path / "runs" / "latest" / "search" / "graph.json").read_text())
    assert "reduce.out" in graph
    assert "identity now" in done.stderr


def test_smoke_leaves_nothing_behind(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    graphspec(tmp_path, "search", str(spec), "--smoke")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize("settings", [
    ["search.lowering=reference"], ["search.precision=bf16"], ["search.accumulate=3"], ["search.recompute=true"],
    ["search.weight_steps=4"], ["search.gates.adaptive=flops"], ["search.gates.adaptive=mac"],
    ["search.gates.adaptive=latency"], ["search.gates.nonnegative=false"], ["gates.share=block"],
], ids=lambda s: s[0])  # fmt: skip
def test_every_setting_runs(tmp_path: Path, settings: list[str]) -> None:
    from graphspec import api

    spec = write_spec(tmp_path)
    overrides = [*settings, "search.pretrain_epochs=1", "search.epochs=2"]
    compiled = api.compile(spec, out=tmp_path / "run", overrides=overrides, root=tmp_path)
    result = api.search(compiled.run, overrides=overrides, quiet=True)
    assert result.accuracy > 0.15
