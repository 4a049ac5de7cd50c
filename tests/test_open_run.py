"""Opening a run: `graph.json` is the truth about the network, the spec is read again for its settings."""

from __future__ import annotations

from pathlib import Path

import pytest

import compiler.elaborate.builder
from compiler.errors import RunError, SpecError
from compiler.ir.text import from_json, text, to_json
from compiler.passes.prune_zero_edges import prune
from graphspec import api
from runtime.jobs.run_retrain import found_network
from runtime.rundir.directory import RunDir
from tests.tiny import write_spec


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    compiled = api.compile(write_spec(tmp_path), root=tmp_path / "runs")
    assert compiled.run is not None
    return compiled.run


def test_the_graph_is_read_and_nothing_is_elaborated(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.elaborate.builder, "elaborate", lambda *_: 1 / 0)
    opened = api.open_run(run, ["search.epochs=7", "gates.init=0.5", "seed=4"])
    assert to_json(opened.graph) == run.graph_json.read_text()
    assert (opened.spec.config.search.epochs, opened.spec.gate_init, opened.spec.config.seed) == (7, 0.5, 4)


def test_another_graph_in_the_file_is_the_network(run: RunDir) -> None:
    graph = from_json(run.graph_json.read_text())
    smaller = prune(graph, graph.gates()[:1])
    assert text(smaller) != text(graph)
    run.graph_json.write_text(to_json(smaller))
    assert text(api.open_run(run).graph) == text(smaller)


@pytest.mark.parametrize(
    "override",
    [
        "symbols.width=12",
        "name=other",
        "input=[1, 16, 16]",
        "classes=7",
        "gates.share=block",
        "gates={share: stage, init: 0.5}",
        "blocks.normal.levels.count=1",
        "network.1.normal=3",
        "ops.avg_pool_3x3.kernel=5",
    ],
)
def test_overrides_of_the_network_are_refused(run: RunDir, override: str) -> None:
    with pytest.raises(RunError) as caught:
        api.open_run(run, ["search.epochs=7", override])
    assert str(caught.value) == (
        f"{run.path}: the overrides search.epochs=7 {override} give another graph than the one compiled there\n"
        f"  try: graphspec compile SPEC with the same --set"
    )


@pytest.mark.parametrize("override", ["symbols.width=8", "classes=10", "blocks.normal.levels.count=2", "name=tiny"])
def test_an_override_that_says_what_was_compiled_is_fine(run: RunDir, override: str) -> None:
    assert text(api.open_run(run, [override]).graph) == text(api.open_run(run).graph)


def test_a_wrong_override_is_shown_where_it_is_written(run: RunDir) -> None:
    with pytest.raises(SpecError, match=r"--set:1:15: error: search\.epochs"):
        api.open_run(run, ["search.epochs=many"])


@pytest.mark.parametrize("budget", ["budget.params=null", "budget.params=6k"])
def test_found_derived_and_random_runs_of_one_network_train_the_same(tmp_path: Path, budget: str) -> None:
    shared = ["gates.share=block", "search.strategy=random", "search.random_params=3500", budget]
    spec = write_spec(tmp_path)
    random = api.compile(spec, overrides=shared, out=tmp_path / "random", root=tmp_path / "runs").run
    found = api.compile(spec, overrides=shared, out=tmp_path / "found", root=tmp_path / "runs").run
    assert random is not None
    assert found is not None
    drawn = api.search(random, quiet=True)
    assert drawn.kept_gates < drawn.gates
    written = random.search.arch.read_text().replace("strategy: random", "strategy: apg_nag").replace(": 1.0", ": 0.3")
    found.search.path.mkdir()
    found.search.arch.write_text(written)
    derived = RunDir(tmp_path / "derived")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        derived = RunDir.open(tmp_path / api.derive(random.search.arch, spec, overrides=shared).run.path)
        networks = [found_network(api.open_run(one)) for one in (random, found, derived)]
    assert len({(text(one.model.graph), one.width) for one in networks}) == 1
    assert networks[0].width == 1 if budget.endswith("null") else networks[0].width > 1


@pytest.mark.parametrize("seeds", [None, (0, 1)])
def test_a_job_that_fails_on_a_spec_leaves_no_run(in_process: Path, seeds: tuple[int, ...] | None) -> None:
    spec, nothing = write_spec(in_process), {"data.name": "folder", "data.root": "none", "classes": 2}
    with pytest.raises(RunError, match="must hold the folders"):
        api.search(spec, seeds=seeds, overrides=nothing)  # type: ignore[call-overload]  # both of them
    assert not Path("runs").exists()
    first = api.compile(spec).run
    assert first is not None
    for job in (api.search, api.retrain, api.export):
        with pytest.raises(RunError):
            job(spec, overrides=nothing)  # type: ignore[operator]
    assert RunDir.latest() == first
    assert {path.name for path in Path("runs").iterdir()} == {first.path.name, "latest"}


@pytest.mark.parametrize("options", [{"bogus": 1}, {"seeds": [0], "bogus": 1}, {"strategy": 7}], ids=str)
def test_options_that_no_job_knows_leave_all_as_it_was(in_process: Path, options: dict[str, object]) -> None:
    spec = write_spec(in_process)
    jobs = [api.search] if "strategy" in options else [api.search, api.retrain]
    for job in jobs:
        with pytest.raises((TypeError, AttributeError)):
            job(spec, **options)  # type: ignore[operator]
        assert not Path("runs").exists()
    first = api.compile(spec).run
    assert first is not None
    for job in jobs:
        for target in (spec, first):
            with pytest.raises((TypeError, AttributeError)):
                job(target, overrides=["retrain.epochs=3"], **options)  # type: ignore[operator]
    assert RunDir.latest() == first
    assert {path.name for path in Path("runs").iterdir()} == {first.path.name, "latest"}
    assert first.given.exists() == ("strategy" in options)
    with pytest.raises(TypeError):
        api.export(spec, bogus=1)
    assert RunDir.latest() == first


def test_a_job_that_has_a_checkpoint_keeps_its_run(in_process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr("runtime.jobs.run_search.write_network", fail)
    with pytest.raises(RunError, match="the disk is full"):
        api.search(write_spec(in_process), overrides=["search.pretrain_epochs=0", "search.epochs=1"], quiet=True)
    assert RunDir.latest().search.has_results
