"""Imports run one way: language <- IR <- passes <- lowerings <- runtime <- command line and API."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LANGUAGE = {"errors", "names", "dims", "source", "config", "spec", "parse", "schema", "overrides", "extends"}
HEAVY = {"torch": ("compiler/lowering/torch_", "compiler/lowering/fx", "runtime/"), "networkx": ("compiler/ir.py",)}


def layer(module: str) -> int:
    """The height of a module in the import order."""
    package, _, rest = module.partition(".")
    if package == "graphspec":
        return 0 if rest.split(".")[0] in LANGUAGE else 5
    if package == "runtime":
        return 4
    if rest.startswith("lowering") or rest == "draw" or rest == "diff":
        return 3
    return 2 if rest.startswith(("passes", "pipeline")) else 1


def files() -> list[Path]:
    return [p for package in ("graphspec", "compiler", "runtime") for p in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names if (ROOT / (node.module or "").replace(".", "/") / f"{a.name}.py").exists()}
    return {name for name in found if name.split(".")[0] in ("graphspec", "compiler", "runtime")}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    module = module_of(path)
    for name in imported(path) - {"graphspec", "compiler", "runtime", "compiler.passes", "compiler.lowering"}:
        assert layer(name) <= layer(module), f"{module} imports {name}, which stands above it"


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text())
    names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    for package, homes in HEAVY.items():
        assert package not in names or where.startswith(homes), f"{where} imports {package}"
