"""Overrides as values: from texts, from Python, and from the difference of two configurations."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compiler.errors import SpecError
from compiler.language.config import Configuration
from compiler.language.layers import dump
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
    for override, place in (
        (Override.parse("seed=-1"), "--set:1:6"),
        (Override.of("seed", -1, "--seed"), "--seed:1:6"),
        (overrides_of({"search.lr": 0.5, "seed": -1})[1], "overrides:2:6"),
    ):
        with pytest.raises(SpecError) as raised:
            parse_file(path, [override])
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
        "search.gates.schedule.kind": "cosine", "retrain.from": "search", "search.gates.clip": None,
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("overrides")


REPEATABLE = settings(max_examples=60)
WORDS = {"", "~", "null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE"}
PIECES = ["base #2", "&a", "*a", "!!int 3", "a: b", "- x", "1e5", "0o17", "it's", '"', "\\", "\t", "\n", "\U0001f600"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


def is_text(written: str) -> bool:
    """Whether a value is of no other type: no number or word, not in brackets and not in quotes."""
    inner = written.strip()
    quoted = len(inner) > 1 and inner[0] == inner[-1] and inner[0] in "\"'"
    return inner not in WORDS and inner[0] not in "[{" and not quoted and not re.match(r"[-+]?\.?\d", inner)


@REPEATABLE
@given(TEXTS)
@example("base #2")
@example("/data/&x *y !z")
@example("a: b")
@example(" padded ")
def test_a_text_is_data_and_survives_the_way_into_a_run(folder: Path, text: str) -> None:
    """Comments, anchors and tags mean nothing; what `--resume` tells to type and the run's own spec say the same."""
    given = Override.of("data.root", text)
    ways = [given, Override.parse(given.words[1])]
    ways += [Override.parse(f"data.root={text}")] if is_text(text) else []
    for way in ways:
        assert not way.mistakes
        spec = parse_file(write_spec(folder), [way])
        assert spec.config.data.root == text
        (folder / "again.yaml").write_text(dump(spec.root.plain()), encoding="utf-8", newline="")
        assert parse_file(folder / "again.yaml").config.data.root == text


@pytest.mark.parametrize("key", ["name", "data.root", "data.name", "data.image"])
@pytest.mark.parametrize("value", ["2024", " 1e5", "007.0", "true", "0x1F"])
def test_what_is_said_of_a_number_where_a_text_is_wanted_can_be_typed(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_file(write_spec(tmp_path), [Override.parse(f"{key}={value}")])
    option, typed = shlex.split(str(error.value).partition("for a shell ")[2].splitlines()[0])
    found: Any = parse_file(write_spec(tmp_path), [Override.parse(typed)]).root.plain()
    for part in key.split("."):
        found = found[part]
    assert (option, found) == ("--set", value.strip())


def test_in_a_list_the_item_is_to_be_quoted(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="found true; put it in quotes\n"):
        parse_file(write_spec(tmp_path), [Override.parse("data.ignore=[true]")])


@REPEATABLE
@given(st.dictionaries(st.text("abc", min_size=1), st.lists(TEXTS)))
def test_texts_in_lists_and_maps_survive_in_the_words_that_state_them(value: dict[str, list[str]]) -> None:
    again = Override.parse(Override.of("search.options", value).words[1])
    assert not again.mistakes
    assert again.value.plain() == value


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("search.options=[&a 1, *a]", "knows no anchors"), ("data.mean=[0.5] # half", "the value ends here"),
        ("data.mean=[0.5, # half\n 0.5]", "this is not YAML"), ("search.options={a: !!int 1}", "tags such as"),
    ],
)  # fmt: skip
def test_what_yaml_would_drop_from_a_list_is_a_mistake(tmp_path: Path, written: str, says: str) -> None:
    with pytest.raises(SpecError, match=re.escape(says)):
        parse_file(write_spec(tmp_path), [Override.parse(written)])
