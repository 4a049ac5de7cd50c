"""Overrides as values: from texts, from Python, and from the difference of two configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.errors import SpecError
from compiler.language.config import Configuration
from compiler.language.overrides import Override, changes, overrides_of
from compiler.language.parse import parse_file
from tests.tiny import write_spec


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("seed=3", "seed", 3), ("data.name=fake", "data.name", "fake"), ("data.mean=", "data.mean", None),
        ("search.schedule.milestones=[0.5, 0.75]", "search.schedule.milestones", [0.5, 0.75]),
        ("gates={share: block, init: 0.5}", "gates", {"share": "block", "init": 0.5}),
    ],
)  # fmt: skip
def test_a_text_and_a_python_value_say_the_same(tmp_path: Path, written: str, key: str, value: object) -> None:
    from_text, from_python = Override.parse(written), Override.of(key, value)
    assert from_text.path == from_python.path == tuple(key.split("."))
    assert from_text.value.plain() == from_python.value.plain() == value
    specs = [parse_file(write_spec(tmp_path), [one]) for one in (from_text, from_python)]
    assert specs[0].root.plain() == specs[1].root.plain()


def test_what_is_typed_stays_as_it_is() -> None:
    one = Override.of("seed", 1, "--seed")
    first, second = overrides_of([one, "seed=2"])
    assert first is one
    assert (second.text.name, second.text.override, str(second)) == ("--set", 2, "seed=2")
    assert [each.key for each in overrides_of({"seed": 1, "search.lr": 0.5})] == ["seed", "search.lr"]


def test_a_mistake_names_where_the_override_came_from(tmp_path: Path) -> None:
    path = write_spec(tmp_path)
    for given, place in (
        (Override.parse("seed=-1"), "--set:1:6"),
        (Override.of("seed", -1, "--seed"), "--seed:1:6"),
        (overrides_of({"search.lr": 0.5, "seed": -1})[1], "overrides:2:6"),
    ):
        with pytest.raises(SpecError) as raised:
            parse_file(path, [given])
        assert f"{place}: error: seed: " in str(raised.value)
        assert "1 | seed=-1" in str(raised.value) or "2 | seed=-1" in str(raised.value)


def test_a_python_key_must_be_one() -> None:
    for key in ("", "search..lr", "extends", "a-b"):
        with pytest.raises(SpecError):
            Override.of(key, 1)
    with pytest.raises(TypeError):
        Override.of("seed", object())


def test_the_words_for_a_change_make_it(tmp_path: Path) -> None:
    """What `--resume` and the report tell people to type gives the configuration that the job ran with."""
    path = write_spec(tmp_path)
    wanted = {
        "seed": 7, "data.name": "fake", "data.mean": [0.5], "search.clip": 1e-3, "search.random_params": 4000,
        "search.gates.schedule.kind": "cosine", "retrain.inherit": True, "search.gates.clip": None,
    }  # fmt: skip
    plain = parse_file(path).config.model_dump(mode="json")
    changed = parse_file(path, overrides_of(wanted)).config
    found = changes(plain, changed.model_dump(mode="json"))
    assert {each.key: each.value.plain() for each in found} == wanted
    words = [word for each in found for word in each.words]
    assert words[::2] == ["--set"] * len(wanted)
    assert parse_file(path, overrides_of(words[1::2])).config == changed
    assert changes(plain, json.loads(json.dumps(plain))) == []
    assert changes({}, {"seed": Configuration().seed})[0].path == ("seed",)
