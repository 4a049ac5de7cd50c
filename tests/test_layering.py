"""Imports run one way, graphspec -> runtime -> compiler, in no circle; heavy packages stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parent.parent
FLOORS = ("compiler", "runtime", "graphspec")  # the lowest first
HEAVY = {"torch": ("compiler/lowering/torch/", "compiler/importing/", "runtime/"), "torchvision": "runtime/",
         "networkx": "compiler/ir/", "onnx": ("compiler/lowering/onnx/", "compiler/importing/", "runtime/"),
         "onnxruntime": "runtime/", "typer": "graphspec/"}  # fmt: skip
PATHS = [path.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
FILES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in PATHS}


def imports(module: str) -> set[str]:
    """What a module imports, anywhere in it; of `from package import module` the module."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / FILES[module]).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in FILES else node.module for name in names}
    return found


def test_imports_run_downwards_and_in_no_circle() -> None:
    graph = nx.DiGraph((m, other) for m in FILES for other in imports(m) & FILES.keys())
    assert not [(a, b) for a, b in graph.edges if FLOORS.index(a.split(".")[0]) < FLOORS.index(b.split(".")[0])]
    assert not [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1]


def test_heavy_packages_stay_where_they_belong() -> None:
    for module, file in FILES.items():
        for package in {name.partition(".")[0] for name in imports(module)} & HEAVY.keys():
            assert file.as_posix().startswith(HEAVY[package]), f"{module} imports {package}"
