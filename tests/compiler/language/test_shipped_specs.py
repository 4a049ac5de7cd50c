"""The search spaces that ship: they elaborate, have the paper's numbers of gates, and read fast without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compiler.elaborate.builder import load
from compiler.ir.graph import OUTPUT
from compiler.ir.verify import verify
from compiler.language.overrides import overrides_of

SPECS = Path(__file__).parents[3] / "specs"
SHIPPED = sorted(SPECS.glob("*.yaml"))
GATED_INPUT = "blocks.normal.levels.gate_input=true"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_specs_elaborate_and_explain_themselves(path: Path) -> None:
    spec, graph = load(path, overrides_of(["classes=3"] if path.stem in ("own_images", "photos") else []))
    assert spec.name == path.stem.replace("_", "-")
    assert graph.gates()
    verify(graph)
    assert graph.node(OUTPUT).shape in ((spec.classes,), (spec.classes, 1, 1))
    assert path.read_text().count("#") >= 4


@pytest.mark.parametrize(
    ("name", "overrides", "gates"),
    [
        ("dso_nas_cifar10_full", [], 2980),
        ("dso_nas_cifar10_full", [GATED_INPUT], 3076),
        ("dso_nas_cifar10_share", [], 128),
        ("dso_nas_cifar10_share", [GATED_INPUT], 132),
        ("dso_nas_imagenet", [], 2858),
        ("dso_nas_imagenet", ["gates.share=block"], 130),
    ],
)
def test_numbers_of_gates(name: str, overrides: list[str], gates: int) -> None:
    _, graph = load(SPECS / f"{name}.yaml", overrides_of(overrides))
    assert len(graph.gates()) == gates
    assert sum(block.kind == "normal" for block in graph.blocks) == (23 if "imagenet" in name else 24)


def test_the_imagenet_stem_quarters_the_image() -> None:
    spec, graph = load(SPECS / "dso_nas_imagenet.yaml")
    assert [entry.repeat for entry in spec.network if entry.repeat] == [2, 2, 13, 6]
    assert graph.node("stem.first").shape == (14, 112, 112)
    assert graph.node("stem.out").shape == (28, 56, 56)


def test_parsing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from compiler.language.parse import parse_file; parse_file(sys.argv[1]);"
        "assert not {'torch', 'numpy', 'networkx', 'onnx'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(SPECS / "dso_nas_cifar10_full.yaml")], check=True)
