"""Imports run one way: language <- IR <- passes <- lowerings <- runtime <- command line and API."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("graphspec", "compiler", "runtime")
LANGUAGE, IR, PASSES, LOWERINGS, RUNTIME, TOP = range(6)

LANGUAGE_MODULES = {
    "config", "dims", "errors", "findings", "garbage", "grammar", "layers", "names", "parse", "reader", "sections",
    "source", "spec",
}  # fmt: skip
TOP_MODULES = {
    "", "__main__", "advice", "api", "cli", "cost_report", "export_command", "listings", "reference", "run_commands",
    "schema", "shadowing", "starters", "targets", "training_commands",
}  # fmt: skip
COMPILER_MODULES = {
    IR: {"", "catalogue", "costs", "elaborate", "guards", "ir", "ops", "template", "text", "verify"},
    PASSES: {"architecture", "derive", "passes", "pipeline", "random_architecture"},
    LOWERINGS: {"diff", "draw", "drawing", "lowering"},
}
HEAVY = {
    "torch": ("compiler/lowering/torch_", "compiler/lowering/fx", "runtime/"),
    "torchvision": ("runtime/",),
    "networkx": ("compiler/ir.py",),
    "onnx": ("compiler/lowering/onnx", "runtime/"),
    "onnxruntime": ("runtime/",),
    "typer": (
        "graphspec/cli.py",
        "graphspec/export_command.py",
        "graphspec/run_commands.py",
        "graphspec/training_commands.py",
    ),
}


def layer(module: str) -> int:
    """The height of a module in the import order; a module that no table lists is an error."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    if package == "runtime":
        return RUNTIME
    if package == "graphspec":
        assert name in LANGUAGE_MODULES | TOP_MODULES, f"say in this file whether {module} is language or top layer"
        return LANGUAGE if name in LANGUAGE_MODULES else TOP
    found = [height for height, names in COMPILER_MODULES.items() if name in names]
    assert found, f"say in this file which layer {module} belongs to"
    return found[0]


def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module the file imports, anywhere in it; of `from package import module` the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative import"
            assert node.level == 0, f"{path}: relative import"
            parent = ROOT / node.module.replace(".", "/")
            modules = {a.name for a in node.names if (parent / f"{a.name}.py").exists() or (parent / a.name).is_dir()}
            found |= {f"{node.module}.{name}" for name in modules}
            if len(modules) < len(node.names):
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    module = module_of(path)
    for name in imports(path):
        if name.partition(".")[0] in PACKAGES:
            assert layer(name) <= layer(module), f"{module} imports {name}, which stands above it"


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    names = {name.partition(".")[0] for name in imports(path)}
    for package, homes in HEAVY.items():
        assert package not in names or where.startswith(homes), f"{where} imports {package}"


def test_every_listed_module_exists() -> None:
    for name in (LANGUAGE_MODULES | TOP_MODULES) - {""}:
        assert (ROOT / "graphspec" / f"{name}.py").exists(), name
    for name in set().union(*COMPILER_MODULES.values()) - {""}:
        assert (ROOT / "compiler" / f"{name}.py").exists() or (ROOT / "compiler" / name).is_dir(), name
