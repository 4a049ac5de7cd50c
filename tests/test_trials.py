"""`graphspec baseline` and `graphspec probe`, as a user gives them: small, on random images."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from compiler.errors import RunError
from graphspec import api, trials
from graphspec.cli.main import main
from runtime.rundir.directory import RunDir
from runtime.rundir.trials import FOUND, RANDOM, read_trials
from tests.tiny import TINY

FAST = """\
data: {name: fake, fake_size: 128, validation: 0.25}
search: {strategy: random, random_params: 4k, pretrain_epochs: 2, epochs: 3}
retrain: {epochs: 2, batch_size: 32, schedule: {warmup: 1}}
budget: {flops: 25k, round_to: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """With a spec, and a run of it that was searched, compared and retrained."""
    where = tmp_path_factory.mktemp("trials")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        Path("tiny.yaml").write_text(TINY[: TINY.index("data:")] + FAST)
        api.search("tiny.yaml", quiet=True)
        trials.baseline(seeds=(0,), epochs=1, quiet=True)
        api.retrain(quiet=True)
    return where


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_plain_networks_are_as_large_as_what_was_found(folder: Path) -> None:
    run = RunDir.latest()
    found = json.loads(run.retrain.result.read_text())
    known = read_trials(run.baseline)
    assert known is not None
    assert [row.network for row in known.rows] == [FOUND, "inverted", "residual"]
    own, *plain = known.rows
    assert (own.values, own.flops) == ((found["accuracy"],), found["found"]["flops"])
    assert all(0.5 * own.flops < row.flops <= own.flops for row in plain)
    assert all(row.ms and row.cpu_seconds for row in plain)
    assert own.cpu_seconds
    assert "than the" in known.said
    assert known.said in run.report.read_text().replace("&#39;", "'")


def test_what_is_trained_is_not_trained_again_and_other_settings_are_refused() -> None:
    run = RunDir.latest()
    trained = run.trials(run.baseline)
    assert set(trained) == {"inverted-s0", "residual-s0"}
    before = {name: one.retrain.result.stat().st_mtime_ns for name, one in trained.items()}
    again = trials.baseline(seeds=(0, 1), networks=("inverted",), epochs=1, quiet=True)
    assert len(again.plain()[0].values) == 2
    assert {name: trained[name].retrain.result.stat().st_mtime_ns for name in before} == before
    assert RunDir.latest() == run
    with pytest.raises(RunError, match=r"inverted-s0: was trained with other settings\n.* --overwrite"):
        trials.baseline(seeds=(0,), epochs=2, quiet=True)


def test_a_plain_network_is_exported_as_any_run(in_process: Path, folder: Path) -> None:
    run = RunDir.open(folder / "runs" / "latest").trials(RunDir.open(folder / "runs" / "latest").baseline)
    done = api.export(run["residual-s0"], quiet=True)
    assert Path(done.path).is_file()


def test_epochs_are_those_of_search_and_retraining() -> None:
    opened = api.open_run()
    assert trials.total_epochs(opened) == 2  # a random network is drawn, not trained
    searched = api.open_run(opened.run, {"search.strategy": "dso"})
    assert trials.total_epochs(searched) == 2 + 3 + 2


def test_a_probe_compares_random_networks_with_plain_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["probe", "tiny.yaml", "--networks", "3", "--epochs", "1", "--plain", "residual", "--json", "-q"]
    monkeypatch.setattr("sys.argv", ["graphspec", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out)
    drawn, _ = found["rows"]
    assert [(each["network"], len(each["values"])) for each in found["rows"]] == [(RANDOM, 3), ("residual", 2)]
    assert found["figures"]["best"] == max(drawn["values"])
    run = RunDir.latest()
    results = [json.loads(one.retrain.result.read_text()) for one in run.trials(run.probe).values()]
    assert all(result["found"]["flops"] <= 25_000 for result in results)
    assert drawn["values"] == [result["validation_accuracy"] for result in results[:3]]
    assert "Random networks: validation accuracy" in run.report.read_text()
    assert json.loads(run.config.read_text())["retrain"]["epochs"] == 2  # of the space itself


@pytest.mark.parametrize(("settings", "says"), [
    ({"budget.flops": None}, "there is no size to compare at"), ({}, "no plain networks are called 'resdual'"),
])  # fmt: skip
def test_what_cannot_be_compared_leaves_no_run(settings: dict[str, None], says: str) -> None:
    before = RunDir.latest()
    with pytest.raises(Exception, match=says):
        trials.probe("tiny.yaml", plain=("resdual",), overrides=settings, quiet=True)
    assert RunDir.latest() == before


def test_all_families_compete_and_the_best_is_trained_in_full(tmp_path: Path) -> None:
    """By the validation images: the better half goes on for twice as long."""
    run = api.compile("tiny.yaml", out=tmp_path / "run").run
    made = trials.baseline(run, seeds=(1,), networks=(trials.BEST,), epochs=8, quiet=True)
    scores = [
        {
            name: json.loads(one.retrain.result.read_text())["validation_accuracy"]
            for name, one in run.trials(run.baseline / f"short-{epochs}").items()
        }
        for epochs in (1, 2, 4)
    ]
    assert [len(some) for some in scores] == [5, 3, 2]
    for before, after in pairwise(scores):
        assert min(before[name] for name in after) >= max(before[name] for name in before.keys() - after.keys())
    [row] = made.plain()
    assert scores[-1][row.runs[0]] == max(scores[-1].values())
    [trained] = run.trials(run.baseline).values()
    assert json.loads(trained.config.read_text())["retrain"]["epochs"] == 8
