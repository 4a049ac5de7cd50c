"""`graphspec search` as a user runs it, on a network of a few thousand weights.

A process of its own is started only where a process is the point; elsewhere the Python API does the same.
"""

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
import safetensors.torch
import torch
import yaml

from compiler.errors import GraphspecError, RunError
from compiler.ir.text import from_json
from graphspec import api
from runtime.jobs.run_search import SearchResult
from runtime.strategies.dso import is_look
from runtime.training.step import Feed
from tests.runtime.data.test_data_sets import make_folder
from tests.tiny import TINY, command, environment, graphspec, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

FINAL = ("arch.yaml", "graph.json", "graph.txt", "weights.safetensors", "metrics.jsonl", "result.json", "split.json")
SHORT = ("search.pretrain_epochs=1", "search.epochs=1")
ONE_BLOCK = TINY[: TINY.index("  reduce:")] + TINY[TINY.index("  head:") :].replace("{normal: 2}, reduce, ", "")
OFTEN = ("--set", "search.checkpoint.minutes=0.01")


def search(folder: Path, *settings: str, text: str = TINY, quiet: bool = True) -> Path:
    """Search the tiny space in a new run under `folder`; the search's part of the run."""
    write_spec(folder, text)
    with chdir(folder):
        api.search("tiny.yaml", overrides=settings, quiet=quiet)
    return folder / "runs" / "latest" / "search"


def final_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "runs" / "latest" / "search" / name).read_bytes() for name in FINAL}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished search of the tiny spec; tests must not change it."""
    folder = tmp_path_factory.mktemp("searched")
    search(folder)
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


def test_the_split_is_recorded(searched: Path) -> None:
    folder = searched / "runs" / "latest" / "search"
    record = json.loads((folder / "split.json").read_text())
    parts = safetensors.torch.load((folder / "split.safetensors").read_bytes())
    assert {name: len(rows) for name, rows in parts.items()} | {"digest": record["digest"]} == record
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(1437))


def test_another_seed_gives_other_weights_and_another_split(searched: Path, tmp_path: Path) -> None:
    search(tmp_path, "seed=1", *SHORT)
    files, others = final_files(tmp_path), final_files(searched)
    assert files["weights.safetensors"] != others["weights.safetensors"]
    assert files["split.json"] != others["split.json"]


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
        process = subprocess.Popen(
            command("search", "--resume", *OFTEN),
            cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        moment(process, checkpoints)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    graphspec(tmp_path, "search", "--resume", *OFTEN)
    assert final_files(tmp_path) == final_files(searched)


@pytest.mark.parametrize(
    ("every", "steps", "looks"),
    [
        (0, 5, []),
        (1, 5, [5, 10, 15, 20]),
        (2, 5, [10, 20]),
        (0.5, 5, [2, 5, 8, 10, 12, 15, 18, 20]),  # an end of an epoch is always one of them
        (0.1, 3, list(range(1, 13))),  # more often than there are steps
        (1.5, 3, [4, 9]),
    ],
)
def test_when_zero_gates_are_looked_for(every: float, steps: int, looks: list[int]) -> None:
    assert [done for done in range(1, 4 * steps + 1) if is_look(done, every * steps)] == looks


def killed_at_a_prune(folder: Path) -> None:
    """Kill the search of the run in `folder` after it has pruned, then go on with it."""
    process = subprocess.Popen(
        command("search", *OFTEN), cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )
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


@pytest.mark.parametrize("adaptive", ["none", "flops", "memory_access", "latency"])
def test_a_search_that_closes_every_gate_ends_and_exports(tmp_path: Path, adaptive: str) -> None:
    closing = ("search.gates.exempt_last_input=false", "search.gates.gamma=1.0", f"search.gates.adaptive={adaptive}")
    part = search(tmp_path, *closing, "search.prune.every=0.25", "search.checkpoint.keep=9", text=ONE_BLOCK)
    finished = final_files(tmp_path)
    assert json.loads((part / "result.json").read_text())["kept_gates"] == 0
    records = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    assert all(record["gate_loss"] > 0 for record in records if record["stage"] == "search")
    for path in [*sorted((part / "checkpoints").iterdir())[-2:], *(part / name for name in FINAL[:4]), part / FINAL[5]]:
        path.unlink()
    with chdir(tmp_path):
        api.search("runs/latest", resume=True, quiet=True)
        assert final_files(tmp_path) == finished
        api.retrain(overrides=["retrain.epochs=1"], quiet=True)
        assert Path(api.export(quiet=True).path).is_file()


@pytest.mark.parametrize("said", [None, "1"])
def test_a_resumed_search_uses_as_many_threads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    every_step = ("search.checkpoint.minutes=1e-9", "search.checkpoint.keep=1000")
    torch.set_num_threads(2)
    part = search(tmp_path, *SHORT, *every_step)
    finished = final_files(tmp_path)
    checkpoints = sorted((part / "checkpoints").iterdir())
    for path in (
        *checkpoints[len(checkpoints) // 4 * 2 :],
        *(part / name for name in FINAL if name != "metrics.jsonl"),
    ):
        path.unlink(missing_ok=True)
    torch.set_num_threads(1)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    with chdir(tmp_path):
        api.search("runs/latest", overrides=[*SHORT, *every_step], resume=True)
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
    process = subprocess.Popen(
        command("search", *settings), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
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


def test_resuming_a_finished_search_says_so(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = final_files(searched)
    with chdir(searched):
        api.search(resume=True)
    assert "complete already" in capsys.readouterr().err
    assert final_files(searched) == before


@pytest.mark.parametrize(
    ("setting", "resume", "said"),
    [
        ("search.gates.gamma=0.5", True, "search.gates.gamma"),
        ("seed=0", False, "--overwrite"),
        ("symbols.width=12", False, "another graph"),
    ],
)
def test_a_finished_search_is_left_alone(searched: Path, setting: str, resume: bool, said: str) -> None:
    with chdir(searched), pytest.raises(GraphspecError, match=said):
        api.search(overrides=[setting], resume=resume)


def test_a_search_that_failed_at_once_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    with chdir(tmp_path):
        api.compile(write_spec(tmp_path))
        with pytest.raises(RunError, match="no-such-folder"):
            api.search(overrides=["data.name=mnist", "data.root=no-such-folder"])
        api.search(overrides=SHORT, quiet=True)
    assert (tmp_path / "runs" / "latest" / "search" / "arch.yaml").is_file()


def test_search_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    with chdir(tmp_path), pytest.raises(RunError, match="graphspec compile"):
        api.search()


def test_an_infinite_loss_stops_the_search(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"at step \d+ of epoch 1 \(pretrain\); learning rate: search.lr .*checkpoint"):
        search(tmp_path, "search.lr=1e6")


def test_a_network_without_gates_is_an_error(tmp_path: Path) -> None:
    text = TINY.replace("{count: 2, ops", "{count: 2, gated: false, gate_input: false, ops").replace(
        ", gated: true", ""
    )
    with pytest.raises(RunError, match="no gates"):
        search(tmp_path, text=text)


def test_unreadable_images_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_folder(tmp_path / "images")
    for damaged in ("000", "005"):
        (images / "train" / "cat" / f"{damaged}.png").write_bytes(b"no image")
    text = TINY.replace("{name: digits}", f"{{name: folder, root: {images}}}").replace("classes: 10", "classes: 2")
    with pytest.raises(RunError, match=r"2 image\(s\)(.|\n)*cat/000\.png(.|\n)*skip_corrupt"):
        search(tmp_path, *SHORT, "search.gates.gamma=2", text=text)
    search(tmp_path, "data.skip_corrupt=true", "search.batch_size=8", "search.gates.gamma=2", *SHORT, text=text)
    told = capsys.readouterr().err
    assert "left out " in told
    assert "cat/005.png: " in told
    assert "left out 2 unreadable images in all" in told


def test_nothing_pruned_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(tmp_path, "search.gates.gamma=0", *SHORT)
    assert "nothing was pruned; raise search.gates.gamma" in capsys.readouterr().err


def test_too_high_a_penalty_keeps_a_path_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["search.gates.gamma=50", "search.gates.exempt_last_input=false", "search.epochs=2"]
    folder = search(tmp_path, *settings, quiet=False)
    graph = from_json((folder / "graph.json").read_text())
    assert "reduce.out" in graph
    assert len(graph.gates()) == 1
    told = capsys.readouterr().err
    assert "although zero: without it nothing reaches the output" in told
    assert "stage0.block1 lost all its edges: it is the identity now" in told
    assert "every edge that may go was pruned, 1 of 38 gates are left; lower search.gates.gamma" in told
    assert "since pruning a step takes" in told
    assert "(before: " in told


def test_no_two_epochs_see_the_images_in_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loaders' epochs count on from pretraining to the search."""
    epochs: list[tuple[str, int]] = []

    def noted(self: Feed, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        epochs.append((self.loader.purpose, epoch))
        return batch(self, epoch, index)

    batch = Feed.batch
    monkeypatch.setattr(Feed, "batch", noted)
    search(tmp_path, "search.pretrain_epochs=2", "search.epochs=2")
    assert list(dict.fromkeys(epochs)) == [
        ("weights", 0), ("weights", 1), ("weights", 2), ("gates", 2), ("weights", 3), ("gates", 3),
    ]  # fmt: skip


def test_resume_takes_settings_that_change_no_result(tmp_path: Path) -> None:
    folder = search(tmp_path, *SHORT)
    harmless = ["data.workers=5", "data.download=true", "search.checkpoint.keep=7", "search.checkpoint.minutes=3"]
    with chdir(tmp_path):
        again = api.search(overrides=[*SHORT, *harmless], resume=True, quiet=True)
        assert again == SearchResult.of(json.loads((folder / "result.json").read_text()))
        with pytest.raises(RunError, match=r"changed spec: search\.clip"):
            api.search(overrides=[*SHORT, *harmless, "search.clip=3"], resume=True, quiet=True)


def test_smoke_leaves_nothing_behind_and_needs_no_data(tmp_path: Path) -> None:
    with chdir(tmp_path):
        streamed = {"data.name": "folder", "data.root": "nowhere", "data.in_memory": False}
        api.smoke(write_spec(tmp_path), quiet=True, overrides=streamed)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize("settings", [
    ("search.lowering=reference", "search.accumulate=3", "search.weight_steps=4", "search.gates.adaptive=flops"),
    ("search.precision=bf16", "search.recompute=true", "search.gates.adaptive=latency", "gates.share=block",
     "search.gates.nonnegative=false"),
], ids=["reference", "recompute"])  # fmt: skip
def test_settings_run_together(tmp_path: Path, settings: tuple[str, ...]) -> None:
    folder = search(tmp_path, *settings, *SHORT, "search.batch_size=16", "search.gates.gamma=0.12")
    assert json.loads((folder / "result.json").read_text())["accuracy"] > 0.15
    assert (folder / "latencies.json").is_file() == ("search.gates.adaptive=latency" in settings)
