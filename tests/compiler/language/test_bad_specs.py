"""Every file of `bad/` gives exactly the messages beside it. `GRAPHSPEC_UPDATE=1` rewrites them: read the difference.

A line `# set: key=value` at the head of a file is an override to read it with.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compiler.elaborate.builder import load
from compiler.errors import SpecError
from compiler.language.overrides import overrides_of

BAD = Path(__file__).parent / "bad"
FILES = sorted(path.stem for path in BAD.glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_bad_file_gives_the_messages_beside_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    lines = Path(f"{name}.yaml").read_text().splitlines()
    overrides = [line.removeprefix("# set: ") for line in lines if line.startswith("# set: ")]
    with pytest.raises(SpecError) as caught:
        load(f"{name}.yaml", overrides_of(overrides))
    expected = Path(f"{name}.txt")
    if os.environ.get("GRAPHSPEC_UPDATE"):
        expected.write_text(f"{caught.value}\n")
    assert f"{caught.value}\n" == expected.read_text()


def test_a_file_that_is_no_spec_is_never_quoted() -> None:
    text = (BAD / "extends_secret.txt").read_text()
    assert "dont-quote-me" not in text
    assert "daemon" not in text


def test_at_most_20_mistakes_are_shown_in_file_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(SpecError) as caught:
        load("many_mistakes.yaml")
    found = [d.place for d in caught.value.diagnostics]
    assert len(found) == 25
    assert found == sorted(set(found))
    assert str(caught.value).count("error: ") == 20
    assert str(caught.value).endswith("... and 5 more errors; mend these first")
