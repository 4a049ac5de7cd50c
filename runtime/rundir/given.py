"""What each job of a run was given: settings, device, match. Later commands take it from here, without torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from compiler.language.config import Configuration
from compiler.language.overrides import Override, changes
from runtime.rundir.directory import JobDir, Opened, RunDir
from runtime.rundir.facts import read_facts
from runtime.rundir.files import read_json, write_json

ROOT = "data.root"


class Given(BaseModel):
    """What one job was given."""

    settings: list[tuple[str, Any]] = []  # dotted key and value of every override; the folder of the data is absolute
    device: str = "auto"
    match: str | None = None  # the run whose sizes the random networks of a study are drawn at

    @property
    def overrides(self) -> tuple[Override, ...]:
        """The settings as overrides."""
        return tuple(Override.of(key, value, "given before", n) for n, (key, value) in enumerate(self.settings, 1))

    def __str__(self) -> str:
        """All but the folder of the data, for people."""
        words = [f"{key}={json.dumps(value)}" for key, value in self.settings if key != ROOT]
        return " ".join(words + [f"--device {self.device}"] * (self.device != "auto"))


def given_before(run: RunDir, job: str, *, resume: bool, redone: Collection[int | None] = ()) -> Given:
    """What holds for a job unless it is given something else: what it was given where it goes on, else the search.

    `redone` are the seeds (None: the run itself) whose results do not count, because they will be made anew.
    """
    runs = [(None, run), *run.seed_runs().items()]
    goes_on = resume or any(_has_results(one, job) for seed, one in runs if seed not in redone)
    if goes_on and (own := given_to(run, job)):
        return own
    searched = given_to(run, "search") if job != "search" else None
    return searched.model_copy(update={"match": None}) if searched else Given()


def given_to(run: RunDir, job: str) -> Given | None:
    """What a job of a run was given last, as far as it is known."""
    written = _read(run).get(job)
    one = next((one for one in (run, *run.seed_runs().values()) if _has_results(one, job)), None)
    if one is None:
        return written
    known, folder = written or Given(), JobDir(one.path / job)
    ran = [(each.key, each.value.plain()) for each in changes(read_settings(one.config), read_settings(folder.config))]
    of_a_seed = ("search.random_params",) if one is not run else ()
    settings = [(key, value) for key, value in ran if key not in of_a_seed]
    no_settings = [(k, v) for k, v in known.settings if k == ROOT or k.split(".")[0] not in Configuration.model_fields]
    facts = read_facts(folder)
    lies_at = [(ROOT, facts.root)] if facts and facts.root else []
    return known.model_copy(update={"settings": [*settings, *no_settings, *lies_at]})


def record_given(
    opened: Opened, job: str, overrides: Sequence[Override], device: str, match: Path | None, *, overwrite: bool
) -> None:
    """Write down what a job is given, unless it has results, which say it; RunError if the run is being worked in."""
    run, root = opened.run, opened.spec.config.data.root
    if not overwrite and any(_has_results(one, job) for one in (run, *run.seed_runs().values())):
        return
    lies_at = [] if root is None else [(ROOT, str(Path(root).expanduser().absolute()))]
    settings = [*((each.key, each.value.plain()) for each in overrides if each.key != ROOT), *lies_at]
    given = Given(settings=settings, device=device, match=None if match is None else str(match))
    with run.locked():
        write_json(run.given, {name: each.model_dump() for name, each in {**_read(run), job: given}.items()})


def read_settings(file: Path) -> dict[str, Any]:
    """A `config.json` as this version would write it; RunError if it cannot be read as such."""
    return Configuration.model_validate(read_json(file, Configuration)).model_dump(mode="json")


def _has_results(run: RunDir, job: str) -> bool:
    folder = JobDir(run.path / job)
    return folder.config.is_file() and (folder.has_results or folder.is_finished)


def _read(run: RunDir) -> dict[str, Given]:
    written = read_json(run.given, dict[str, Given]) if run.given.is_file() else {}
    return {job: Given.model_validate(each) for job, each in written.items()}
