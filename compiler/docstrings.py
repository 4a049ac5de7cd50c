"""The docstrings of a model's attributes, read from its source when somebody asks.

pydantic can read them too (`use_attribute_docstrings`), but does so whenever a class is made: every command would wait.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from contextlib import suppress
from typing import Any

from pydantic import BaseModel


def attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """By attribute, the text under it in the class or the nearest base that has one."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            with suppress(OSError):  # typed at a prompt
                [written] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
                assert isinstance(written, ast.ClassDef)
                found |= dict(_documented(written.body))
    return found


def _documented(body: list[ast.stmt]) -> list[tuple[str, str]]:
    return [
        (attribute.target.id, inspect.cleandoc(below.value.value))
        for attribute, below in itertools.pairwise(body)
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    ]  # fmt: skip


def describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Put them into the JSON schema of the model: its `json_schema_extra`."""
    docs = attribute_docstrings(model)
    for name, field in model.model_fields.items():
        if name in docs:
            schema["properties"][field.alias or name]["description"] = docs[name]
