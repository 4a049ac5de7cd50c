"""The strategies by name: the built-in ones, and those of installed packages (entry points `graphspec.strategies`).

It must not import torch: `graphspec compile` checks the name of a strategy, and its options where it has any.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from compiler.errors import Diagnostic, GraphspecError, SpecError, did_you_mean
from compiler.language.config import Section
from compiler.language.findings import describe
from compiler.language.spec import Spec

if TYPE_CHECKING:
    from runtime.strategies.base import Strategy

GROUP = "graphspec.strategies"
BUILT_IN = {"dso": "runtime.strategies.dso:Dso", "random": "runtime.strategies.random:RandomNetwork"}


def known_strategies() -> dict[str, EntryPoint]:
    """Every strategy by name; none is imported. GraphspecError if a package takes a built-in name."""
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in BUILT_IN.keys() & installed.keys():
        raise _unusable(installed[name], "has the name of a built-in one")
    return {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()} | installed


def strategy_class(name: str) -> type[Strategy]:
    """The class of a known strategy; GraphspecError if it cannot be had."""
    from runtime.strategies.base import Strategy

    entry = known_strategies()[name]
    try:
        found = entry.load()
    except Exception as error:
        raise _unusable(entry, f"cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise _unusable(entry, f"must be a subclass of runtime.strategies.base.Strategy, not {found!r}")
    return found


def _unusable(entry: EntryPoint, why: str) -> GraphspecError:
    return GraphspecError(
        f"the strategy {entry.name!r} ({entry.value}) {why}\n  try: mend or uninstall the package that offers it"
    )


def check_strategy(spec: Spec) -> None:
    """SpecError if there is no strategy of the spec's name, or if its `search.options` do not fit."""
    search, known = spec.config.search, known_strategies()
    if search.strategy not in known:
        hint = did_you_mean(search.strategy, known) or f"; there are {', '.join(known)}"
        place = spec.place("search", "strategy")
        raise SpecError([Diagnostic(place, f"search.strategy: unknown strategy {search.strategy!r}{hint}")])
    if search.options or search.strategy not in BUILT_IN:  # otherwise there is nothing to import for
        check_options(spec, strategy_class(search.strategy))


def check_options(spec: Spec, kind: type[Strategy]) -> None:
    """SpecError if the spec's `search.options` are not those of this strategy."""
    try:
        kind.Options.model_validate(spec.config.search.options)
    except ValidationError as error:
        raise SpecError(_diagnostic(spec, kind.Options, item) for item in error.errors()) from error


def _diagnostic(spec: Spec, model: type[Section], item: ErrorDetails) -> Diagnostic:
    """What is wrong with an option, and where it is written."""
    path, known = ("search", "options", *item["loc"]), list(model.model_fields)
    if item["type"] == "extra_forbidden":
        key = str(path[-1])
        hint = did_you_mean(key, known) or f"; {spec.config.search.strategy} takes {', '.join(known) or 'no options'}"
        return Diagnostic(spec.root.key_place(path), f"search.options: unknown key {key!r}{hint}")
    return Diagnostic(spec.place(*path), f"{'.'.join(map(str, path))}: {describe(item)}")
