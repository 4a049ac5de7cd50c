"""Every example runs as it is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TINY, environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def example(name: str) -> object:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_images_and_the_onnx_file(in_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = example("own_images")
    settings = [
        "search.steps_per_epoch=20",
        "retrain.steps_per_epoch=20",
        "search.pretrain_epochs=6",
        "search.epochs=4",
        "budget.flops=1M",
        "retrain.epochs=10",
        "retrain.augment=none",
    ]
    own.main(in_process / "images", [*settings, "symbols.width=8"])  # type: ignore[attr-defined]
    out, err = capsys.readouterr()
    assert "within the noise of chance" not in err
    models = [Path(line.removeprefix("wrote ")) for line in out.splitlines() if line.startswith("wrote ")]
    images = sorted((in_process / "images" / "test").rglob("*.png"))
    example("use_onnx").main(models[-1], images)  # type: ignore[attr-defined]
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == len(images) == 90
    right = [answer.split()[1] == path.parent.name for answer, path in zip(answers, images, strict=True)]
    assert sum(right) > 0.9 * len(images)


def test_gamma_strategy(in_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = example("gamma_strategy")
    assert strategy.span("b/level2.x<level0.y") == 2  # type: ignore[attr-defined]
    assert strategy.span("b/mix<level0.y") == strategy.span("b/level1.x<in") == 1  # type: ignore[attr-defined]
    (in_process / "tiny.yaml").write_text(TINY)
    strategy.main(in_process / "tiny.yaml", ["search.pretrain_epochs=0", "search.epochs=1"])  # type: ignore[attr-defined]
    assert "of 50 edges" in capsys.readouterr().out


CUSTOM_OP = """
import numpy, onnxruntime, torch
from compiler.elaborate.builder import load
from compiler.ir.graph import Model
from compiler.lowering.torch.fx import lower, weights_of
from compiler.lowering.onnx.model import check, emit
from compiler.passes.pipeline import TO_COMPACT
_, graph = load("digits_scaled.yaml")
assert any(node.op == "channel_scale" for node in graph.nodes())
graph = TO_COMPACT.run(Model(graph)).graph
network = lower(graph).eval()
for parameter in network.parameters():
    torch.nn.init.normal_(parameter, 0.5, 0.3)
proto = emit(Model(graph, {}, weights_of(network)))
check(proto)
x = torch.randn(3, 1, 8, 8)
(found,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"image": x.numpy()})
numpy.testing.assert_allclose(found, network(x).detach().numpy(), rtol=1e-3, atol=1e-3 * abs(found).max())
"""


def test_custom_op(tmp_path: Path) -> None:
    """As if installed: pip would write these two files beside the package."""
    installed = tmp_path / "graphspec_channel_scale-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: graphspec-channel-scale\nVersion: 0.1.0\n")
    package = ROOT / "examples" / "custom_op"
    pyproject = (package / "pyproject.toml").read_text(encoding="utf-8")
    entry = re.search(r'^channel_scale = "(.*)"$', pyproject, re.MULTILINE)
    assert entry is not None
    (installed / "entry_points.txt").write_text(f"[graphspec.ops]\nchannel_scale = {entry[1]}\n")
    path = ":".join([str(tmp_path), str(package), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", CUSTOM_OP], cwd=package, env=environment() | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
