"""Numbers beyond all bounds are refused with their place, whatever the setting or the attribute."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pytest
from pydantic import BaseModel, ValidationError

from compiler.elaborate.builder import load
from compiler.errors import SpecError
from compiler.language.config import Configuration
from compiler.language.overrides import overrides_of
from compiler.ops import known_ops
from tests.tiny import TINY, write_spec


def numbers(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The full keys of all settings that hold a number."""
    for name, field in model.model_fields.items():
        kinds = {field.annotation, *get_args(field.annotation)}
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if sections:
            yield from numbers(sections[0], f"{prefix}{name}.")
        elif kinds & {int, float}:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("value", [10**39, "1e308", "1e39", "-1e39"])
@pytest.mark.parametrize("key", [*numbers(Configuration), "gates.init"])
def test_settings(tmp_path: Path, key: str, value: int | str) -> None:
    with pytest.raises(SpecError) as caught:
        load(str(write_spec(tmp_path)), overrides_of([f"{key}={value}"]))
    assert re.match(rf"--set:1:\d+: error: {key}(: expected| must be) .*, found ", str(caught.value))
    assert len(caught.value.diagnostics) == 1


def attributes() -> Iterator[tuple[str, str]]:
    for name, row in known_ops().items():
        for attr, field in row.attrs.model_fields.items():
            kinds = {field.annotation, *get_args(field.annotation)}
            if kinds & {int, float} and bool not in kinds:
                yield name, attr


@pytest.mark.parametrize(("name", "attr"), [*attributes()])
@pytest.mark.parametrize("value", [10**39, 1e308, 1e39, -1e39])
def test_attributes(name: str, attr: str, value: float) -> None:
    row = known_ops()[name].attrs
    needed = {key: 1 for key, field in row.model_fields.items() if field.is_required() and key != attr}
    with pytest.raises(ValidationError) as caught:
        row.model_validate(needed | {attr: value})
    assert {str(item["loc"][0]) for item in caught.value.errors() if item["loc"]} == {attr}


def misspelt(count: int) -> str:
    nodes = "".join(f"      node{i}: {{op: conv, kernel: 3, from: nodd{i}}}\n" for i in range(count))
    return TINY.replace(
        "      out: {op: conv, kernel: 3, stride: 2, from: in}\n", f"{nodes}      out: {{op: add, from: in}}\n"
    )


def test_suggestions_are_bounded(tmp_path: Path) -> None:
    compared = 0

    def count(word: str, words: list[str], **settings: Any) -> list[str]:
        nonlocal compared
        compared += len(words)
        return words[:1]

    with patch("difflib.get_close_matches", count), pytest.raises(SpecError) as caught:
        load(str(write_spec(tmp_path, misspelt(600))))
    assert compared <= 50_000
    assert str(caught.value).count("did you mean") == 20
