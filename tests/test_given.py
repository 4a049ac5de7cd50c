"""What a job was given is taken from its run: nobody types it again, and only what contradicts it is refused."""

from __future__ import annotations

import json
import subprocess
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import RunError
from graphspec import api
from runtime.rundir.directory import RunDir
from tests.test_run_commands import Shell
from tests.tiny import TINY, command, environment, write_spec

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = TINY.replace("{name: digits}", "{name: fake, fake_size: 96}").replace("batch_size: 32", "batch_size: 8")
FAST = FAST.replace("pretrain_epochs: 2\n  epochs: 4", "pretrain_epochs: 1\n  epochs: 1").replace(
    "{epochs: 2", "{epochs: 1"
)
GIVEN = ("seed=7", "search.lr=0.02", "gates.init=0.5", "data.validation=0.2")


def new_run(folder: Path, text: str = FAST, *overrides: str) -> RunDir:
    compiled = api.compile(write_spec(folder, text), overrides=overrides, root=folder / "runs")
    assert compiled.run is not None
    return compiled.run


def ran_with(file: Path, *keys: str) -> list[Any]:
    """Values of a config.json by dotted key."""
    found = []
    for key in keys:
        value = json.loads(file.read_text())
        for part in key.split("."):
            value = value[part]
        found.append(value)
    return found


def killed_at_torch(folder: Path, *arguments: str) -> None:
    """Give a command in a world where importing torch kills the process."""
    fatal = folder / "fatal" / "torch"
    fatal.mkdir(parents=True, exist_ok=True)
    (fatal / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    path = environment()["PYTHONPATH"]
    world = {**environment(), "PYTHONPATH": f"{fatal.parent}:{path}"}
    assert subprocess.run(command(*arguments), cwd=folder, env=world, check=False).returncode == -9


def words(*overrides: str) -> list[str]:
    return [word for each in overrides for word in ("--set", each)]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capsys)


def test_later_commands_need_no_option_again(tmp_path: Path, shell: Shell) -> None:
    run = new_run(tmp_path)
    shell("search", *words(*GIVEN), "--device", "cpu", "-q")
    _, told = shell("retrain")
    assert "as given before: " in told
    assert all(each in told for each in (*GIVEN, "--device cpu"))
    for job in (run.search, run.retrain):
        assert ran_with(job.config, "seed", "search.lr", "data.validation") == [7, 0.02, 0.2]
    shell("export", "--no-latency", "-q")
    shell("export", "--no-latency", "-q", "--from", "search")
    shell("export", "--no-latency", "-q", *words("seed=7"))
    _, refused = shell("export", *words("seed=1"), code=1)
    assert "trained with other settings: seed\n  try: without these options" in refused
    _, refused = shell("export", *words("retrain.epochs=9"), code=1)
    assert "trained with other settings: retrain.epochs\n" in refused
    shell("export", "--no-latency", "-q", "--from", "search", *words("retrain.epochs=9"))
    _, refused = shell("retrain", "--resume", "--seed", "1", code=1)
    assert "cannot go on with a changed spec: seed" in refused
    shell("retrain", "--overwrite", "--seed", "1", "-q")
    assert ran_with(run.retrain.config, "seed", "data.validation") == [1, 0.2]
    shell("export", "--no-latency", "-q")


@pytest.mark.parametrize("job", ["search", "retrain"])
def test_a_job_killed_before_torch_goes_on_with_what_it_was_given(tmp_path: Path, shell: Shell, job: str) -> None:
    run = new_run(tmp_path)
    if job == "retrain":
        shell("search", "-q")
    killed_at_torch(tmp_path, job, *words(*GIVEN, f"{job}.checkpoint.keep=5"), "--seed", "3", "--device", "cpu")
    shell(job, "--resume", "-q")
    folder = run.search if job == "search" else run.retrain
    assert ran_with(folder.config, "seed", "search.lr", f"{job}.checkpoint.keep") == [3, 0.02, 5]


def test_a_new_option_wins_while_there_is_nothing_to_contradict(tmp_path: Path, shell: Shell) -> None:
    run = new_run(tmp_path)
    killed_at_torch(tmp_path, "search", *words("search.lr=0.02"), "--seed", "3")
    shell("search", "--resume", "--seed", "4", "-q")
    assert ran_with(run.search.config, "seed", "search.lr") == [4, 0.02]


def test_starting_anew_forgets_what_the_former_attempt_was_given(tmp_path: Path, shell: Shell) -> None:
    run = new_run(tmp_path)
    killed_at_torch(tmp_path, "search", "--seed", "3")
    shell("search", "-q")
    assert ran_with(run.search.config, "seed") == [0]
    shell("search", "--overwrite", "--seed", "5", "-q")
    killed_at_torch(tmp_path, "search", "--overwrite", "--seed", "6")  # before anything was removed
    shell("search", "--resume", "-q")
    shell("search", "--seed", "8", code=1)  # it is finished
    shell("export", "--from", "search", "--no-latency", "-q")
    assert ran_with(run.search.config, "seed") == [5]


def test_a_relative_root_is_kept_absolute(tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path).path.absolute()
    killed_at_torch(tmp_path, "search", *words("data.name=folder", "data.root=pictures"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, told = shell("search", str(run), "--resume", code=1)
    assert f"{tmp_path / 'pictures'} must hold the folders" in told


def test_runs_of_earlier_versions_say_what_they_ran_with(tmp_path: Path, shell: Shell) -> None:
    run = new_run(tmp_path)
    shell("search", "--seed", "7", "-q")
    shell("retrain", "-q")
    for file in (run.given, run.search.data, run.retrain.data, run.search.samples, run.retrain.samples):
        file.unlink()
    shell("search", "--resume")
    shell("retrain", "--overwrite", "-q")
    shell("export", "--no-latency", "-q")
    assert ran_with(run.retrain.config, "seed") == [7]


@pytest.mark.parametrize("content", ["{", '{"search": {"settings": 1}}', "[]"])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    run = new_run(tmp_path)
    run.given.write_text(content)
    with pytest.raises(RunError, match=r"given\.json: is damaged: .*\n  try: remove it"):
        api.search(run, quiet=True)


@pytest.mark.slow
def test_a_study_goes_on_with_what_it_was_given(tmp_path: Path, shell: Shell) -> None:
    run = new_run(tmp_path)
    given = ("search.lr=0.02", "gates.init=0.5")
    killed_at_torch(tmp_path, "search", "--seeds", "0,1", *words(*given))
    shell("search", "--seeds", "0,1", "--resume", "-q")
    shell("search", "--seeds", "2", "-q")
    shell("retrain", "--seeds", "0,1,2", "-q")
    shell("retrain", "--seeds", "0,1,2", "--resume", "-q")
    for seed, one in run.seed_runs().items():
        for job in (one.search, one.retrain):
            assert ran_with(job.config, "seed", "search.lr") == [seed, 0.02]
    shell("export", str(run.seed_run(1).path), "--no-latency", "-q")
    _, refused = shell("search", "--seeds", "3", *words("search.lr=0.5"), code=1)
    assert "cannot go on with a changed spec: search.lr" in refused


@pytest.mark.slow
def test_random_studies_remember_the_sizes(tmp_path: Path, shell: Shell) -> None:
    first = new_run(tmp_path, FAST, "search.strategy=random", "search.random_params=4k")
    shell("search", "-q")
    run = new_run(tmp_path)
    killed_at_torch(tmp_path, "search", "--seeds", "0,1", "--strategy", "random", "--match", str(first.path))
    shell("search", "--seeds", "0,1", "--resume", "-q")
    wanted = json.loads(first.search.result.read_text())["found"]["params"]
    for one in run.seed_runs().values():
        assert ran_with(one.search.config, "search.strategy", "search.random_params") == ["random", wanted]


def test_seeds_of_a_study_share_their_data(tmp_path: Path) -> None:
    """What one seed has found must be what the others find."""
    run = new_run(tmp_path)
    with chdir(tmp_path):
        api.search(run, seeds=[0], quiet=True)
        facts = run.seed_run(0).search.data
        facts.write_text(facts.read_text().replace('"class3"', '"other"'))
        with pytest.raises(RunError, match=r"seeds/0/search/data\.json: .*other classes \(other gone, class3 new\)"):
            api.search(run, seeds=[1], quiet=True)
