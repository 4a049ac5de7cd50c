"""The specs that ship: listed, and copied for a start."""

from __future__ import annotations

from pathlib import Path

import yaml

import graphspec
from compiler.errors import RunError, did_you_mean
from runtime.rundir.files import write_text

SCHEMA = "graphspec.schema.json"  # what the shipped specs name for editors


def _folder() -> Path:
    """`graphspec/specs` of an installed package, or `specs` of a checkout."""
    package = Path(graphspec.__file__).parent
    installed = package / "specs"
    return installed if installed.is_dir() else package.parent / "specs"


def starters() -> dict[str, str]:
    """Names of the shipped specs with the first line of their comments."""
    return {path.stem: _summary(path) for path in sorted(_folder().glob("*.yaml"))}


def _summary(path: Path) -> str:
    lines = (
        line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    return next((line for line in lines if line and "yaml-language-server" not in line), "")


def copy_starter(name: str, folder: Path) -> list[Path]:
    """Copy a shipped spec, what it extends and the schema; RunError if there is none or a file is in the way."""
    known = starters()
    if name not in known:
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise RunError(f"no shipped spec is called {name!r}{hint}")
    files = _with_bases(f"{name}.yaml")
    taken = [folder / file for file in files if (folder / file).exists()]
    if taken:
        raise RunError(f"{taken[0]} exists already\n  try: another folder (--into), or remove it")
    wanted = [*files, *([] if (folder / SCHEMA).exists() else [SCHEMA])]
    for file in wanted:
        write_text(folder / file, (_folder() / file).read_text(encoding="utf-8"))
    return [folder / file for file in wanted]


def _with_bases(file: str) -> list[str]:
    base = yaml.safe_load((_folder() / file).read_text(encoding="utf-8")).get("extends")
    return [file, *(_with_bases(base) if base else [])]
