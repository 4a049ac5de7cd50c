"""`--overwrite` removes what a job left only when its data could be opened and fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import RunError
from graphspec import api
from tests.tiny import write_spec


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.name": "cifar10", "data.root": "nowhere"}, "images of data set|missing or damaged"),
        ({"data.name": "mnist", "data.root": "nowhere"}, "images of data set|missing or damaged|must hold"),
        ({"data.name": "folder", "data.root": "nowhere"}, "must hold the folders"),
    ],
)
def test_data_that_is_not_there_costs_no_result(tmp_path: Path, overrides: dict[str, str], message: str) -> None:
    run = api.compile(write_spec(tmp_path), out=tmp_path / "run", root=tmp_path).run
    assert run is not None
    api.search(run, quiet=True)
    before = {path: path.read_bytes() for path in run.search.path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=message):
        api.search(run, overwrite=True, overrides=overrides, quiet=True)
    assert {path: path.read_bytes() for path in run.search.path.rglob("*") if path.is_file()} == before
    api.search(run, overwrite=True, overrides={"data.fake_size": 41}, quiet=True)
