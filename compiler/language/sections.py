"""Reads the configuration sections with their pydantic models and says their findings in our words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from compiler.errors import Diagnostic, did_you_mean
from compiler.language.config import Configuration
from compiler.language.findings import describe
from compiler.language.reader import At, Reader
from compiler.language.source import Path, Tree

SECTIONS = tuple(Configuration.model_fields)
_KIND = re.compile(r"constrained-.*|(literal|dict)\[.*\]")


def read_sections(reader: Reader, keys: Mapping[str, At], root: Tree) -> Configuration:
    """The configuration; a section with a mistake takes its defaults and counts as broken."""
    given = {name: keys[name] for name in SECTIONS if name in keys}
    wrong: set[str] = set()
    while True:
        plain = {name: at.tree.plain() for name, at in given.items() if name not in wrong}
        try:
            return Configuration.model_validate_json(json.dumps(plain), strict=True)
        except ValidationError as error:
            found = error.errors()
        places = {_setting(item["loc"]) for item in found}
        for loc, items in groupby(found, lambda item: _setting(item["loc"])):
            if any(place[: len(loc)] == loc != place for place in places):
                continue  # it is of another kind than what was given; what lies deeper is of the kind that was meant
            reader.problems.append(_explain(loc, list(items), given, root))
        wrong |= {str(item["loc"][0]) for item in found if item["loc"]} or set(given)
        reader.broken |= {(name,) for name in wrong}


def _setting(loc: Path) -> Path:
    """The keys of a setting, without what pydantic adds for each of the kinds that a value may be of."""
    return tuple(part for part in loc if not _KIND.fullmatch(str(part)))


def _explain(loc: Path, items: list[ErrorDetails], given: Mapping[str, At], root: Tree) -> Diagnostic:
    """What is wrong with one setting: it has an item for each kind that its value may be of."""
    item, where = items[0], ".".join(map(str, loc))
    if item["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        hint = did_you_mean(str(loc[-1]), known) or f"; it takes {', '.join(known)}"
        return Diagnostic(root.key_place(loc), f"unknown key {loc[-1]!r} in {'.'.join(map(str, loc[:-1]))}{hint}")
    if item["type"] == "value_error":
        message = describe(item)
        message = f"{where}: {message}" if loc else message
        return Diagnostic(root.place_at(loc or _first_path_in(message, given)), message)
    others = [describe(each).partition(", found")[0].removeprefix("expected ") for each in items[1:]]
    says = describe(item).replace(", found", " or ".join(["", *others]) + ", found", 1)
    hint = root.find(loc)[0].as_text if any(each["type"] == "string_type" for each in items) else ""
    return Diagnostic(root.place_at(loc), f"{where}: {says}{hint}")


def _first_path_in(message: str, given: Mapping[str, At]) -> Path:
    """The first setting that a message about several of them names, if the spec gives its section."""
    for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", message):
        if word.split(".")[0] in given:
            return tuple(word.split("."))
    return ()


def _known_keys(loc: Path) -> list[str]:
    """Keys of the model at this place of the configuration."""
    model: Any = Configuration
    for part in loc:
        model = model.model_fields[part].annotation
    return [field.alias or name for name, field in model.model_fields.items()]
