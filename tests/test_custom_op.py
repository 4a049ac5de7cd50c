"""Custom ops: a package installed by pip offers two under the entry point group `graphspec.ops`."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.tiny import environment, graphspec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
OPS = '''
from compiler.ops import Op, OpAttrs, Step, TypeMismatchError, attrs_of


class ShuffleAttrs(OpAttrs):
    """Channel shuffle."""

    groups: int = 2
    """Groups whose channels are mixed."""


def shuffle_shape(attrs, inputs):
    if inputs[0][0] % attrs.groups:
        raise TypeMismatchError(f"acme_shuffle with groups {attrs.groups} needs a multiple, found {inputs[0][0]}")
    return inputs[0]


acme_shuffle = Op(
    "acme_shuffle",
    "channels of all groups in turn",
    ShuffleAttrs,
    infer=shuffle_shape,
    torch="acme_ops.torch_rows:shuffle",
    onnx="acme_ops.onnx_rows:shuffle",
)


class GhostAttrs(OpAttrs):
    """Depthwise, then shuffle."""

    kernel: int
    """Side of the window."""


ghost = Op(
    "ghost",
    "depthwise convolution, channel shuffle, batch norm, relu",
    GhostAttrs,
    parts=lambda attrs: (
        Step("depthwise", "depthwise_conv", attrs_of({"kernel": attrs.kernel, "norm": "none", "act": "none"})),
        Step("shuffle", "acme_shuffle"),
        Step("norm", "batch_norm"),
        Step("act", "relu"),
    ),
)
'''
TORCH_ROWS = """
from torch import nn


def shuffle(attrs, inputs, output):
    return nn.ChannelShuffle(attrs.groups)
"""
ONNX_ROWS = """
import numpy as np


def shuffle(writer, node, attrs, inputs):
    channels, height, width = writer.input_shape(node)
    folded = writer.constant(f"{node.id}.folded", np.array([0, attrs.groups, channels // attrs.groups, height, width]))
    flat = writer.constant(f"{node.id}.flat", np.array([0, channels, height, width]))
    groups = writer.emit("Reshape", [inputs[0], folded], f"{node.id}.groups")
    turned = writer.emit("Transpose", [groups], f"{node.id}.turned", perm=[0, 2, 1, 3, 4])
    return writer.emit("Reshape", [turned, flat], node.id)
"""
ENTRY_POINTS = """\
[graphspec.ops]
acme_shuffle = acme_ops:acme_shuffle
ghost = acme_ops:ghost
"""
SPEC = """\
graphspec: 1
name: shuffled
input: [4, 6, 6]
classes: 3
blocks:
  body:
    type: "[C, H, W] -> [C, H, W]"
    levels: {count: 2, ops: [ghost_3x3, {op: acme_shuffle, name: mixed}]}
    nodes:
      out: {op: project, from: levels.*, gated: true}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {op: global_avg_pool, from: in}
      out: {op: linear, from: pool}
network: [{body: 2}, head]
"""
PARITY = """
import sys
import numpy as np, onnxruntime, torch
from compiler.elaborate.builder import load
from compiler.ir.graph import Model
from compiler.lowering.torch.fx import initialise, lower, weights_of
from compiler.lowering.onnx.model import check, emit
from compiler.passes.pipeline import TO_EXPORT, TO_INHERIT
graph = load("spec.yaml")[1]
model = TO_INHERIT.run(Model(graph, dict.fromkeys(graph.gates(), 1.0), {}))
module = lower(model.graph)
initialise(module, 1)
module.eval()
image = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)
wanted = module(torch.from_numpy(image)).detach().numpy()
proto = emit(TO_EXPORT.run(Model(model.graph, {}, weights_of(module))))
check(proto)
session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
found = session.run(None, {session.get_inputs()[0].name: image})[0]
np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
assert np.abs(wanted).max() > 1e-4
print("same")
"""


def wheel(folder: Path, ops: str = OPS, entry_points: str = ENTRY_POINTS) -> Path:
    """A wheel of the package, as a build tool would make it."""
    info = "acme_ops-1.0.dist-info"
    contents = {
        "acme_ops/__init__.py": ops,
        "acme_ops/torch_rows.py": TORCH_ROWS,
        "acme_ops/onnx_rows.py": ONNX_ROWS,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: acme-ops\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points,
    }
    record = f"{info}/RECORD"
    contents[record] = "".join(f"{name},,\n" for name in [*contents, record])
    path = folder / "acme_ops-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in contents.items():
            archive.writestr(name, text)
    return path


def unpacked(folder: Path, **contents: str) -> None:
    """The package with other contents in `site`, as pip would put it there."""
    with zipfile.ZipFile(wheel(folder, **contents)) as archive:
        archive.extractall(folder / "site")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("acme")
    (folder / "spec.yaml").write_text(SPEC)
    options = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--quiet"]
    target = ["--target", str(folder / "site"), str(wheel(folder))]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *target], check=True, capture_output=True)
    return folder


def command(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return graphspec(folder, *arguments, code=code, site=folder / "site")


def test_the_catalogue_lists_it(package: Path) -> None:
    records = {record["name"]: record for record in json.loads(command(package, "ops", "--json").stdout)}
    assert records["ghost"]["doc"] == "depthwise convolution, channel shuffle, batch norm, relu"
    (groups,) = records["acme_shuffle"]["attributes"]
    assert groups == {"name": "groups", "required": False, "default": 2, "help": "Groups whose channels are mixed."}


def test_a_spec_may_use_it_like_any_other(package: Path) -> None:
    found = json.loads(command(package, "compile", "spec.yaml", "--dry-run", "--json").stdout)
    depthwise, norm, project, linear = 4 * 9, 8, 16 * 4 + 8, 4 * 3 + 3
    assert found["params"] == 2 * (2 * (depthwise + 4 + norm) + project) + linear
    text = command(package, "opt", "spec.yaml", "-p", "expand-parts").stdout
    assert "%stage0.block0.level0.ghost_3x3.shuffle = acme_shuffle(" in text


def test_torch_and_onnx_give_the_same_with_it(package: Path) -> None:
    environ = environment(package / "site")
    done = subprocess.run([sys.executable, "-c", PARITY], cwd=package, env=environ, capture_output=True, check=False)
    assert done.stdout == b"same\n", done.stderr


def test_its_mistakes_have_a_place(package: Path) -> None:
    (package / "wrong.yaml").write_text(SPEC.replace("op: acme_shuffle", "op: acme_shuffle, groups: 3"))
    done = command(package, "compile", "wrong.yaml", "--dry-run", code=1)
    assert done.stderr.startswith("wrong.yaml:8:")
    assert "acme_shuffle with groups 3 needs a multiple, found 4" in done.stderr
    (package / "wrong.yaml").write_text(SPEC.replace("ghost_3x3", "gost_3x3"))
    assert "did you mean 'ghost_3x3'?" in command(package, "compile", "wrong.yaml", "--dry-run", code=1).stderr


BROKEN = {
    "import": (
        {"ops": "import no_such_module\n"},
        "the custom op 'acme_shuffle' (acme_ops:acme_shuffle) cannot be imported",
    ),
    "kind": (
        {"ops": "acme_shuffle = ghost = 1\n"},
        "must be a compiler.ops.Op called 'acme_shuffle', not 1",
    ),
    "taken": (
        {"entry_points": "[graphspec.ops]\nconv = acme_ops:conv\n", "ops": OPS.replace("ghost", "conv")},
        "the custom op 'conv' (acme_ops:conv) has the name of an op that is there already",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_named(tmp_path: Path, name: str) -> None:
    contents, message = BROKEN[name]
    unpacked(tmp_path, **contents)
    assert message in command(tmp_path, "ops", code=1).stderr


FINISHED = '"norm": "none", "act": "none"'
USELESS = {
    "parts of parts": (FINISHED, "", "the part 'depthwise' of the op 'ghost' is made of parts itself"),
    "no shape rule": ("infer=shuffle_shape,", "", "the op 'acme_shuffle' has neither parts nor a shape rule"),
}


@pytest.mark.parametrize("name", USELESS)
def test_an_op_that_cannot_work_is_named(tmp_path: Path, name: str) -> None:
    old, new, message = USELESS[name]
    assert old in OPS
    (tmp_path / "spec.yaml").write_text(SPEC)
    unpacked(tmp_path, ops=OPS.replace(old, new))
    assert message in command(tmp_path, "compile", "spec.yaml", code=1).stderr
