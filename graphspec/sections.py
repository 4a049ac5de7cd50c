"""Reads the configuration sections with the models of `graphspec.config` and says their findings in our words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from graphspec.config import Configuration
from graphspec.errors import Diagnostic, did_you_mean
from graphspec.layers import TreePlaces
from graphspec.reader import At, Reader, key_place
from graphspec.spec import Path

SECTIONS = tuple(Configuration.model_fields)

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}


def read_sections(reader: Reader, keys: Mapping[str, At], places: TreePlaces) -> Configuration:
    """The configuration; a section with a mistake takes its defaults and counts as broken."""
    given = {name: keys[name] for name in SECTIONS if name in keys}
    wrong: set[str] = set()
    while True:
        plain = {name: at.tree.plain() for name, at in given.items() if name not in wrong}
        try:
            return Configuration.model_validate_json(json.dumps(plain), strict=True)
        except ValidationError as error:
            found = error.errors()
        for item in found:
            reader.problems.append(_explain(item, given, places))
        wrong |= {str(item["loc"][0]) for item in found if item["loc"]} or set(given)
        reader.broken |= {(name,) for name in wrong}


def _explain(item: ErrorDetails, given: Mapping[str, At], places: TreePlaces) -> Diagnostic:
    loc: Path = tuple(item["loc"])
    where = ".".join(map(str, loc))
    if item["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        hint = did_you_mean(str(loc[-1]), known) or f"; it takes {', '.join(known)}"
        return Diagnostic(_key_place(given, loc), f"unknown key {loc[-1]!r} in {'.'.join(map(str, loc[:-1]))}{hint}")
    if item["type"] == "value_error":
        message = str(item["ctx"]["error"])
        return Diagnostic(places.place(loc or _first_path_in(message, given)), message)
    expected = _EXPECTED.get(item["type"], "").format_map(item.get("ctx", {}))
    found = item["input"]
    if not expected:
        return Diagnostic(
            places.place(loc), f"{where}: {item['msg'][:1].lower()}{item['msg'][1:]}, found {_show(found)}"
        )
    hint = ""
    if item["type"] == "literal_error" and isinstance(found, str):
        hint = did_you_mean(found, re.findall(r"'([^']*)'", expected))
    return Diagnostic(places.place(loc), f"{where}: expected {expected}, found {_show(found)}{hint}")


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    text = text.replace("null", "nothing") if value is None else text
    return text if len(text) <= 60 else f"{text[:56]}..."


def _key_place(given: Mapping[str, At], loc: Path) -> Any:
    at = given[str(loc[0])]
    for part in loc[1:]:
        value = at.tree.value
        if isinstance(value, dict):
            at = At(value[str(part)].value, (*at.path, part), value[str(part)].key)
        elif isinstance(value, list) and isinstance(part, int):
            at = At(value[part], (*at.path, part))
    return key_place(at)


def _first_path_in(message: str, given: Mapping[str, At]) -> Path:
    """The first setting that a message about several of them names, if the spec gives its section."""
    for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", message):
        if word.split(".")[0] in given:
            return tuple(word.split("."))
    return ()


def _known_keys(loc: Path) -> list[str]:
    """Keys of the model at this place of the configuration."""
    model: type[BaseModel] = Configuration
    for part in loc:
        model = next(_models_in(model.model_fields[str(part)].annotation))
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
