"""Which networks `graphspec import` takes: classifiers of torchvision, models of timm, ONNX files; random weights.

    python -m benchmarks.imports [--timm] [--onnx FILE ...] [--only NAME ...] [--json]

Every model is imported as the command does it, which compares the outputs at two batch sizes: what is counted as
imported differs by at most 1e-5 of the largest output. Normalisations get scales and shifts of their own first, and the
statistics of some images, so that no tensor can be taken for another and outputs depend on the image. `--timm` asks for
the package timm, `--onnx` adds files; the light models of the package onnx are always among them. A refusal is told by
its first line.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from benchmarks.common import parser, reason, show, table
from compiler.analysis.coupling import FIXED, couple
from compiler.elaborate.builder import load
from compiler.errors import GraphspecError
from compiler.importing.onnx_file import image_shape
from compiler.ops import op
from runtime.importing import LIBRARIES, Imported, import_model, import_source

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SIDE, SIDES = 64, {  # of images, in pixels; with few, the statistics of a deep network make it amplify rounding
    "inception": 96, "alexnet": 80, "vit": 224, "maxvit": 224, "efficientnet_v2_l": 128,
}  # fmt: skip
TEXT = (64, 192)  # height and width of images where an ONNX file leaves them open
HUGE = ("regnet_y_128gf", "vit_h_14")  # more than some machines have memory for: only where they are named
TIMM = (
    "convnext_atto", "convnext_tiny_hnf", "convnextv2_atto", "cspdarknet53", "cspresnet50", "darknet17",
    "darknet53", "densenet121", "dla34", "dla46_c", "dla46x_c", "dpn48b", "ecaresnet26t", "efficientnet_b0",
    "efficientnet_lite0", "ese_vovnet19b_dw", "fbnetc_100", "fbnetv3_b", "gernet_s", "ghostnet_050",
    "ghostnetv2_100", "hardcorenas_a", "hgnet_tiny", "hrnet_w18_small", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lcnet_050", "legacy_xception", "mixnet_s",
    "mnasnet_small", "mobilenetv2_050", "mobilenetv3_large_075", "mobilenetv3_small_050", "mobilenetv4_conv_small",
    "mobileone_s0", "nasnetalarge", "nfnet_l0", "pnasnet5large", "regnetx_002", "regnety_002", "regnetz_005",
    "repvgg_a0", "res2net50_14w_8s", "res2next50", "resnest14d", "resnet18", "resnet18d", "resnet26t", "resnet50",
    "resnet50_gn", "resnetblur18", "resnext26ts", "rexnet_100", "selecsls42b", "seresnet18", "seresnext26d_32x4d",
    "skresnet18", "spnasnet_100", "tf_efficientnet_lite0", "tf_efficientnetv2_b0", "tf_mobilenetv3_small_075",
    "vgg11", "vgg11_bn", "vovnet39a", "xception41",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One model: imported with this largest difference, or refused for a reason."""

    source: str
    family: str
    difference: float | None
    seconds: float
    why: str = ""
    prunable: float | None = None  # share of the channels of all layers with weights that may go


def attempt(source: str, family: str, act: Callable[[], Imported]) -> Outcome:
    """Import one model."""
    started = time.perf_counter()
    try:
        made = act()
        return Outcome(source, family, made.difference, time.perf_counter() - started, prunable=prunable(made.spec))
    except GraphspecError as error:
        return Outcome(source, family, None, time.perf_counter() - started, reason(error))


def prunable(spec: Path) -> float:
    """The share of the channels that layers with weights make which `gates: {channels: auto}` puts gates on."""
    graph = load(spec)[1]
    layers = [node.id for node in graph.nodes() if op(node.op).sets_channels]
    made = [found for node_id in layers for found in couple(graph).of(node_id)]
    return sum(found != FIXED for found in made) / len(made)


def family_of(name: str) -> str:
    """What a model's name begins with, versions and sizes left out."""
    begin = re.match(r"(wide_resnet|regnet_[xy]|efficientnet_v2|mobilenet_v\d|inception_v\d|swin_v2|[a-z]+)", name)
    return begin[1].strip("_") if begin else name


def stirred(module: nn.Module) -> nn.Module:
    """The module with other scales and shifts in its batch norms than it starts with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(0, 0.1, generator=generator)
    return module


@torch.no_grad()
def settled(module: nn.Module, images: Tensor) -> nn.Module:
    """The module with statistics of images `(N, C, H, W)` in its batch norms, or with larger weights where it has no
    norms, so that what it gives depends on what it takes: else the values of a deep network fade, and two networks look
    equal that are not.
    """
    norms = [part for part in module.eval().modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    module(images)
    for part in [] if norms else module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, generator=torch.Generator().manual_seed(0))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return module.eval()


def of_library(library: str, name: str, folder: Path) -> Outcome:
    """A model of torchvision or timm, with images of few pixels."""
    side = next((side for begin, side in SIDES.items() if name.startswith(begin)), SIDE)
    torch.manual_seed(0)
    path = folder / f"{library}_{name}.yaml"

    def act() -> Imported:
        module = settled(stirred(LIBRARIES[library](name, False)[0]), torch.randn(4, 3, side, side))
        return import_model(module, torch.zeros(2, 3, side, side), path)

    found = attempt(f"{library}:{name}", family_of(name) if library == "torchvision" else "timm", act)
    path.with_suffix(".safetensors").unlink(missing_ok=True)
    return found


def randomised(path: Path) -> onnx.ModelProto:
    """A file whose weights may all be alike (`ConstantOfShape`), with weights of its own."""
    model, rng, kept = onnx.load(path), np.random.default_rng(1), []
    shapes = {tensor.name: tuple(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer if tensor.dims}
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = shapes[node.input[0]]
        deviation = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        noise = rng.standard_normal(shape, np.float32) * deviation
        array = rng.random(shape, np.float32) + np.float32(0.5) if len(shape) == 1 else noise
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def of_file(path: Path, folder: Path) -> Outcome:
    """An ONNX file; sizes that it leaves open are those of a line of text."""
    copy = folder / path.name
    model = randomised(path)
    onnx.save(model, copy)
    shape = tuple(own or side for own, side in zip(image_shape(model)[1:], (3, *TEXT), strict=True))
    found = attempt(path.name, "ONNX", lambda: import_source(str(copy), folder / f"{path.stem}.yaml", shape=shape))
    copy.unlink()
    return found


def outcomes(with_timm: bool, files: list[Path], only: list[str], folder: Path) -> Iterator[Outcome]:
    """All models, or only those of these names."""
    from torchvision import models

    names = [("torchvision", name) for name in models.list_models(module=models)]
    names += [("timm", name) for name in TIMM] if with_timm else []
    for library, name in names:
        if name in only or (not only and name not in HUGE):
            yield of_library(library, name, folder)
    for path in [*sorted(LIGHT.glob("*.onnx")), *files]:
        if not only or path.stem in only:
            yield of_file(path, folder)


def row(family: str, found: list[Outcome]) -> list[object]:
    """A line of the table."""
    taken = [one.difference for one in found if one.difference is not None]
    refused: dict[str, list[str]] = {}  # by the kinds of calls that no op computes, or another reason
    for one in found:
        if one.difference is None:
            why = one.why.rpartition(": ")[2] if "no op of ours computes" in one.why else one.why
            refused.setdefault(why, []).append(one.source.partition(":")[2] or one.source)
    texts = [f"{', '.join(names)}: {why}" for why, names in refused.items()]
    shares = [100 * one.prunable for one in found if one.prunable is not None]
    share = f"{min(shares):.0f} to {max(shares):.0f}" if shares else None
    return [family, len(found), len(taken), max(taken, default=None), share, "; ".join(texts)]


def main() -> None:
    """Import all and print."""
    options = parser(__doc__)
    options.add_argument("--timm", action="store_true", help="models of timm, too")
    options.add_argument("--onnx", nargs="*", default=[], type=Path, metavar="FILE", help="further ONNX files")
    options.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these models only")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="imports-") as folder:
        found = list(outcomes(args.timm, args.onnx, args.only, Path(folder)))
    families = dict.fromkeys(one.family for one in found)
    rows = [row(family, [one for one in found if one.family == family]) for family in families]
    header = ["family", "models", "imported", "largest difference", "channels that may go, %", "refused"]
    show(args.json, {"outcomes": [asdict(one) for one in found]}, [table(header, rows)])


if __name__ == "__main__":
    main()
