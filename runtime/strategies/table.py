"""The strategies by name: built-in ones and those of installed packages. It must not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from compiler.errors import Diagnostic, SpecError, did_you_mean
from compiler.language.config import Section
from compiler.language.findings import describe
from compiler.language.spec import Spec
from runtime.installed import Installed

if TYPE_CHECKING:
    from runtime.strategies.base import Strategy

STRATEGIES: Installed[Strategy] = Installed(
    "strategy",
    "graphspec.strategies",
    "runtime.strategies.base:Strategy",
    {"dso": "runtime.strategies.dso:Dso", "random": "runtime.strategies.random:RandomNetwork"},
)


def check_strategy(spec: Spec) -> None:
    """SpecError if there is no strategy of the spec's name, or if its `search.options` do not fit."""
    search = spec.config.search
    STRATEGIES.check(spec, search.strategy, "search", "strategy")
    if search.options or search.strategy not in STRATEGIES.built_in:  # otherwise there is nothing to import for
        check_options(spec, STRATEGIES.load(search.strategy))


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
