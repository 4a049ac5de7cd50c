"""The HTML report: complete for a finished run, honest about a run in progress, self-contained."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from compiler.analysis.costs import total_cost
from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.ir.text import to_json
from runtime.reporting.charts import Chart, Series, draw_chart, ticks
from runtime.reporting.heatmap import FULL, gate_matrices, heat_map, shade
from runtime.reporting.page import clock, write_report
from runtime.reporting.record import read_run
from runtime.reporting.tables import commands, cost_rows, grids, settings, timing_rows
from runtime.rundir.directory import RunDir
from tests.compiler.plain import level_graph
from tests.runtime.reporting.report_runs import PRETRAIN, SEARCH, finished_run, finished_study, new_run, search_for


class Page(HTMLParser):
    """What a page is made of: tags with attributes, and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(source)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str, look: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and look in ("", *(a.get("class") or "").split(" "))]


def report_of(run: RunDir) -> Page:
    path = write_report(run)
    assert path == run.report
    return Page(path.read_text(encoding="utf-8"))


def test_a_finished_run_is_reported_whole(tmp_path: Path) -> None:
    run, graph = finished_run(tmp_path)
    page = report_of(run)
    words = page.words
    tiles = ("93.12%", "92.87%", "360 images", "0.321 ms", "1.5e-07")
    for wanted in (*tiles, "search finished", "kept: <some>", "seed 0"):
        assert wanted in words
    assert not page.all("p", "missing")
    shown = {a["data-id"] for a in page.all("g", "gs-node")}
    assert {n.id for n in graph.nodes() if n.id.startswith(("stage", "normal", "stem", "head"))} <= shown
    faint = {(a["data-src"], a["data-dst"]) for a in page.all("g", "gs-closed") if "data-src" in a}
    kept = {(e.src, e.dst) for e in search_graph(run).edges()}
    assert faint == {(e.src, e.dst) for e in graph.edges() if (e.src, e.dst) not in kept and e.dst in shown}
    assert len(page.all("rect", "hm-cell")) == len(graph.gates())
    assert len(page.all("svg", "chart")) == 6
    slider = next(a for a in page.all("input") if a.get("type") == "range")
    assert (slider["min"], slider["max"]) == ("0", str(SEARCH - 1))
    assert f"graphspec compile {run.path}/spec.resolved.yaml" in words


def search_graph(run: RunDir) -> Graph:
    graph = read_run(run).search.graph
    assert graph is not None
    return graph


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    page = report_of(finished_run(tmp_path)[0])
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action", "data"} & set(attributes)
        assert re.match(r"#|data:|$", attributes.get("href") or "")


def test_a_compiled_run_says_what_is_missing(tmp_path: Path) -> None:
    run, graph = new_run(tmp_path)
    page = report_of(run)
    assert len(page.all("p", "missing")) == 7
    assert "search not started" in page.words
    assert not page.all("g", "gs-faint")
    assert f"{graph.edge_count()} edges" in page.words


def test_a_run_in_progress_shows_the_state_so_far(tmp_path: Path) -> None:
    run, graph = new_run(tmp_path)
    kept = search_for(run, graph, epochs=3)
    with run.search.metrics.open("a", encoding="utf-8") as log:
        log.write('{"stage": "search", "epo')  # being written at this moment
    record = read_run(run)
    assert record.kept is not None
    assert to_json(record.kept) == to_json(kept)
    page = report_of(run)
    assert "search in progress" in page.words
    assert page.all("g", "gs-closed")
    assert len(record.search.epochs) == PRETRAIN + 3


def test_damaged_files_are_named_and_the_old_report_stays(tmp_path: Path) -> None:
    run, graph = new_run(tmp_path)
    report_of(run)
    before = run.report.read_bytes()
    search_for(run, graph, 1)
    with run.search.metrics.open("a", encoding="utf-8") as log:
        log.write("no json\n")
    with pytest.raises(RunError, match=r"metrics.jsonl: is damaged: line 4: .*\n  try: graphspec search .*--overwrite"):
        write_report(run)
    assert run.report.read_bytes() == before
    run.search.clear()
    run.config.unlink()
    with pytest.raises(RunError, match=r"config.json: cannot read: No such file"):
        write_report(run)


def test_the_same_run_gives_the_same_report(tmp_path: Path) -> None:
    run, _ = finished_run(tmp_path)
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_costs_per_block_add_up(tmp_path: Path) -> None:
    run, graph = finished_run(tmp_path)
    rows = cost_rows(graph, search_graph(run))
    assert [row.name for row in rows][:2] == ["stem", rows[1].name]
    blocks = [row for row in rows if row.kind == "block"]
    total = rows[-1]
    assert total.after is not None
    assert sum(row.before.params for row in blocks) == total.before.params == total_cost(graph).params
    assert sum(row.after.flops for row in blocks if row.after) == total.after.flops < total.before.flops
    assert all(row.after is None for row in cost_rows(graph, None))


def test_speed_up_compares_the_first_and_last_tenth() -> None:
    rates = [10.0, 12.0, *[20.0] * 16, 60.0, 64.0]
    rows = timing_rows([{"stage": "search", "seconds": 2.0, "images_per_second": rate} for rate in rates])
    assert [(row.stage, row.epochs, row.seconds) for row in rows] == [("search", 20, 40.0)]
    assert rows[0].speed_up == pytest.approx(62 / 11)


def test_settings_know_the_defaults() -> None:
    found = {item.key: item for item in settings({"seed": 7, "search": {"epochs": 20, "gates": {"lr": 0.5}}})}
    assert {key: item.default for key, item in found.items()} == {
        "seed": False, "search.epochs": True, "search.gates.lr": False,
    }  # fmt: skip


def test_matrices_hold_every_gate_once(tmp_path: Path) -> None:
    _, graph = new_run(tmp_path)
    matrices = gate_matrices(graph)
    assert [gate for m in matrices for _, _, gate in m.cells] == [g for s in graph.gate_scopes().values() for g in s]
    assert matrices[0].rows[-1] == "mix"
    assert matrices[0].columns[-1].startswith("level1.")


@pytest.mark.parametrize("factor", [1.0, -1.0, -1e-30])
def test_gates_below_zero_are_shaded_by_their_size(factor: float) -> None:
    graph = level_graph(0)
    values = {gate: factor * (n % 5) for n, gate in enumerate(graph.gates())}
    shown = heat_map(graph, {1: values})
    assert shown.largest == 4 * abs(factor)
    packed = base64.b64decode(json.loads(shown.payload)["values"])
    shares = np.frombuffer(packed, np.int16) / FULL * shown.largest
    assert np.allclose(shares, list(values.values()), rtol=1e-4, atol=0)
    assert {"1.000", "0.000", "0.362"} <= set(re.findall("fill-opacity:([0-9.]+)", shown.matrices[0]))


def test_zero_and_small_gates_look_different() -> None:
    assert shade(0.0, 2.0) == 0.0
    assert 0.15 < shade(1e-6, 2.0) < 0.16
    assert shade(2.0, 2.0) == shade(3.0, 2.0) == 1.0


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3, 3, [3, 3.1, 3.2, 3.3]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-1.2, 7, [-2, 0, 2, 4, 6, 8]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(found)


def test_charts_of_few_points() -> None:
    assert draw_chart(Chart("empty", "epoch", (Series("a", ()),), str)) == ""
    one = draw_chart(Chart("one", "epoch", (Series("a", ((1.0, 0.5),)),), str))
    assert one.count("<circle") == 1
    assert "nan" not in one


@pytest.mark.parametrize("largest", [0.5, 48_611_968.0, 1_493_662_464.0])
def test_no_number_at_an_axis_is_cut_off(largest: float) -> None:
    points = tuple((float(epoch), largest / epoch) for epoch in range(1, 5))
    drawn = ElementTree.fromstring(draw_chart(Chart("FLOPs", "epoch", (Series("a", points),), "{:,.0f}".format)))
    ends = [each for each in drawn.iter("text") if each.get("text-anchor") == "end"]
    assert ends
    assert all(float(each.get("x", 0)) - 6 * len(each.text or "") >= 0 for each in ends)


def test_json_of_any_shape_becomes_tables() -> None:
    deep = {"x": {"y": [1, 2]}, "z": {"y": 1234}}
    value = {"passed": True, "rows": [{"a": 1, "b": None}, {"a": 2.5}], "deep": deep, "empty": []}
    tables = grids(value, "Parity")
    assert [(t.title, t.heads, t.rows) for t in tables] == [
        ("Parity", (), (("passed", "yes"), ("empty", ""))),
        ("Parity / rows", ("a", "b"), (("1", "-"), ("2.5", "-"))),
        ("Parity / deep", ("", "y"), (("x", "1, 2"), ("z", "1,234"))),
    ]
    assert [(t.title, t.rows) for t in grids({"one": {"k": "v"}})] == [("one", (("k", "v"),))]
    assert grids([1, 2])[0].rows == (("1, 2",),)


@pytest.mark.parametrize(("seconds", "words"), [(0.1234, "0.123 s"), (75.3, "1 min 15 s"), (7261, "2 h 1 min")])
def test_times_are_readable(seconds: float, words: str) -> None:
    assert clock(seconds) == words


# -- several seeds ----------------------------------------------------------------------------------------------------


def test_a_study_is_summed_up(tmp_path: Path) -> None:
    study = finished_study(tmp_path, {0: 0.93, 1: 0.95, 7: 0.97})
    write_report(study.seed_run(7))
    page = report_of(study)
    for wanted in ("95.00% ± 2.00%", "seeds 0, 1, 7", "finished for 3 of 3 seeds", "search --seeds 0,1,7", "seed 7"):
        assert wanted in page.words
    assert (study.path / "seeds/7/report.html").is_file()
    links = [a.get("href") or "" for a in page.all("a")]
    assert "seeds/7/report.html" in links
    assert len(page.all("svg", "chart")) == 3
    sections = [a["id"] for a in page.all("section") if "id" in a]
    assert sections == ["seeds", "architecture", "costs", "configuration", "reproduce"]
    assert [link for link in links if link.startswith("#")] == [f"#{name}" for name in sections]


def test_a_study_in_progress_counts_its_seeds(tmp_path: Path) -> None:
    study = finished_study(tmp_path, {0: 0.93, 1: 0.95})
    study.seed_run(1).retrain.result.unlink()
    words = report_of(study).words
    assert "search finished for 2 of 2 seeds" in words
    assert "retrain finished for 1 of 2 seeds" in words


def test_commands_repeat_what_a_job_ran_with(tmp_path: Path) -> None:
    study = finished_study(tmp_path, {0: 0.93, 1: 0.95, 2: 0.97})
    for seed, size in ((0, 900), (1, 900), (2, 1000)):
        config = json.loads(study.config.read_text())
        config |= {"seed": seed, "search": {**config["search"], "strategy": "random", "random_params": size}}
        (study.seed_run(seed).search.path / "config.json").write_text(json.dumps(config))
    drawn = "--set 'search.strategy=\"random\"' --set search.random_params="
    assert commands(read_run(study), study.resolved)[1:4] == [
        f"graphspec search --seeds 0,1 {drawn}900",
        f"graphspec search --seeds 2 {drawn}1000",
        "graphspec retrain --seeds 0,1,2",
    ]
    assert "strategy random" in report_of(study).words
    one = study.seed_run(2)
    assert commands(read_run(one), one.resolved)[1] == f"graphspec search {drawn}1000"
