"""Several seeds: what a study writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import RunError
from graphspec import api
from runtime.rundir.directory import RunDir
from runtime.rundir.study import Figure, checked_seeds, found_sizes, parse_seeds
from tests import warm
from tests.test_run_commands import Shell
from tests.tiny import TINY, environment, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

FAST = TINY.replace("{name: digits}", "{name: fake, fake_size: 96}").replace("batch_size: 32", "batch_size: 8")
FAST = FAST.replace("pretrain_epochs: 2\n  epochs: 4", "pretrain_epochs: 1\n  epochs: 2") + "seed: 7\n"
FAST = FAST.replace("gamma: 0.05", "gamma: 0.2").replace("retrain: {epochs: 2", "retrain: {epochs: 1")
LASTING = ("graph.json", "weights.safetensors", "metrics.jsonl")
RANDOM = ("search.strategy=random",)


def new_run(folder: Path, *overrides: str) -> RunDir:
    compiled = api.compile(write_spec(folder, FAST), overrides=overrides, root=folder / "runs")
    assert compiled.run is not None
    return compiled.run


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A study searched with the seeds 1 and 0; tests must not change what it found."""
    run = new_run(tmp_path_factory.mktemp("study"))
    api.search(run, seeds=[1, 0], quiet=True)
    return run


def result_of(run: RunDir, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / job / "result.json").read_text())
    return found


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "a", "0,,1", "0;1", "-1", "0-2", "1.5", "٣", "4294967296", "3,1,3"])
def test_a_wrong_list_is_an_error(text: str) -> None:
    with pytest.raises(RunError, match="seeds"):
        parse_seeds(text)


def test_lists_keep_their_order() -> None:
    assert parse_seeds(" 2, 0,1 ") == (2, 0, 1)
    with pytest.raises(RunError, match="one at least"):
        checked_seeds([])


def test_deviation_is_the_samples() -> None:
    assert Figure.of([1.0, 2.0, 4.0]) == Figure(pytest.approx(7 / 3), pytest.approx((14 / 3 / 2) ** 0.5), 3)
    assert Figure.of([0.5]) == Figure(0.5, None, 1)
    assert Figure.of([0.5]).text("{:.1%}") == "50.0%"
    assert Figure.of([30, 31]).text("{:,.0f}") == "30.5 ± 0.7"
    assert Figure.of([35_125, 35_125]).text("{:,.0f}") == "35,125 ± 0"


# -- search and retrain -----------------------------------------------------------------------------------------------


def test_every_seed_is_an_ordinary_run(searched: RunDir, tmp_path: Path) -> None:
    """The same bits as a run of that seed alone, and what later commands need."""
    alone = new_run(tmp_path, "seed=1")
    api.search(alone, quiet=True)
    one = RunDir.open(searched.path / "seeds" / "1")
    for name in LASTING:
        assert (one.search.path / name).read_bytes() == (alone.search.path / name).read_bytes(), name
    assert json.loads(one.config.read_text()) == json.loads(alone.config.read_text())
    assert api.open_run(one).spec.config.seed == 1
    assert not (searched.path / "search").exists()
    assert (searched.path.parent / "latest").resolve() == searched.path.resolve()


def test_the_summary_is_that_of_the_results(searched: RunDir) -> None:
    runs = searched.seed_runs()
    assert list(runs) == [0, 1]
    summary = json.loads(searched.summary.read_text())
    assert summary["search"]["seeds"] == [0, 1]
    values = [result_of(run, "search")["found"]["params"] for run in runs.values()]
    assert values[0] != values[1]
    figure = summary["search"]["figures"]["params"]
    assert figure == {"mean": statistics.fmean(values), "std": pytest.approx(statistics.stdev(values)), "n": 2}


def test_a_study_is_retrained_and_shipped(searched: RunDir) -> None:
    with pytest.raises(RunError, match=r"holds the runs of seed 0, 1\n  try: --seeds 0,1, or one of them: .*seeds/0"):
        api.retrain(searched)
    with pytest.raises(
        RunError, match=r"nothing was found yet with seed 4\n  try: graphspec search .* --seeds 4 first"
    ):
        api.retrain(searched, seeds=[0, 4])
    study = api.retrain(searched, seeds=[0, 1], quiet=True)
    assert study.seeds == (0, 1)
    assert [result.found.params for result in study.results] == [
        result_of(run, "search")["found"]["params"] for run in searched.seed_runs().values()
    ]
    assert study.summary["accuracy"] == Figure.of([result.accuracy for result in study.results])
    with pytest.raises(RunError, match="holds the runs of seed"):
        api.export(searched)
    assert Path(api.export(searched.path / "seeds" / "1", latency=False, quiet=True).path).is_file()


def test_one_network_is_retrained_with_several_seeds(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    found = api.search(run, quiet=True)
    study = api.retrain(run, seeds=[0, 1], quiet=True)
    assert {result.found for result in study.results} == {found.found}
    weights = {(one.retrain.path / "weights.safetensors").read_bytes() for one in run.seed_runs().values()}
    assert len(weights) == 2
    more = api.retrain(run, seeds=[2], quiet=True)
    assert (more.seeds, more.summary["accuracy"].n) == ((0, 1, 2), 3)
    with pytest.raises(RunError, match="was searched without --seeds"):
        api.search(run, seeds=[0])
    api.search(run, overwrite=True, overrides=["search.gates.gamma=0.5"], quiet=True)
    with pytest.raises(RunError, match="was searched again since seed 0, 1, 2 was retrained"):
        api.retrain(run, seeds=[3])
    again = api.retrain(run, seeds=[0, 1, 2], overwrite=True, quiet=True)
    assert {result.found for result in again.results} != {found.found}


# -- going on ---------------------------------------------------------------------------------------------------------


def test_a_stopped_study_goes_on_and_ends_the_same(
    searched: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal in the second seed; the command that is printed does the rest."""
    write_spec(tmp_path, FAST)
    process = warm.Popen(["search", "tiny.yaml", "--seeds", "1,0"], tmp_path, environment(), stderr=subprocess.PIPE)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any(line.startswith("seed 0 (2 of 2)") for line in lines)
    assert any(line.startswith("pretrain") for line in lines)
    process.send_signal(signal.SIGTERM)
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGTERM
    assert "go on with: graphspec search runs/tiny-001-s7 --seeds 1,0 --resume" in told
    with chdir(tmp_path):
        run = RunDir.latest()
        assert [one.search.is_finished for one in run.seed_runs().values()] == [False, True]
        with pytest.raises(RunError, match=r"the search of seed 1, 0 has run or begun\n  try: .* --seeds 1,0 --resume"):
            api.search(seeds=[1, 0])
        study = api.search(run, seeds=[1, 0], resume=True)
        for seed, one in run.seed_runs().items():
            for name in LASTING:
                there = searched.seed_run(seed).search.path / name
                assert (one.search.path / name).read_bytes() == there.read_bytes()
        assert study.seeds == (0, 1)
        printed = capsys.readouterr().err
    assert "the search of runs/tiny-001-s7/seeds/1 is complete already" in printed
    assert "mean ± std" in printed


def test_the_command_line_prints_sums(
    searched: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main = Shell(monkeypatch, capsys)
    out, _ = run_main("search", str(searched.path), "--seeds", "0,1", "--resume", "--json")
    printed = json.loads(out)
    assert printed["seeds"] == [0, 1]
    assert printed["summary"] == json.loads(searched.summary.read_text())["search"]["figures"]
    assert "one seed" in run_main("search", str(searched.path), "--seeds", "0,1", "--seed", "1", code=1)[1]
    assert "takes no --seeds" in run_main("retrain", str(searched.path), "--seeds", "0,1", "--smoke", code=1)[1]


def test_settings_stay_the_same_for_all_seeds(searched: RunDir) -> None:
    with pytest.raises(RunError, match=r"seeds/0/search: cannot go on with a changed spec: search.lr"):
        api.search(searched, seeds=[5], overrides=["search.lr=0.5"])
    assert list(searched.seed_runs()) == [0, 1]
    with pytest.raises(RunError, match=r"one seed .* and several .* are asked for"):
        api.search(searched, seeds=[0], overrides=["seed=3"])


def test_a_half_made_seed_is_made_anew(tmp_path: Path) -> None:
    run = new_run(tmp_path, *RANDOM, "search.random_params=4k")
    (run.path / "seeds" / ".3.tmp" / "search").mkdir(parents=True)
    study = api.search(run, seeds=[3], quiet=True)
    assert study.seeds == (3,)
    assert study.summary["params"].std is None
    assert [entry.name for entry in (run.path / "seeds").iterdir()] == ["3"]


# -- the control experiment -------------------------------------------------------------------------------------------


def test_random_networks_match_seed_by_seed(searched: RunDir, tmp_path: Path) -> None:
    sizes = {seed: result_of(run, "search")["found"]["params"] for seed, run in searched.seed_runs().items()}
    assert found_sizes(searched, [0, 1]) == sizes
    assert found_sizes(searched.seed_run(1), [0, 4]) == dict.fromkeys((0, 4), sizes[1])
    run = new_run(tmp_path, *RANDOM)
    study = api.search(run, seeds=[0, 1], match=searched.path, quiet=True)
    for seed, result in zip(study.seeds, study.results, strict=True):
        config = json.loads((run.seed_run(seed).search.path / "config.json").read_text())
        assert config["search"]["random_params"] == sizes[seed]
        assert 0.7 * sizes[seed] < result.found.params <= sizes[seed]
    assert "accuracy" not in study.summary
    assert api.retrain(run, seeds=[0, 1], quiet=True).summary["accuracy"].n == 2
    with pytest.raises(RunError, match=r"seeds/3: this run has no finished search"):
        api.search(run, seeds=[3], match=searched.path)


def test_match_without_use_is_refused_before_anything_is_made(searched: RunDir, tmp_path: Path) -> None:
    write_spec(tmp_path, FAST)
    with chdir(tmp_path):
        for seeds in ({}, {"seeds": [0, 1]}):
            with pytest.raises(RunError, match=r"drawn at a size, and search\.strategy is dso"):
                api.search("tiny.yaml", match=searched.path, **seeds)  # type: ignore[call-overload]  # both forms
        with pytest.raises(RunError, match=r"holds the runs of several seeds\n  try: --seeds, or --match .*seeds/0"):
            api.search("tiny.yaml", match=searched.path, overrides=RANDOM)
    assert not (tmp_path / "runs").exists()
