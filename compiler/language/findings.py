"""Says in our words what pydantic finds wrong with a setting or an attribute."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic_core import ErrorDetails, ValidationError

from compiler.errors import did_you_mean, one_line

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
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
    "literal_error": "{expected}",
}


def first_of(error: ValidationError) -> str:
    """The first thing that pydantic finds wrong, with its place."""
    item = error.errors()[0]
    return f"{one_line('.'.join(map(str, item['loc']))) or 'all of it'}: {describe(item)}"


def describe(item: ErrorDetails) -> str:
    """What was expected and what was found, e.g. `expected at least 1, found 0`."""
    found = item["input"]
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    expected = _EXPECTED.get(item["type"], "").format_map(item.get("ctx", {}))
    if not expected:
        return f"{item['msg'][:1].lower()}{item['msg'][1:]}, found {show(found)}"
    hint = ""
    if item["type"] == "literal_error" and isinstance(found, str):
        hint = did_you_mean(found, re.findall(r"'([^']*)'", expected))
    return f"expected {expected}, found {show(found)}{hint}"


def show(value: Any) -> str:
    """A value as the spec spells it, shortened where it is long."""
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, (list, tuple)):
        return "a list"
    if value is None:
        return "nothing"
    text = json.dumps(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[0]}"
