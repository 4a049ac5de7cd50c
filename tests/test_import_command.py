"""`graphspec import`: from a foreign network to a spec, and from there through all commands, without the source."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import graphspec
from benchmarks.imports import LIGHT, settled
from compiler.analysis.costs import total_cost
from compiler.errors import GraphspecError
from compiler.importing.exported import read_module
from compiler.lowering.torch.fx import load_weights, lower
from runtime.importing import LIBRARIES, import_source
from tests.compiler.importing.models import classifier, relative, trained
from tests.tiny import graphspec as command

FAKE = ("--set", "data.name=fake", "--set", "data.fake_size=48", "--set", "retrain.epochs=1",
        "--set", "retrain.batch_size=8", "--set", "search.batch_size=8", "--set", "search.epochs=1",
        "--set", "search.pretrain_epochs=1")  # fmt: skip


class Small(nn.Module):
    """A residual network of a few layers."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.body(x) + x)
        return self.fc(x.mean((2, 3)))


def network_of(spec: Path) -> nn.Module:
    """The network of a spec with the weights that lie beside it."""
    module = lower(graphspec.load(spec)[1])
    load_weights(module, load_file(spec.with_suffix(".safetensors")))
    return module.eval()


@pytest.mark.slow
def test_an_imported_network_goes_through_all_commands(tmp_path: Path) -> None:
    module = trained(Small())
    save_file(module.state_dict(), tmp_path / "small.safetensors")
    (tmp_path / "mine.py").write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
                                      "from tests.test_import_command import Small\n")  # fmt: skip
    source = ("import", "mine:Small", "--input", "3,16,16", "--gates", "blocks", "-o", "net.yaml", "--trust-code")
    said = command(tmp_path, *source, "--weights", "small.safetensors").stderr
    assert "wrote net.yaml and net.safetensors; next: graphspec compile net.yaml" in said
    (tmp_path / "mine.py").unlink()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert relative(network_of(tmp_path / "net.yaml")(images), module(images)) < 1e-6
    command(tmp_path, "compile", "net.yaml", *FAKE)
    command(tmp_path, "search")
    command(tmp_path, "retrain")
    command(tmp_path, "export")
    session = onnxruntime.InferenceSession(str(tmp_path / "runs/latest/export/model.onnx"))
    assert session.run(None, {"image": images.numpy()})[0].shape == (3, 4)
    assert (tmp_path / "runs" / "latest" / "weights.safetensors").is_file()
    command(tmp_path, "show", "-o", "net.svg")
    # and the exported file again
    found = command(tmp_path, "import", "runs/latest/export/model.onnx", "-o", "again.yaml", "--json")
    assert json.loads(found.stdout)["difference"] <= 1e-5


def test_a_module_is_imported_as_it_is_and_stays_so(tmp_path: Path) -> None:
    module = trained(Small()).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    data = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    made = graphspec.import_model(module, torch.zeros(2, 3, 16, 16), tmp_path / "my net!.yaml", data=data)
    assert made.difference <= 1e-5
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    compiled = graphspec.compile(made.spec, dry_run=True)
    assert compiled.spec.name == "my_net_"
    assert compiled.spec.config.data.mean == data["mean"]


@pytest.mark.parametrize("residual", [True, False])
def test_it_is_said_where_no_gate_can_stand(residual: bool, tmp_path: Path) -> None:
    module = trained(Small()) if residual else trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)))
    made = graphspec.import_model(module, torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml", gates="blocks", data={})
    assert bool(graphspec.load(made.spec)[1].gates()) == residual
    assert made.notes == (() if residual else ("there are no gates on blocks: none adds a branch to what it takes",))


@pytest.mark.parametrize(("classes", "task"), [(None, "classes"), (4, "classes"), (None, "maps")])
def test_a_spec_with_gates_halves_its_network(classes: int | None, task: str, tmp_path: Path) -> None:
    module = trained(Small() if task == "classes" else nn.Sequential(*list(Small().stem), nn.Conv2d(8, 4, 1)))
    made = graphspec.import_model(
        module, torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml", gates="channels", classes=classes, data={"name": "fake"}
    )
    opened, graph = graphspec.load(made.spec)
    search, retrain = opened.config.search, opened.config.retrain
    assert opened.config.budget.flops == total_cost(graph).flops // 2
    assert search.gates.gamma == "auto"
    assert (search.pretrain_epochs > 0) == (classes is not None)  # a fresh layer has to learn first
    assert (retrain.distil.weight > 0) == (classes is None and task == "classes")  # and no teacher has its outputs


def test_a_trained_network_is_halved(tmp_path: Path) -> None:
    data = {"name": "fake", "fake_size": 96}
    made = graphspec.import_model(
        trained(Small()), torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml", gates="channels", data=data
    )
    graphspec.compile(made.spec, out=tmp_path / "run", root=tmp_path)
    graphspec.search(tmp_path / "run", quiet=True)
    done = graphspec.retrain(tmp_path / "run", overrides=["retrain.epochs=1"], quiet=True)
    assert done.found.flops <= done.full.flops // 2


@pytest.mark.parametrize("data", [None, {}, {"mean": [0.5] * 3, "std": [0.2] * 3}])
def test_it_is_said_where_normalisation_is_not_known(data: dict[str, Any] | None, tmp_path: Path) -> None:
    made = graphspec.import_model(trained(Small()), torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml", data=data)
    assert any("data.mean and data.std are not known" in note for note in made.notes) == (data is None)


def test_another_number_of_classes(tmp_path: Path) -> None:
    made = graphspec.import_model(trained(Small()), torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml", classes=7)
    assert network_of(made.spec)(torch.zeros(1, 3, 16, 16)).shape == (1, 7)
    assert graphspec.load(made.spec)[0].classes == 7


@pytest.mark.slow
def test_normalisation_that_a_model_does_itself_goes_to_the_data(tmp_path: Path) -> None:
    noise = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    module = settled(classifier("inception_v3", transform_input=True), noise)
    made = graphspec.import_model(module, torch.zeros(2, 3, 96, 96), tmp_path / "a.yaml")
    data = graphspec.load(made.spec)[0].config.data
    raw = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    ours = [torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std)]
    assert relative(network_of(made.spec)((raw - ours[0]) / ours[1]), module((raw - mean) / std)) < 1e-5


def test_constants_of_a_librarys_weights_are_written_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str, pretrained: bool) -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
        return trained(Small()), (3, 20, 12), {"mean": [0.5] * 3, "std": [0.25] * 3}

    monkeypatch.setitem(LIBRARIES, "timm", small)
    fresh = import_source("timm:any", tmp_path / "a.yaml")
    known = import_source("timm:any", tmp_path / "b.yaml", weights="DEFAULT")
    specs = [graphspec.load(made.spec)[0] for made in (fresh, known)]
    assert [spec.config.data.std for spec in specs] == [None, (0.25,) * 3]
    assert not fresh.notes
    assert not known.notes
    assert specs[0].input == (3, 20, 12)


def test_code_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graphspec_test_mine.py").write_text("import torch\n\n\ndef make():\n    return torch.nn.Flatten()\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as where `graphspec` is run
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"trust_code": True, "shape": (1, 2, 2)}
    assert import_source("graphspec_test_mine:make", tmp_path / "a.yaml", **options).difference == 0


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "there is no such source": ("resnet18", {}),
    "no classifier 'resnet17'; did you mean": ("torchvision:resnet17", {}),
    "no classifier 'fcn_resnet50'": ("torchvision:fcn_resnet50", {}),
    "is code, which importing runs": ("tests.test_import_command:Small", {}),
    "failed: ModuleNotFoundError": ("no.such:thing", {"trust_code": True}),
    "gives int, not a torch.nn.Module": ("builtins:int", {"trust_code": True}),
    "there is no such file to import": ("missing.onnx", {}),
    "there are no gates on 'everything'": ("torchvision:resnet18", {"gates": "everything"}),
    "a spec is a .yaml file": ("torchvision:resnet18", {"path": Path("net.txt")}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_imported_is_said(message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, options = REFUSED[message]
    with pytest.raises(GraphspecError) as caught:
        import_source(source, **options)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("precious")
    with pytest.raises(GraphspecError, match=r"a.safetensors exists already"):
        graphspec.import_model(Small(), torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(Small(9).state_dict(), tmp_path / "other.safetensors")
    options: dict[str, Any] = {"trust_code": True, "weights": str(tmp_path / "other.safetensors")}
    with pytest.raises(GraphspecError, match=r"weights of another network: .*fc.weight"):
        import_source(f"{__name__}:Small", tmp_path / "a.yaml", **options)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"password: 1234" * 9)
    with pytest.raises(GraphspecError, match="is no ONNX model that can be run"):
        import_source(str(tmp_path / "a.onnx"), tmp_path / "a.yaml")


def test_sizes_must_be_those_of_the_file() -> None:
    with pytest.raises(GraphspecError, match="takes images of sizes 3,224,224"):
        import_source(str(LIGHT / "light_squeezenet.onnx"), shape=(3, 64, 64))


def test_a_file_that_leaves_sizes_open_is_told_how_to_say_them(tmp_path: Path) -> None:
    save_onnx(tmp_path / "line.onnx", [helper.make_node("Relu", ["x"], ["y"])], FLOAT, ["N", 1, 64, "width"])
    with pytest.raises(GraphspecError, match=r"takes images of sizes 1,64,any\n  try: --input, e.g. --input 1,64,224"):
        import_source(str(tmp_path / "line.onnx"), tmp_path / "a.yaml")


def test_a_network_that_classifies_nothing_is_told_of(tmp_path: Path) -> None:
    for last, given in ((nn.Conv2d(3, 4, 1), "4x8x8"), (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), "1")):
        path = tmp_path / f"{given}.yaml"
        notes = graphspec.import_model(last, torch.zeros(2, 3, 8, 8), path).notes
        assert f"it gives {given}, no number for each of several classes" in " ".join(notes)


def test_a_difference_is_refused_with_the_first_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    module = trained(Small())
    monkeypatch.setattr(module, "forward", lambda x: Small.forward(module, x) + (x.shape[0] == 3) * 1e-3)
    with pytest.raises(GraphspecError, match=r"another one than its source: output \[0, 0\] of 3 images is"):
        graphspec.import_model(module, torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_difference_is_seen_where_outputs_hardly_depend_on_the_image(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = trained(Small())
    with torch.no_grad():
        module.fc.weight.mul_(1e-7)
        module.fc.bias.copy_(torch.arange(4.0))
        network = read_module(module, torch.zeros(2, 3, 16, 16))
        module.fc.weight.set_(module.fc.weight * factor)
    monkeypatch.setattr("runtime.importing.read_module", lambda *_: network)
    with pytest.raises(GraphspecError, match="another one than its source") if factor > 1 else nullcontext():
        graphspec.import_model(module, torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml")


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (1e-6, True)])
def test_a_file_whose_outputs_hardly_depend_on_the_image_is_told_of(factor: float, told: bool, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal((48, 4)) * factor
    weights = {"w": drawn.astype(np.float32), "b": np.arange(4, dtype=np.float32)}
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"])]
    save_onnx(tmp_path / "a.onnx", nodes, FLOAT, IMAGES, weights)
    notes = " ".join(import_source(str(tmp_path / "a.onnx"), tmp_path / "a.yaml").notes)
    assert ("its outputs hardly differ between images" in notes) == told


def test_the_command_does_not_import_torch_to_refuse_a_size(tmp_path: Path) -> None:
    said = command(tmp_path, "import", "torchvision:resnet18", "--input", "3x224", code=1).stderr
    assert "is no size of an image" in said


FLOAT, IMAGES = TensorProto.FLOAT, ["N", 3, 4, 4]
STRANGE: dict[str, tuple[int, list[Any] | None, list[Any]]] = {
    "does not read float32 of shape": (TensorProto.UINT8, IMAGES, [helper.make_node("Relu", ["x"], ["y"])]),
    "strange.onnx: it does not read": (FLOAT, ["N", 4], [helper.make_node("Relu", ["x"], ["y"])]),
    "[N, C, H, W] or [N, C, T]": (FLOAT, None, [helper.make_node("Relu", ["x"], ["y"])]),
    "computes nothing": (FLOAT, IMAGES, [helper.make_node("Identity", ["x"], ["y"])]),
    "reads a constant": (FLOAT, IMAGES, [helper.make_node("Constant", [], ["y"], value_floats=[1.0])]),
}


@pytest.mark.parametrize("message", STRANGE)
def test_a_model_that_is_no_network_for_images_is_refused(message: str, tmp_path: Path) -> None:
    kind, sizes, nodes = STRANGE[message]
    save_onnx(tmp_path / "strange.onnx", nodes, kind, sizes)
    with pytest.raises(GraphspecError, match=re.escape(message)):
        import_source(str(tmp_path / "strange.onnx"), tmp_path / "a.yaml")
    assert not (tmp_path / "a.yaml").exists()


def test_images_that_no_memory_holds_are_one_message(tmp_path: Path) -> None:
    save_onnx(tmp_path / "open.onnx", [helper.make_node("Relu", ["x"], ["y"])], FLOAT, ["N", 3, "H", "W"])
    said = command(tmp_path, "import", "open.onnx", "--input", "3,100000000,100000000", code=1).stderr
    assert said.startswith("error: the system refuses: ")
    assert "Traceback" not in said


class Constant(Small):
    """Forgets its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc.weight


@pytest.mark.parametrize(("module", "message"), [(Constant(), "output reads a constant"), (nn.Identity(), "nothing")])
def test_a_module_that_computes_nothing_is_refused(module: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(GraphspecError, match=message):
        graphspec.import_model(module, torch.zeros(2, 3, 16, 16), tmp_path / "a.yaml")


@pytest.mark.parametrize("shape", [[1, 48], [1, -1], [-1, 48]])
def test_a_number_of_images_may_be_fixed_inside_a_model(shape: list[int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"s": np.array(shape), "w": rng.standard_normal((48, 5)).astype(np.float32), "b": np.zeros(5, np.float32)}
    nodes = [helper.make_node("Reshape", ["x", "s"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"])]
    save_onnx(tmp_path / "fixed.onnx", nodes, FLOAT, IMAGES, weights)
    assert import_source(str(tmp_path / "fixed.onnx"), tmp_path / "a.yaml").difference <= 1e-5


def save_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    kind: int,
    sizes: list[Any] | None,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> None:
    values = [helper.make_tensor_value_info("x", kind, sizes), helper.make_tensor_value_info("y", kind, None)]
    constants = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", [values[0]], [values[1]], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
