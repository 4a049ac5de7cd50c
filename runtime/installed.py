"""Code by name: built-in classes, those that installed packages offer as entry points, and what users name.

Nothing is imported before it is asked for, so that `graphspec compile` can check a name without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import Any, Generic, TypeVar

from compiler.errors import Diagnostic, GraphspecError, SpecError, did_you_mean
from compiler.language.spec import Spec

T = TypeVar("T")


@dataclass(frozen=True)
class Installed(Generic[T]):
    """The classes of one kind."""

    kind: str  # for people
    group: str  # of entry points
    base: str  # module:class that all of them inherit from
    built_in: Mapping[str, str]  # name -> module:class

    def known(self) -> dict[str, EntryPoint]:
        """Every class by name; none is imported. GraphspecError if a package takes a built-in name."""
        installed = {entry.name: entry for entry in entry_points(group=self.group)}
        taken = next((entry for name, entry in installed.items() if name in self.built_in), None)
        if taken is not None:
            raise GraphspecError(
                f"the {self.kind} {taken.name!r} ({taken.value}) has the name of a built-in one\n"
                f"  try: rename it, or uninstall the package that offers it"
            )
        return {name: EntryPoint(name, value, self.group) for name, value in self.built_in.items()} | installed

    def check(self, spec: Spec, name: str, *path: str) -> None:
        """SpecError at `path`, where the spec says the name, if there is no such class."""
        known = self.known()
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            message = f"{'.'.join(path)}: unknown {self.kind} {name!r}{hint}"
            raise SpecError([Diagnostic(spec.place(*path), message)])

    def load(self, name: str) -> type[T]:
        """The class of this name; GraphspecError if it cannot be had."""
        entry = self.known().get(name)
        if entry is None:
            raise GraphspecError(f"unknown {self.kind} {name!r}\n  try: install the package that offers it")
        try:
            found = entry.load()
        except Exception as error:
            raise GraphspecError(
                f"the {self.kind} {name!r} ({entry.value}) cannot be imported: {error}\n"
                f"  try: mend or uninstall the package that offers it"
            ) from error
        if not (isinstance(found, type) and issubclass(found, resolve_name(self.base))):
            wanted = self.base.replace(":", ".")
            raise GraphspecError(
                f"the entry point {name!r} ({entry.value}) must be a subclass of {wanted}, not {found!r}"
            )
        return found


def named(name: str) -> Any:
    """What `package.module:function` is; modules in the current folder are found, too, behind installed ones."""
    if "" not in sys.path:  # Python itself puts the folder of the command there
        sys.path.append("")
    return resolve_name(name)
