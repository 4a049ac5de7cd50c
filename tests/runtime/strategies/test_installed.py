"""Strategies of another package, offered as entry points `graphspec.strategies`: searched with, killed, reported."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from compiler.errors import SpecError
from compiler.ir.text import from_json
from graphspec import api
from runtime.rundir.directory import RunDir
from tests import warm
from tests.tiny import TINY, environment, graphspec, write_spec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TOYS = Path(__file__).parent / "installed"
ENTRY_POINTS = """\
[graphspec.strategies]
greedy = acme_strategies.greedy:Greedy
trials = acme_strategies.trials:Trials
"""
FINAL = ("arch.yaml", "graph.json", "weights.safetensors", "metrics.jsonl", "result.json", "strategy.json")
EVERY_STEP = ("--set", "search.checkpoint.minutes=1e-9")


def spec(strategy: str, options: str) -> str:
    """The tiny space, to be searched for two epochs (of every trial)."""
    settings = f"strategy: {strategy}\n  options: {options}\n  pretrain_epochs: 0\n  epochs: 2\n"
    return TINY.replace("pretrain_epochs: 2\n  epochs: 4\n", settings)


SPECS = {"greedy": spec("greedy", "{remove: 6}"), "trials": spec("trials", "{trials: 3}")}


def install(folder: Path, entry_points: str = ENTRY_POINTS) -> Path:
    """A folder with the files that pip would write."""
    site = folder / "site"
    shutil.copytree(TOYS, site / "acme_strategies")
    info = site / "acme_strategies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-strategies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("acme"))


def run(site: Path, folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the command line where the strategies are installed; what it says to people."""
    return graphspec(folder, *arguments, code=code, site=site).stderr


def final_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "runs" / "latest" / "search" / name).read_bytes() for name in FINAL}


def kill_after(site: Path, folder: Path, checkpoints: int) -> None:
    """Start or go on with a search, and kill it when it has written so many checkpoints."""
    process = warm.Popen(["search", "--resume", "--quiet", *EVERY_STEP], folder, environment(site))
    written = folder / "runs" / "latest" / "search" / "checkpoints"
    newest = max((int(path.stem) for path in written.glob("*.json")), default=0)
    while process.poll() is None and not any(int(p.stem) >= newest + checkpoints for p in written.glob("*.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module", params=SPECS)
def searched(request: pytest.FixtureRequest, site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A strategy and a folder with its finished search; tests must not change it."""
    name = str(request.param)
    folder = tmp_path_factory.mktemp(name)
    (folder / "tiny.yaml").write_text(SPECS[name])
    run(site, folder, "search", "tiny.yaml")
    return name, folder


def test_a_killed_search_ends_as_an_uninterrupted_one(site: Path, searched: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = searched
    (tmp_path / "tiny.yaml").write_text(SPECS[name])
    run(site, tmp_path, "compile", "tiny.yaml")
    kill_after(site, tmp_path, 10)  # in the first epoch
    kill_after(site, tmp_path, 25)  # in a later one: something was removed, or the first trial is over
    run(site, tmp_path, "search", "--resume")
    assert final_files(tmp_path) == final_files(folder)


def test_what_was_found_is_a_network_like_any_other(site: Path, searched: tuple[str, Path]) -> None:
    name, folder = searched
    made = RunDir.open(folder / "runs" / "latest")
    result = json.loads(made.search.result.read_text())
    full, found = from_json(made.graph_json.read_text()), from_json(made.search.graph_json.read_text())
    assert len(full.gates()) > len(found.gates()) == result["kept_gates"]
    assert f"strategy: {name}" in made.search.arch.read_text()
    weights = safetensors.torch.load(made.search.weights.read_bytes())
    assert {f"{scope}.gates" for scope in found.gate_scopes()} <= weights.keys()
    if name == "greedy":
        assert len(full.gates()) - len(found.gates()) >= 12
    else:
        trials = json.loads(made.search.strategy.read_text())["tables"]["Trials"]
        assert [trial["trial"] for trial in trials] == ["trial 1", "trial 2", "trial 3"]
        best = max(trials, key=lambda trial: trial["score"])
        assert (best["edges"], best["score"]) == (found.edge_count(), result["accuracy"])


REPORT = """
import sys
from runtime.reporting.page import write_report
from runtime.rundir.directory import RunDir
write_report(RunDir.open(RunDir.latest().path))
assert "torch" not in sys.modules and "acme_strategies" not in sys.modules
"""


def test_the_report_has_its_section_without_torch_and_without_the_package(searched: tuple[str, Path]) -> None:
    name, folder = searched
    subprocess.run([sys.executable, "-c", REPORT], cwd=folder, env=environment(), check=True)
    page = (folder / "runs" / "latest" / "report.html").read_text()
    section = page.partition('<section id="strategy">')[2].partition("</section>")[0]
    assert f"<h2>Strategy: {name}</h2>" in section
    wanted = {
        "greedy": ("After every epoch the weakest gates went.", "<h3>Removals</h3>", "Edges left", "Gates over time"),
        "trials": ("Networks drawn at random, trained from scratch.", "<h3>Trials</h3>", "<td>trial 3</td>"),
    }
    for words in wanted[name]:
        assert words in section


def test_what_it_found_is_retrained_without_the_package(searched: tuple[str, Path], tmp_path: Path) -> None:
    shutil.copytree(searched[1] / "runs", tmp_path / "runs", symlinks=True)
    graphspec(tmp_path, "retrain", "--quiet", "--set", "retrain.epochs=1")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("strategy: greedy", "strategy: gredy", "search.strategy: unknown strategy 'gredy'; did you mean 'greedy'?"),
        ("strategy: greedy", "strategy: x", "unknown strategy 'x'; there are dso, random, greedy, trials"),
        ("remove: 6", "remove: none", "search.options.remove: expected a whole number, found 'none'"),
        ("remove: 6", "remov: 6", "search.options: unknown key 'remov'; did you mean 'remove'?"),
        ("strategy: greedy", "strategy: dso", "search.options: unknown key 'remove'; dso takes no options"),
    ],
)
def test_mistakes_have_a_place(site: Path, tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "tiny.yaml").write_text(SPECS["greedy"].replace(old, new))
    errors = run(site, tmp_path, "compile", "tiny.yaml", code=1)
    line = 1 + next(i for i, line in enumerate(SPECS["greedy"].replace(old, new).splitlines()) if new in line)
    if new == "strategy: dso":
        line += 1
    assert f"tiny.yaml:{line}:" in errors
    assert said in errors


def test_an_override_is_checked_when_it_comes(site: Path, searched: tuple[str, Path]) -> None:
    errors = run(site, searched[1], "search", "--overwrite", "--set", "search.options={nothing: 1}", code=1)
    assert "search.options: unknown key 'nothing'" in errors


@pytest.mark.usefixtures("one_thread")
def test_the_strategy_of_the_documentation_searches(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "documented"}
    snippet = text.partition("```python run\n")[2].partition("```")[0]
    exec(compile(snippet, "documented", "exec", dont_inherit=True), names)  # noqa: S102  (what a reader would write)
    with chdir(tmp_path):
        compiled = api.compile(write_spec(tmp_path), overrides=["search.epochs=2"])
        options = ["search.epochs=2", "search.options.share=0.3"]
        found = api.search(compiled.run, strategy=names["Halving"], overrides=options, quiet=True)
        assert 0 < found.kept_gates <= 38 * 0.7**2 + 1
        with pytest.raises(SpecError, match="unknown key 'shar'; did you mean 'share'"):
            api.search(compiled.run, strategy=names["Halving"], overrides=["search.options.shar=1"], overwrite=True)


BROKEN = {
    "import": ("acme_strategies.nowhere:X", "the strategy 'toy' (acme_strategies.nowhere:X) cannot be imported"),
    "kind": ("acme_strategies.greedy:Options", "must be a subclass of runtime.strategies.base.Strategy, not <class"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_named(tmp_path: Path, name: str) -> None:
    value, message = BROKEN[name]
    site = install(tmp_path, f"[graphspec.strategies]\ntoy = {value}\n")
    (tmp_path / "tiny.yaml").write_text(spec("toy", "{}"))
    assert message in run(site, tmp_path, "compile", "tiny.yaml", code=1)


def test_a_built_in_name_is_taken(tmp_path: Path) -> None:
    site = install(tmp_path, "[graphspec.strategies]\nrandom = acme_strategies.greedy:Greedy\n")
    (tmp_path / "tiny.yaml").write_text(TINY)
    errors = run(site, tmp_path, "compile", "tiny.yaml", code=1)
    assert "the strategy 'random' (acme_strategies.greedy:Greedy) has the name of a built-in one" in errors


def test_both_are_short() -> None:
    for name in SPECS:
        assert len((TOYS / f"{name}.py").read_text().splitlines()) < 80
