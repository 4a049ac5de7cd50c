"""Benchmarks do not rot: each runs at its smallest, and the commands that docs/benchmarks.md shows are theirs."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import compile as compiling
from benchmarks import (
    compression,
    exemption,
    export,
    imports,
    memory,
    overhead,
    peers,
    proof,
    roofline,
    search,
    steps,
    supernet,
)
from benchmarks.by_hand import ByHand
from benchmarks.common import shipped
from benchmarks.turns import Worker
from compiler.analysis.costs import total_cost, weight_step_bytes
from compiler.lowering.torch.emit import tensor_name
from compiler.lowering.torch.fx import lower
from compiler.lowering.torch.modules import Conv
from graphspec.api import load
from runtime.training.allocated import OnCpu
from tests.test_compile_checks import write_images
from tests.tiny import environment, write_spec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FAKE = ("data.name=fake", "data.fake_size=512")
DOCUMENT = ROOT / "docs" / "benchmarks.md"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(tmp_path)


def found(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> dict[str, Any]:
    """What `python -m module *words --json` prints."""
    monkeypatch.setattr(sys, "argv", [str(module.__file__), *map(str, words), "--json"])
    module.main()
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert record["machine"]["command"].startswith(f"python -m {module.__name__} ")
    return record


# -- commands in the documentation ------------------------------------------------------------------------------------


class Parsed(Exception):  # noqa: N818
    """The options were read, and that is enough."""


def documented() -> list[str]:
    text = DOCUMENT.read_text(encoding="utf-8").replace("\\\n", " ")
    return sorted(set(re.findall(r"python -m benchmarks\.[^`\n#]+", text)))


@pytest.mark.parametrize("command", documented())
def test_documented_commands_have_these_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        raise Parsed(read(parser, *given))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(Parsed):
        importlib.import_module(words[2]).main()


def test_every_benchmark_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    files = [path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    unsaid = {path.stem for path in files if f"benchmarks.{path.stem}" not in text}
    assert unsaid == {"peer_nni", "peer_torch_pruning"}, "which benchmarks.peers and benchmarks.compression run"


# -- the smallest run of each -----------------------------------------------------------------------------------------


def test_compile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = found(compiling, monkeypatch, capsys, "--edges", 250, 500, "--rounds", 1)["sizes"]
    assert [row["gates"] for row in sizes] == [128, 128, 3 * 128]
    assert sizes[0]["growth"] is None
    assert sizes[2]["growth"] > 0


def test_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", {f"c{number}": 20 for number in range(10)}, size=32)
    where = ["--data", tmp_path / "images", "--work", tmp_path / "work"]
    monkeypatch.setattr(sys, "argv", ["", "base", *map(str, where), "--epochs", "1"])
    compression.main()
    capsys.readouterr()
    rows = ["--rows", "channel gates", "channel gates, distilled"]
    short = [*rows, "--sizes", 2, "--seeds", 0, "--epochs", 1, "--search-epochs", 1]
    made = found(compression, monkeypatch, capsys, "compare", *where, *short)["rows"]
    again = found(compression, monkeypatch, capsys, "compare", *where, *short)["rows"]
    assert all(row.pop("ms") > 0 for row in (*made, *again))
    assert again == made  # they were kept
    row, distilled = made
    assert 0.3 * 40_813_184 < row["flops"] <= 0.5 * 40_813_184
    assert distilled["flops"] == row["flops"]
    weights = [
        tmp_path / "work" / "rows" / f"{name.replace(' ', '_')}-2x-0" / "run/retrain/weights.safetensors"
        for name in rows[1:]
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_published_weights_have_shortcuts_without_weights(tmp_path: Path) -> None:
    class Shortcut(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            channels = x.shape[1]
            return torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, channels // 2, channels // 2))

    module = compression.resnet20().eval()
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items() if "shortcut" not in name}
    torch.save({"state_dict": {n: t for n, t in state.items() if not n.endswith("tracked")}}, tmp_path / "resnet20.th")
    made = compression.published(tmp_path / "resnet20.th").eval()
    for name, part in list(module.named_modules()):
        if name.endswith("shortcut") and isinstance(part, torch.nn.Conv2d):
            module.set_submodule(name, Shortcut())
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made(x), module(x), atol=1e-6)


def test_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", {f"c{number}": 30 for number in range(3)}, size=32)
    short = ["search.pretrain_epochs=1", "search.epochs=2", "retrain.epochs=1", "budget.flops=1M", "classes=3"]
    short += ["search.steps_per_epoch=null", "retrain.steps_per_epoch=null"]
    short += ["search.gates.gamma=0.5", "retrain.from=scratch"]  # two epochs cannot meet a budget by gates alone
    settings = [word for each in short for word in ("--set", each)]
    where = ["--data", tmp_path / "images", "--work", tmp_path / "work", "--seeds", 0, "--plain", "residual"]
    rows = found(proof, monkeypatch, capsys, *where, *settings)["rows"]
    assert [row["row"] for row in rows] == [
        "found",
        "plain residual",
        "plain residual, equal CPU",
        "random",
        "permuted",
    ]
    assert [row["epochs"] for row in rows if "CPU" not in row["row"]] == [4] * 4
    assert all(row["flops"] <= 1_000_000 and row["ms"] > 0 and row["training_s"] > 0 for row in rows)
    assert found(proof, monkeypatch, capsys, *where, *settings)["rows"] == rows  # they were kept


def test_imports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = found(imports, monkeypatch, capsys, "--only", "squeezenet1_1", "light_squeezenet", "swin_t")["outcomes"]
    assert [(o["family"], o["difference"] is None) for o in outcomes] == [
        ("squeezenet", False), ("swin", True), ("ONNX", False)
    ]  # fmt: skip
    assert "no op of ours computes" in outcomes[1]["why"]


def test_exemption(spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(exemption, "SPEC", spec)
    short = [
        word for key in ("search.pretrain_epochs", "search.epochs", "retrain.epochs") for word in ("--set", f"{key}=1")
    ]
    outcomes = found(exemption, monkeypatch, capsys, "--seeds", 0, *short)["outcomes"]
    assert [o["exempt"] for o in outcomes] == [True, False]
    assert all(0 < o["test_accuracy"] <= 1 for o in outcomes)


def test_scale_measured_by_two_processes(spec: Path) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "benchmarks.scale"]
    command = [sys.executable, "-m", *launcher, "--json", "--rounds", "1", "--spec", str(spec)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["measured"]
    assert [row["step"] for row in rows] == ["weight"] * 3 + ["gate"] * 3
    assert [row["speed"] for row in rows if row["variant"] == "one process"] == [1, 1]


def test_overhead(spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(overhead, "FILES", 100)
    words = ("--spec", spec, "--rounds", 2, "--epochs", 1, "--workers", 0, "--set", "data.fake_size=256")
    record = found(overhead, monkeypatch, capsys, *words)
    parts = record["parts"]
    assert parts[overhead.STEP]["share"] == 1
    assert all(len(part["seconds"]) == 2 for part in parts.values())
    assert [p["images"] for p in record["pipelines"]] == [96, 32], "whole batches of 45 % of 256 and of 100 images"
    (bar,) = record["bars"]
    names = (overhead.DATA, overhead.WEIGHTS, overhead.GATES, overhead.LOOK)
    assert bar["found"] == pytest.approx(100 * sum(parts[name]["share"] for name in names))


def test_roofline(spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(roofline, "LARGE", 2**20)
    record = found(roofline, monkeypatch, capsys, "--spec", spec, "--rounds", 1, "--matrix", 256)
    rows, (top,) = record["rows"], record["ceilings"].values()
    assert [(row["step"], row["variant"]) for row in rows] == [
        (kind, variant) for kind in ("weight", "gate") for variant in ("reference, fp32", "fused, fp32")
    ]
    multiply_adds = total_cost(load(spec)[1]).flops
    for row, times in zip(rows, (3, 3, 2, 2), strict=True):
        assert row["gflop"] * 1e9 == pytest.approx(times * 2 * 64 * multiply_adds)
        for level in ("memory", "cache"):
            floor = max(1e9 * row["gflop"] / top["flops"], 1e9 * row["gigabytes"] / top[level])
            assert row[f"reached_from_{level}"] == pytest.approx(1e3 * floor / row["measured_ms"])


def test_bytes_count_weights_once_a_batch(spec: Path) -> None:
    graph = load(spec)[1]
    one, two, three = (roofline.work_of(graph, "weight", "fp32", batch).bytes for batch in (1, 2, 3))
    assert three - two == two - one
    assert 2 * one - two == 3 * 4 * total_cost(graph).params
    assert roofline.work_of(graph, "weight", "bf16", 1).bytes == one / 2


def test_search_in_turns(spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("search.pretrain_epochs=1", "search.epochs=3", "search.gates.gamma=2")
    words = ("--spec", spec, "--seeds", 3, *(f"--set={setting}" for setting in (*FAKE, *short)))
    pruned, whole = found(search, monkeypatch, capsys, *words)["outcomes"]
    assert [(e["stage"], e["epoch"]) for e in pruned["epochs"]] == [
        ("pretrain", 1), ("search", 1), ("search", 2), ("search", 3)
    ]  # fmt: skip
    first = [{**outcome["epochs"][0], "seconds": None} for outcome in (pruned, whole)]
    assert first[0] == first[1], "pretraining is the same"
    flops = [[e["flops"] for e in outcome["epochs"]] for outcome in (pruned, whole)]
    assert flops[0][2] < flops[0][0], "pruning starts before the end"
    assert flops[1][2] == flops[1][0], "without pruning the network stays whole until the end"
    assert whole["edges"] < 50
    assert pruned["seconds"] == pytest.approx(sum(e["seconds"] for e in pruned["epochs"]))


def test_a_search_is_that_of_the_command(spec: Path, tmp_path: Path) -> None:
    """Taking turns changes nothing: the epochs are those of `graphspec search`."""
    import graphspec

    settings = ["search.pretrain_epochs=1", "search.epochs=2", "search.gates.gamma=2", *FAKE]
    alone = search.Search.start(str(spec), settings, tmp_path / "turns", "cpu")
    while alone.advance():
        pass
    compiled = graphspec.compile(spec, out=tmp_path / "run", overrides=settings, root=tmp_path)
    assert compiled.run is not None
    graphspec.search(compiled.run, device="cpu", quiet=True)
    assert (tmp_path / "turns" / "metrics.jsonl").read_bytes() == compiled.run.search.metrics.read_bytes()


def test_supernet_steps(spec: Path) -> None:
    parsed, graph = load(spec)
    for variant, kind in zip(supernet.VARIANTS, supernet.KINDS * 3, strict=True):
        supernet.make_step(variant, kind, graph, parsed.config.search)()


def test_peak_memory_of_a_step(spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["supernet", "--spec", str(spec), "--peak", "fused", "--kind", "gate"])
    supernet.main()
    parsed, graph = load(spec)
    step = supernet.make_step(supernet.Variant("fused"), "gate", graph, parsed.config.search)
    step()
    assert 2**20 * float(capsys.readouterr().out) == pytest.approx(OnCpu().peak(step), rel=0.05)


@pytest.mark.parametrize("name", memory.SPECS)
def test_benchmarks_read_every_spec_that_ships(name: str) -> None:
    spec, graph = shipped(name)
    assert graph.node("output").shape == (spec.classes,)


@pytest.mark.parametrize("name", ["digits", "hand_wired", "own_images"])
def test_the_estimate_is_about_what_torch_allocates(name: str) -> None:
    """The other specs that ship take longer to measure; `python -m benchmarks.memory` does."""
    net = memory.supernet(name)
    batch = net.config.batch_size
    about = weight_step_bytes(total_cost(net.graph), batch)
    assert about == pytest.approx(memory.allocated(net, batch), rel=0.35)


def test_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All tables and bars, with the smaller of the specs that are measured at their full batch."""
    monkeypatch.setattr(memory, "FAST", ("digits",))
    record = found(memory, monkeypatch, capsys, "--spec", "digits", "--rounds", 1)
    assert all(row["ratio"] == row["said_mib"] / row["allocated_mib"] for row in record["estimates"] + record["checks"])
    assert [row["recompute"] for row in record["checks"]] == [False, True]
    assert [row["way"] for row in record["ways"]] == list(memory.WAYS)
    assert len(record["bars"]) == 1 + 2
    assert all(bar["met"] for bar in record["bars"])


# -- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own_images", "digits", "dso_nas_cifar10_small"])
def test_a_network_by_hand_is_the_same(name: str) -> None:
    """With the tensors of ours it gives the same outputs while it trains."""
    spec, graph = shipped(name)
    model = steps.drawn(graph, spec.config.budget)
    ours, by_hand = lower(model.graph), ByHand(model.graph)
    given = {tensor_name(path): tensor for path, tensor in ours.state_dict().items()}
    for node in model.graph.nodes()[1:]:
        tensors = [tensor for tensor_id, tensor in given.items() if tensor_id.startswith(f"{node.id}.")]
        part = by_hand.parts[node.id.replace(".", "-")]
        names = [path for path in part.state_dict() if not path.endswith("num_batches_tracked")]
        part.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    x = torch.randn(4, *spec.input, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(by_hand.train()(x), ours.train()(x), rtol=1e-5, atol=1e-5)


def test_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(steps, "IMAGES", 32)
    record = found(steps, monkeypatch, capsys, "--specs", "own_images", "--batches", 16, "--rounds", 1)
    assert [bar["limit"] for bar in record["bars"]] == [1.0, 1.3]
    assert all(cell > 0 for row in record["rows"] for cell in row[1:])


def test_convolutions_as_one_call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    deep, deep_joined, wide, wide_joined = (torch.cat(run(), 1) for run in steps.parallel(2, 4, 6, 3, 3).values())
    assert torch.allclose(deep, deep_joined, atol=1e-6)
    assert torch.allclose(wide, wide_joined, atol=1e-6)
    monkeypatch.setattr(steps, "PARALLEL", ((2, 4, 6, 3, 2),))
    record = found(steps, monkeypatch, capsys, "--parallel", "--rounds", 1)
    assert all(cell > 0 for row in record["rows"] for cell in row)


def test_without_activations() -> None:
    linear = steps.without_activations(shipped("own_images")[1])
    assert not any(isinstance(part, torch.nn.ReLU) for part in lower(linear).modules())


# -- exported models --------------------------------------------------------------------------------------------------


def test_the_exporter_gets_the_same_network_with_plain_convolutions() -> None:
    graph = load(peers.SPEC, ["symbols.width=2"])[1]
    module = lower(graph).double().eval()
    plain = export.with_plain_convolutions(module)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right, found = module(x), plain(x)
    assert (found - right).abs().max() <= 1e-10 * right.abs().max()
    assert {part.steps for part in plain.modules() if isinstance(part, Conv)} == {(1, 1)}
    assert (2, 2) in {part.steps for part in module.modules() if isinstance(part, Conv)}


# -- workers that take turns ------------------------------------------------------------------------------------------


def test_our_side_of_the_comparison_with_peers() -> None:
    worker = Worker("benchmarks.peers", ["--worker", "--width=2", "--batch=2"])
    try:
        graph = load(peers.SPEC, ["symbols.width=2"])[1]
        assert worker.about["gates"] == len(graph.gates())
        assert worker.about["flops"] == 2 * total_cost(graph).flops
        worker.turn()
        assert worker.last["peak_mib"] > 0
    finally:
        worker.end()


def test_a_worker_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"No module named benchmarks\.no_such_worker"):
        Worker("benchmarks.no_such_worker")
