"""Weights that a spec names: they must fit, they are copied into the run, and jobs start from them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from compiler.analysis.weights import weight_shapes
from compiler.architecture.found import Architecture
from compiler.errors import RunError, SpecError
from compiler.ir.graph import Graph, Model
from compiler.language.config import RetrainConfig, SearchConfig
from compiler.lowering.torch.batch_parts import BatchNorm
from compiler.lowering.torch.fx import gate_values, lower, lower_model, weights_of
from compiler.passes.drop_gates import DropGates
from compiler.passes.prune_zero_edges import surviving_edges
from graphspec import api
from runtime.data.dataset import load_dataset
from runtime.jobs.run_retrain import found_network
from runtime.rundir.start import start_weights
from runtime.search.supernet import Supernet
from runtime.training.retrain_job import RetrainJob
from tests.interpreter import random_weights
from tests.tasks import class_task
from tests.tiny import TINY, write_spec

SPEC = TINY.replace("classes: 10\n", "classes: 10\nweights: parts/w.safetensors\n")
SHORT = ("search.pretrain_epochs=1", "search.epochs=1", "retrain.epochs=1")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec with weights in a folder beside it."""
    path = write_spec(tmp_path, SPEC)
    (tmp_path / "parts").mkdir()
    save(path, random_weights(api.load(path)[1], 3))
    return path


def save(spec: Path, weights: dict[str, Any]) -> None:
    arrays = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    save_file(arrays, spec.parent / "parts" / "w.safetensors")


def compiled(spec: Path, *overrides: str) -> api.Opened:
    run = api.compile(spec, root=spec.parent / "runs", overrides=[*SHORT, *overrides]).run
    return api.open_run(run)


def searched(opened: api.Opened, gates: dict[str, float]) -> None:
    """What a search leaves that has trained nothing."""
    found = Architecture.of(opened.graph, gates, strategy="dso", seed=0, spec_hash="")
    opened.run.search.path.mkdir()
    opened.run.search.arch.write_text(found.to_yaml())


def test_the_run_keeps_a_copy(spec: Path) -> None:
    opened = compiled(spec)
    given = load_file(spec.parent / "parts" / "w.safetensors")
    (spec.parent / "parts" / "w.safetensors").unlink()
    start = start_weights(opened)
    assert start is not None
    assert start.keys() == weight_shapes(opened.graph).keys()
    assert all(np.array_equal(start[name], given[name]) for name in start)


def test_a_path_is_of_the_file_that_names_it(spec: Path) -> None:
    folder = spec.parent / "below"
    folder.mkdir()
    top = folder / "top.yaml"
    top.write_text(f"graphspec: 1\nextends: ../{spec.name}\nname: top\n")
    assert start_weights(compiled(top)) is not None
    top.write_text(top.read_text() + "weights: null\n")
    assert start_weights(compiled(top)) is None


@pytest.mark.parametrize(
    ("key", "prefix", "suffix"),
    [
        ("state_dict", "module.", ".pth"),
        ("model_state_dict", "_orig_mod.", ".th"),
        ("model", "module._orig_mod.", ".tar"),
        ("net", "_orig_mod.module.", ""),
        ("", "", ".bin"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_taken_too(spec: Path, key: str, prefix: str, suffix: str, zipped: bool) -> None:
    weights = load_file(spec.parent / "parts" / "w.safetensors")
    tensors = {prefix + name: torch.from_numpy(array) for name, array in weights.items()}
    file = spec.parent / f"w{suffix}"
    state = {key: tensors, "epoch": 3} if key else tensors
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    start = start_weights(compiled(spec, f"weights={file}"))
    assert start is not None
    assert all(np.array_equal(start[name], weights[name]) for name in start)


def refusal(spec: Path, file: str = "w.safetensors") -> str:
    """What compiling says of a file of weights; nothing is written."""
    spec.write_text(SPEC.replace("w.safetensors", file))
    with pytest.raises(SpecError) as caught:
        compiled(spec)
    assert not list(spec.parent.glob("runs/*"))
    assert "weights: parts" in str(caught.value)  # the line of the spec
    return str(caught.value)


def test_weights_that_do_not_fit_are_refused_by_name(spec: Path) -> None:
    weights = load_file(spec.parent / "parts" / "w.safetensors")
    names = list(weight_shapes(api.load(spec)[1]))
    weights.pop(names[4])
    weights[names[6]] = np.zeros((7, 1), np.float32)
    save(spec, weights)
    found = refusal(spec)
    assert f"1 of {len(names)} tensors are missing, the first of them {names[4]!r}" in found
    assert f"{names[6]!r} has shape [7, 1], the network asks for" in found


def test_numbers_must_be_finite(spec: Path) -> None:
    weights = load_file(spec.parent / "parts" / "w.safetensors")
    weights["head.out.bias"] = weights["head.out.bias"] * np.float32(np.nan)
    save(spec, weights)
    assert "'head.out.bias' holds numbers that are not finite" in refusal(spec)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_what_is_no_file_of_tensors_is_refused_and_not_quoted(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(spec.parent)
    folder = spec.parent / "parts"
    (folder / "secret").write_text("password: 1234")
    (folder / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"w": Evil()}, folder / "evil.pt")
    torch.save([1, 2], folder / "list.pth")
    (folder / "fifo").mkdir()
    for name in ("secret", "evil.pth", "evil.pt", "list.pth", "fifo", "missing"):
        found = refusal(spec, name)
        assert "1234" not in found
        assert "Traceback" not in found
    assert not (spec.parent / "pwned").exists()


def test_a_damaged_copy_is_one_message(spec: Path) -> None:
    opened = compiled(spec)
    content = bytearray(opened.run.weights.read_bytes())
    opened.run.weights.write_bytes(content[:200])
    with pytest.raises(RunError, match="is damaged"):
        start_weights(opened)


def net_of(graph: Graph, weights: dict[str, Any] | None) -> Supernet:
    return Supernet.start(graph, class_task(), SearchConfig(), torch.device("cpu"), 0, 1.0, weights=weights)


def test_the_supernet_starts_from_them_with_its_scales_fixed(spec: Path) -> None:
    graph = api.load(spec)[1]
    weights = random_weights(graph, 3)
    net = net_of(graph, weights)
    assert all(np.array_equal(array, np.asarray(weights[n], np.float32)) for n, array in weights_of(net.module).items())
    norms = [part for part in net.module.modules() if isinstance(part, BatchNorm)]
    assert norms
    assert all(not part.weight.requires_grad and part.bias.requires_grad for part in norms)
    assert len({float(part.weight[0].detach()) for part in norms}) > 3


def test_pruning_a_supernet_with_scales_of_its_own_changes_no_output(spec: Path) -> None:
    graph = api.load(spec)[1]
    net = net_of(graph, random_weights(graph, 3))
    some = {gate for number, gate in enumerate(graph.gates()) if number % 3 == 0 and not gate.startswith("reduce")}
    closed = set(graph.gates()) - {edge.gate for edge in surviving_edges(graph, some)}
    with torch.no_grad():
        for scope, gates in graph.gate_scopes().items():
            net.gate_vectors[scope].copy_(torch.tensor([0.0 if gate in closed else 0.7 for gate in gates]))
    images = torch.rand(4, 1, 8, 8)
    before, after = net.module.eval()(images), net.pruned(closed).module.eval()(images)
    assert torch.allclose(before, after, atol=1e-5 * float(before.detach().abs().max()))


def test_retraining_starts_from_what_is_left_of_them(spec: Path) -> None:
    opened = compiled(spec)
    gates = {gate: 0.3 for number, gate in enumerate(opened.graph.gates()) if number % 4}
    searched(opened, gates)
    network = found_network(opened)
    assert network.width == 1
    assert "the spec's file has them" in network.width_note
    given = load_file(spec.parent / "parts" / "w.safetensors")
    same = [n for n, array in network.model.weights.items() if n in given and np.array_equal(array, given[n])]
    assert len(same) > 0.8 * len(network.model.weights)
    whole = lower(opened.graph)
    assert set(gate_values(whole, opened.graph)) >= set(gates)


def test_from_scratch_leaves_them_aside(spec: Path) -> None:
    opened = compiled(spec, "retrain.from=scratch")
    searched(opened, dict.fromkeys(opened.graph.gates(), 1.0))
    assert not found_network(opened).model.weights
    assert found_network(api.open_run(opened.run, ["retrain.from=search"])).model.weights


def test_the_old_word_for_from_search_is_read() -> None:
    assert RetrainConfig.model_validate({"inherit": True}) == RetrainConfig.model_validate({"from": "search"})
    assert RetrainConfig.model_validate({"inherit": False}) == RetrainConfig()
    with pytest.raises(ValidationError, match="inherit"):
        RetrainConfig.model_validate({"inherit": True, "from": "scratch"})


def test_the_network_before_pruning_teaches(spec: Path) -> None:
    opened = compiled(spec, "retrain.distil={weight: 0.3, temperature: 2}", "retrain.label_smoothing=0.1")
    graph, config, cpu = opened.graph, opened.spec.config, torch.device("cpu")
    teacher = Model(graph, dict.fromkeys(graph.gates(), 1.0), start_weights(opened))
    dataset = load_dataset(config.data, opened.spec.input, class_task(10), seed=0)
    pupil = DropGates().run(Model(graph, dict.fromkeys(graph.gates(), 1.0)))
    job = RetrainJob(pupil.graph, config, dataset, cpu, teacher=teacher)
    x, y = job.feed.batch(0, 0)
    found = job.loss(x, y)
    with torch.no_grad():
        own, wanted = job.module(x), lower_model(teacher).eval()(x)
    right = F.softmax(wanted / 2, 1)
    divergence = (right * (right.log() - F.log_softmax(own / 2, 1))).sum(1).mean()
    expected = 0.7 * F.cross_entropy(own, y, label_smoothing=0.1) + 0.3 * 4 * divergence
    assert torch.allclose(found, expected, rtol=1e-5)
    found.backward()
    assert all(p.grad is not None for p in job.parameters())


def test_without_a_trained_network_nothing_teaches(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, TINY)
    opened = compiled(spec)
    searched(opened, dict.fromkeys(opened.graph.gates(), 1.0))
    with pytest.raises(SpecError, match="no trained network to learn from"):
        api.retrain(opened.run, overrides=["retrain.distil.weight=0.5"], quiet=True)
    with pytest.raises(SpecError, match="no trained network to learn from"):  # nor would it after a search
        compiled(spec, "retrain.distil.weight=0.5")


def test_trained_weights_keep_their_widths(spec: Path) -> None:
    opened = compiled(spec, "budget.params=1k")
    searched(opened, dict.fromkeys(opened.graph.gates(), 1.0))
    with pytest.raises(RunError, match="trained weights keep their widths"):
        found_network(opened)


@pytest.mark.slow
def test_a_search_and_a_retraining_of_several_seeds_go_through(spec: Path) -> None:
    run = compiled(spec).run
    assert len(api.search(run, seeds=[0, 1], quiet=True).results) == 2
    taught = ["retrain.distil.weight=0.5"]
    assert len(api.retrain(run, overrides=taught, seeds=[0, 1], quiet=True).results) == 2
    assert "the search left them" in found_network(api.open_run(run.seed_run(1))).width_note
    assert api.open_run(run.seed_run(1)).run.weights.is_file()
    api.smoke(spec, "retrain")
    api.smoke(run.seed_run(0), "retrain")
