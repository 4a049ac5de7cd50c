"""`graphspec import`: open a trained network, read it as a spec, check that both compute the same, write two files."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compiler.analysis.costs import total_cost
from compiler.analysis.weights import fitting, weight_shapes
from compiler.elaborate.builder import load
from compiler.errors import GraphspecError, PassError, RunError, did_you_mean
from compiler.importing.calls import Network
from compiler.importing.equal import Comparison, require_equal
from compiler.importing.exported import read_module
from compiler.importing.fuse import fused
from compiler.importing.head import with_classes
from compiler.importing.onnx_file import image_shape, read_onnx, without_end
from compiler.importing.written import Written, write
from compiler.ir.graph import Graph, TensorType
from compiler.language.config import BudgetConfig
from compiler.lowering.torch.fx import load_weights, lower
from compiler.ops import Shape
from runtime.installed import named
from runtime.jobs.advice import refuse_budget
from runtime.rundir.files import MOST_TENSORS, read_bytes, write_bytes, write_text
from runtime.rundir.start import tensors_of

if TYPE_CHECKING:
    import numpy as np

IMAGE: Shape = (3, 224, 224)
WEIGHTS = ".safetensors"
UNSAID = "data.mean and data.std are not known: if its weights were trained with some, write them into the spec"
DEFAULT = "DEFAULT"  # the weights that a library has for its model


@dataclass(frozen=True)
class Imported:
    """What was written, and how far its outputs are from the source's, over the largest output."""

    spec: Path
    weights: Path
    difference: float
    notes: tuple[str, ...]


@dataclass
class Source:
    """A network to import: what reads it, what computes it, and what is known of its images."""

    name: str
    network: Network
    compute: Callable[[Tensor], Tensor]
    data: dict[str, Any] | None = None  # mean and std of its images, if anybody said
    left_out: str = ""  # what a model ended in that `compute` does not do


def import_model(
    module: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    classes: int | None = None,
    gates: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> Imported:
    """Write a torch module as the spec `path` and its weights beside it; `example: (N, C, ...)` is what it reads.

    `data` is the spec's section of that name: `mean` and `std` of the images that the weights were trained on. Without
    it a note asks for them.
    GraphspecError if something in it cannot be expressed, or the result computes something else.
    """
    target = _checked(Path(path), gates)
    module = copy.deepcopy(module).cpu()  # the caller's stays as it is
    known = None if data is None else dict(data)
    return _write(_read(target.stem, module, known, example.cpu()), target, classes, gates)


def import_source(
    source: str,
    path: Path | None = None,
    *,
    weights: str | None = None,
    shape: Shape | None = None,
    classes: int | None = None,
    gates: str | None = None,
    trust_code: bool = False,
) -> Imported:
    """The same for what `graphspec import` takes; `path` is the spec to write, by default called after the source."""
    kind, _, name = source.partition(":")
    is_file = source.endswith(".onnx")
    if not is_file and not name:
        raise GraphspecError(
            f"{source}: there is no such source\n"
            "  try: torchvision:NAME, timm:NAME, package.module:function, or the path of an .onnx file"
        )
    target = _checked(path or Path(f"{Path(source).stem if is_file else name}.yaml"), gates)
    if is_file:
        return _write(_onnx(Path(source), weights, shape), target, classes, gates)
    if kind in LIBRARIES:
        module, known, said = LIBRARIES[kind](name, weights == DEFAULT)
        data = said if weights else {}
    else:
        module, known, data = _made_by(source, trust_code), IMAGE, None
    if weights not in (None, DEFAULT):
        _load_state(module, Path(str(weights)))
    opened = _read(target.stem, module, data, torch.zeros(2, *(shape or known)))
    return _write(opened, target, classes, gates)


def _checked(path: Path, gates: str | None) -> Path:
    """The spec to write, if it may be written."""
    if path.suffix not in (".yaml", ".yml"):
        raise GraphspecError(f"{path}: a spec is a .yaml file\n  try: -o {path}.yaml")
    taken = next((file for file in (path, path.with_suffix(WEIGHTS)) if file.exists()), None)
    if taken is not None:
        raise RunError(f"{taken} exists already\n  try: another name (-o), or remove it")
    if unknown := _kinds(gates) - {"channels", "blocks"}:
        raise GraphspecError(f"--gates: there are no gates on {min(unknown)!r}\n  try: --gates channels,blocks")
    return path


def _kinds(gates: str | None) -> set[str]:
    """What is to have gates, as written: `channels,blocks`."""
    return {kind.strip() for kind in gates.split(",")} if gates else set()


def _read(name: str, module: nn.Module, data: dict[str, Any] | None, example: Tensor) -> Source:
    """The source of a module. GoogLeNet and Inception may turn ImageNet's numbers into -1..1: then `data` says so."""
    if getattr(module, "transform_input", False):
        vars(module)["transform_input"] = False
        data = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return Source(name, read_module(module, example), module.eval(), data)


def _write(source: Source, path: Path, classes: int | None, gates: str | None) -> Imported:
    """Check the spec against its source and write it; nothing is written if they differ."""
    network, weights = fused(source.network), path.with_suffix(WEIGHTS)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).lstrip("._-")[:100] or "imported"
    kinds = _kinds(gates)
    settings: dict[str, Any] = {"gates": {"channels": "auto"}} if "channels" in kinds else {}
    settings |= {"data": source.data} if source.data else {}
    as_spec = partial(write, name=name, weights=weights.name, gated="blocks" in kinds)
    made = as_spec(network, settings=settings)
    graph, module = _read_back(made)
    compared = require_equal(source.compute, module, network.input, network.end)
    if classes is not None:
        network = with_classes(network, classes)
        made = as_spec(network, settings=settings)
        graph, _ = _read_back(made)
    given = TensorType(network.shape(network.output))
    if graph.gates():
        smaller = _smaller(graph, fresh=classes is not None, classifies=_classifies(given))
        made = as_spec(network, settings=settings | smaller)
    write_bytes(weights, _saved(made.weights))
    write_text(path, made.text)
    notes = _notes(source, network.end or source.left_out, compared, given)
    if "blocks" in kinds and "gated: true" not in made.text:
        notes.append("there are no gates on blocks: none adds a branch to what it takes")
    return Imported(path, weights, compared.difference, tuple(notes))


def _classifies(given: TensorType) -> bool:
    """Whether outputs of this shape are a number for each of several classes."""
    return len(given.shape) == 1 and given.numel > 1


def _notes(source: Source, end: str, compared: Comparison, given: TensorType) -> list[str]:
    """What a user should know of a network that gives `given`; `end` is what it ended in and was left out."""
    notes = [f"left out the {end} at the end: the loss and export.probabilities have it"] if end else []
    if source.data is None:
        notes.append(UNSAID)
    if compared.blind:
        notes.append(
            f"its outputs hardly differ between images ({compared.spread:.0e} of the largest), so comparing them says "
            "little; is it trained?"
        )
    if not _classifies(given):
        notes.append(f"it gives {given}, no number for each of several classes: name a task for that (docs/tasks.md)")
    return notes


def _smaller(graph: Graph, *, fresh: bool, classifies: bool) -> dict[str, Any]:
    """Settings of a search that halves the multiply-adds of a trained network, and of fine-tuning what it finds.

    `fresh`: its last layer is untrained, so all gates stay open at first, and its outputs are none to learn from.
    """
    gates = {"gamma": "auto", "adaptive": "flops"}
    search = {"pretrain_epochs": 4 if fresh else 0, "epochs": 4, "lr": 0.02, "gates": gates}
    teacher = {} if fresh or not classifies else {"distil": {"weight": 0.5}}
    return {
        "search": search | {"prune": {"every": 0.25, "patience": 1}},
        "retrain": {"epochs": 10, "lr": 0.02} | teacher,
        "budget": _half(graph),
    }


def _half(graph: Graph) -> dict[str, int]:
    """A budget of half the multiply-adds, with the largest usual step of widths by which a network can come down to it.

    Where none can, `graphspec compile` refuses the spec and names the range.
    """
    half = {"flops": total_cost(graph).flops // 2}
    for step in (4, 2, 1):
        with suppress(PassError):
            refuse_budget(graph, BudgetConfig.model_validate(half))
            break
        half["round_to"] = step
    return half


def _read_back(made: Written) -> tuple[Graph, nn.Module]:
    """The network of a spec as it will be read again, with its weights."""
    with tempfile.TemporaryDirectory(prefix="graphspec-import-") as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(made.text)
        _, graph = load(path)
    module = lower(graph)
    load_weights(module, fitting(made.weights, weight_shapes(graph)))
    return graph, module


def _saved(weights: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    import numpy as np
    import safetensors.numpy

    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in weights.items()})


def _load_state(module: nn.Module, path: Path) -> None:
    """Put a file's weights into a module; RunError if they are for another one."""
    given = {name: torch.as_tensor(array) for name, array in tensors_of(path).items()}
    try:
        module.load_state_dict(given)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise RunError(
            f"{path}: holds the weights of another network: {lines[:400]}\n  try: the file for it"
        ) from error


def _torchvision(name: str, pretrained: bool) -> tuple[nn.Module, Shape, dict[str, Any]]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise GraphspecError(f"torchvision has no classifier {name!r}{did_you_mean(name, known)}")
    default = models.get_model_weights(name).DEFAULT
    how = default.transforms()
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") and not pretrained else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = _fetched(lambda: models.get_model(name, weights=default if pretrained else None, **quick))
    return module, (3, *how.crop_size * 2), {"mean": list(how.mean), "std": list(how.std)}


def _timm(name: str, pretrained: bool) -> tuple[nn.Module, Shape, dict[str, Any]]:
    try:
        import timm
    except ImportError as error:
        raise GraphspecError("timm is not installed\n  try: pip install timm") from error
    if not timm.is_model(name):
        raise GraphspecError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    module = _fetched(lambda: timm.create_model(name, pretrained=pretrained, exportable=True))
    known: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    return module, tuple(known["input_size"]), {"mean": list(known["mean"]), "std": list(known["std"])}


def _fetched(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except OSError as error:  # no network, no space
        raise GraphspecError(f"the weights cannot be had: {error}\n  try: --weights FILE") from error


LIBRARIES = {"torchvision": _torchvision, "timm": _timm}


def _made_by(source: str, trust_code: bool) -> nn.Module:
    """The module that a user's function makes; GraphspecError if it is not trusted or makes none."""
    if not trust_code:
        raise GraphspecError(f"{source} is code, which importing runs\n  try: --trust-code, if you trust it")
    try:
        made = named(source)()
    except Exception as error:  # of the user's code, or of its import
        raise GraphspecError(f"{source} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise GraphspecError(f"{source} gives {type(made).__name__}, not a torch.nn.Module")
    return made


def _onnx(path: Path, weights: str | None, shape: Shape | None) -> Source:
    """The source of an ONNX file, of the size that the file or `shape` says."""
    import onnx

    from runtime.inference.network import OnnxNetwork

    if weights is not None:
        raise GraphspecError(f"--weights {weights}: an ONNX file has its own\n  try: without --weights")
    if not path.is_file():
        raise RunError(f"{path}: there is no such file to import\n  try: the path of an .onnx file")
    content = read_bytes(path, MOST_TENSORS)
    try:
        model = onnx.load_from_string(content)
        batch, *sizes = image_shape(model)
        end = without_end(model)
        ours = OnnxNetwork(path, content=model.SerializeToString())
    except RunError:
        raise
    except GraphspecError as error:
        raise RunError(f"{path}: {error}") from error
    except Exception as error:  # of protobuf, which does not say which
        raise RunError(f"{path}: is no ONNX model that can be run: {str(error).splitlines()[0]}") from error
    wanted: tuple[int | None, ...] = shape or tuple(sizes)
    if len(wanted) != len(sizes) or not all(n and own in (None, n) for own, n in zip(sizes, wanted, strict=True)):
        known, example = (",".join(str(n or other) for n in sizes) for other in ("any", IMAGE[-1]))
        raise GraphspecError(f"{path}: takes images of sizes {known}\n  try: --input, e.g. --input {example}")

    def compute(images: Tensor) -> Tensor:
        parts = torch.split(images, batch or 1)  # one may be fixed inside a model whose input leaves the number open
        return torch.cat([torch.from_numpy(ours(part.numpy())) for part in parts])

    try:
        network = read_onnx(model, tuple(int(size or 0) for size in wanted))
    except GraphspecError as error:
        raise GraphspecError(f"{path}: {error}") from error
    return Source(path.stem, network, compute, left_out=end)
