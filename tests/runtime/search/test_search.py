"""`graphspec search` as a user runs it, on a network of a few thousand weights.

A process of its own is started only where a process is the point; elsewhere the Python API does the same.
"""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from compiler.errors import GraphspecError, RunError
from compiler.ir.text import from_json
from graphspec import api
from runtime.strategies.dso import is_look
from runtime.training.step import Feed
from tests.runtime.data.test_data_sets import make_folder
from tests.tiny import TINY, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

FINAL = ("arch.yaml", "graph.json", "graph.txt", "weights.safetensors", "metrics.jsonl", "result.json", "split.json")
SHORT = ("search.pretrain_epochs=1", "search.epochs=1")
ONE_BLOCK = TINY[: TINY.index("  reduce:")] + TINY[TINY.index("  head:") :].replace("{normal: 2}, reduce, ", "")


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
