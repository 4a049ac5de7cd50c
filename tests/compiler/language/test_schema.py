"""The JSON Schema, judged by an independent validator: shipped specs validate, broken ones do not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from compiler.language.schema import json_schema

SPECS = Path(__file__).parents[3] / "specs"
SHIPPED = sorted(SPECS.glob("*.yaml"))
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_specs_validate_and_name_the_schema(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=graphspec.schema.json"
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["graphspec"], 2),
        (["nmae"], "x"),
        (["name"], 3),
        (["input"], [3]),
        (["classes"], 0),
        (["blocks", "Stem"], {}),
        (["blocks", "stem", "typ"], "[C] -> [C]"),
        (["blocks", "stem", "share"], "all"),
        (["blocks", "stem", "nodes", "out"], "conv"),
        (["blocks", "stem", "nodes", "out", "kernel"], 0),
        (["blocks", "stem", "nodes", "out", "kernal"], 3),
        (["blocks", "stem", "nodes", "out", "act"], "rleu"),
        (["blocks", "stem", "nodes", "out", "from"], []),
        (["blocks", "stem", "nodes", "out", "from"], [{"nod": "in"}]),
        (["blocks", "normal", "levels", "count"], 0),
        (["blocks", "normal", "levels", "ops"], []),
        (["network"], []),
        (["network"], [{"normal": 2, "stem": 1}]),
        (["search", "epocs"], 3),
        (["search", "epochs"], "many"),
        (["search", "gates", "gamma"], -1),
        (["budget", "params"], "3 millions"),
    ],
)
def test_broken_structure_does_not_validate(keys: list[str], value: Any) -> None:
    spec = copy.deepcopy(yaml.safe_load((SPECS / "digits.yaml").read_text()))
    inner = spec
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(spec)


def test_the_data_may_say_input_and_classes() -> None:
    spec = yaml.safe_load((SPECS / "digits.yaml").read_text())
    VALIDATOR.validate({key: value for key, value in spec.items() if key not in ("input", "classes")})


@pytest.mark.parametrize("key", ["name", "blocks", "network"])
def test_a_whole_spec_needs_every_part(key: str) -> None:
    spec = yaml.safe_load((SPECS / "digits.yaml").read_text())
    del spec[key]
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(spec)
    VALIDATOR.validate(spec | {"extends": "other.yaml"})
