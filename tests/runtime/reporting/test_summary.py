"""The summary of a run: six lines for people, figures for programs, nothing that there is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.analysis.costs import total_cost
from compiler.errors import RunError
from runtime.reporting.record import read_run
from runtime.reporting.summary import summarise
from runtime.rundir.directory import RunDir
from tests.runtime.reporting.report_runs import finished_run, finished_study, new_run, search_for


def lines_of(run: RunDir) -> dict[str, str]:
    return dict(summarise(read_run(run)).lines())


def test_a_finished_run_has_six_lines(tmp_path: Path) -> None:
    run, graph = finished_run(tmp_path)
    left = read_run(run).search.graph
    assert left is not None
    full, found = total_cost(graph), total_cost(left)
    assert lines_of(run) == {
        "supernet": "96.00% before the search, 95.00% pruned (validation)",
        "retrained": "93.12% test accuracy, 92.87% by onnxruntime (360 images)",
        "params": f"{full.params:,} -> {found.params:,} ({found.params / full.params:.1%})",
        "FLOPs": f"{full.flops:,} -> {found.flops:,} ({found.flops / full.flops:.1%})",
        "latency": "0.321 ms by onnxruntime, 0.987 ms by torch (one image, one thread)",
        "parity": "onnxruntime and torch differ by 1.5e-07 of the largest output (1.0e-04 allowed), same class 100.00%",
    }


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    run, graph = new_run(tmp_path)
    full = total_cost(graph)
    costs = {"params": f"{full.params:,} in the whole space", "FLOPs": f"{full.flops:,} in the whole space"}
    assert lines_of(run) == costs
    search_for(run, graph, 2)
    assert lines_of(run) == costs


def test_an_export_of_the_search_says_so(tmp_path: Path) -> None:
    run, _ = finished_run(tmp_path)
    run.retrain.clear()
    parity = run.export / "parity.json"
    parity.write_text(parity.read_text().replace('"source": "retrain"', '"source": "search", "test_images": 360'))
    assert lines_of(run)["exported"] == "92.87% by onnxruntime (the pruned supernet on 360 images)"


def test_seeds_become_mean_and_deviation(tmp_path: Path) -> None:
    study = finished_study(tmp_path, {0: 0.93, 1: 0.95, 2: 0.97})
    assert lines_of(study)["retrained"] == "95.00% ± 2.00% test accuracy, 92.87% ± 0.00% by onnxruntime (360 images)"
    figures = summarise(read_run(study)).as_json()
    assert figures["accuracy.retrained"] == {"mean": pytest.approx(0.95), "std": pytest.approx(0.02), "n": 3}
    assert figures["params.full"]["n"] == 1


def test_damaged_figures_are_named(tmp_path: Path) -> None:
    run, _ = finished_run(tmp_path)
    for name, content in {"latency.json": '{"latencies": [null, 3]}', "parity.json": '["other"]'}.items():
        before = (run.export / name).read_text()
        (run.export / name).write_text(content)
        with pytest.raises(RunError, match=f"{name}: is damaged: .*\n  try: graphspec export .*/run"):
            lines_of(run)
        (run.export / name).write_text(before)
