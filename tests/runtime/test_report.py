"""The HTML report: complete for a finished run, honest about a run in progress, self-contained, alive in a browser.

The browser test runs where the environment variable GRAPHSPEC_CHROMIUM names a Chromium (CI sets it).
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compiler.costs import total_cost
from compiler.elaborate import elaborate
from compiler.ir import Graph, Phase
from compiler.passes.infer_types import infer_types
from compiler.passes.prune_zero_edges import prune
from compiler.text import text, to_json
from graphspec.errors import RunError
from graphspec.parse import parse_file
from runtime.report import clock, write_report
from runtime.reporting.charts import Chart, Series, draw_chart, ticks
from runtime.reporting.heatmap import gate_matrices, shade
from runtime.reporting.record import read_run
from runtime.reporting.tables import cost_rows, grids, settings, timing_rows
from runtime.rundir import Compiled, RunDir

SPEC = """\
graphspec: 1
name: two-stages
input: [3, 8, 8]
classes: 4
gates: {share: none}
blocks:
  stem:
    type: "[3, H, W] -> [8, H, W]"
    nodes: {out: {op: conv, kernel: 3, from: in}}
  normal:
    type: "[C, H, W] -> [C, H, W]"
    levels: {count: 2, ops: [sep_conv_3x3, max_pool_3x3]}
    nodes:
      mix: {op: project, from: "levels.*", gated: true}
      out: {op: add, from: [mix, in]}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {op: global_avg_pool, from: in}
      out: {op: linear, from: pool}
network: [stem, {normal: 2}, head]
"""
PRETRAIN, SEARCH, RETRAIN = 2, 10, 3


def new_run(folder: Path) -> tuple[RunDir, Graph]:
    """A compiled run."""
    file = folder / "two_stages.yaml"
    file.write_text(SPEC, encoding="utf-8")
    spec = parse_file(file)
    graph = infer_types(elaborate(spec), Phase.SEARCH)
    config = json.dumps(spec.config.model_dump(mode="json"))
    compiled = Compiled(spec.name, 5, SPEC, SPEC, config, to_json(graph), text(graph))
    return RunDir.create(compiled, folder / "run", root=folder / "runs"), graph


def values_at(graph: Graph, epoch: int) -> list[float]:
    """Gates 0, 3, 6, ... grow; the others fall and reach zero at different epochs."""
    rising = [1 + epoch * (1 + i / 100) / SEARCH for i in range(len(graph.gates()))]
    return [round(v if i % 3 == 0 else max(0.0, 1 - epoch / (2 + i % 7)), 4) for i, v in enumerate(rising)]


def append(file: Path, record: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def search_for(run: RunDir, graph: Graph, epochs: int) -> Graph:
    """Pretend to search: the logs of so many epochs; what is left of the graph."""
    run.search.path.mkdir()
    kept = graph
    for stage, count in (("pretrain", PRETRAIN), ("search", epochs)):
        for epoch in range(1, count + 1):
            gates = values_at(graph, epoch if stage == "search" else 0)
            if stage == "search":
                kept = prune(graph, [g for g, v in zip(graph.gates(), gates, strict=True) if v == 0])
            cost = total_cost(kept)
            record = {"stage": stage, "epoch": epoch, "train_loss": 2 / epoch, "loss": 2.5 / epoch}
            record |= {"accuracy": 1 - 0.5 / epoch, "zero_gates": gates.count(0.0), "gates": len(gates)}
            record |= {"edges": kept.edge_count(), "params": cost.params, "flops": cost.flops, "gate_values": gates}
            append(run.search.metrics, record)
            speed = 100.0 * (1 + epoch) if stage == "search" else 300.0
            append(run.search.timings, {"stage": stage, "epoch": epoch, "seconds": 30.0, "images_per_second": speed})
    return kept


def finished_run(folder: Path) -> tuple[RunDir, Graph]:
    """A run with search, retraining and export behind it."""
    run, graph = new_run(folder)
    kept = search_for(run, graph, SEARCH)
    run.search.graph_json.write_text(to_json(kept), encoding="utf-8")
    run.search.arch.write_text("kept: <some>\n", encoding="utf-8")
    run.search.result.write_text(json.dumps({"accuracy": 0.95, "kept_edges": kept.edge_count()}), encoding="utf-8")
    run.retrain.path.mkdir()
    for epoch in range(1, RETRAIN + 1):
        append(
            run.retrain.metrics, {"stage": "retrain", "epoch": epoch, "train_loss": 1.0, "loss": None, "accuracy": 0.9}
        )
    run.retrain.result.write_text(json.dumps({"accuracy": 0.9312, "test_images": 360}), encoding="utf-8")
    run.export.mkdir()
    parity = {"passed": True, "batches": [{"batch": 1, "max_abs": 1.5e-7}, {"batch": 64, "max_abs": 2.5e-7}]}
    (run.export / "parity.json").write_text(json.dumps(parity), encoding="utf-8")
    (run.export / "latency.json").write_text(json.dumps({"onnxruntime": {"median_ms": 0.321}}), encoding="utf-8")
    return run, graph


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
    for text_wanted in ("93.12%", "360 images", "search finished", "1.5e-07", "0.321", "kept: <some>", "seed 0"):
        assert text_wanted in words
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
    with pytest.raises(RunError, match=r"metrics.jsonl: is damaged \(.*\)\n  try: remove it"):
        write_report(run)
    assert run.report.read_bytes() == before
    run.search.clear()
    run.config.unlink()
    with pytest.raises(RunError, match=r"config.json: is missing"):
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


def test_zero_and_small_gates_look_different() -> None:
    assert shade(0.0, 2.0) == 0.0
    assert 0.15 < shade(1e-6, 2.0) < 0.16
    assert shade(2.0, 2.0) == shade(3.0, 2.0) == 1.0


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3, 3, [3, 4, 5, 6]),
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


PROBE = """<script>
addEventListener("load", () => {
  const found = { errors: window.failures };
  const at = (item) => {
    const box = item.getBoundingClientRect();
    return { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
  };
  const hover = (item) => item.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, ...at(item) }));
  const press = (item, key) => item.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const tip = () => { const t = document.querySelector(".gs-tip"); return t.hidden ? null : t.textContent; };
  const node = document.querySelector(".gs-node[data-id$='level1.sep_conv_3x3']");
  hover(node);
  found.node = tip();
  found.lit = document.querySelectorAll(".gs-edge.gs-lit").length;
  hover(document.querySelector(".gs-gated[data-src]"));
  found.edge = tip();
  hover(document.querySelector(".chart"));
  found.chart = tip();
  hover(document.getElementById("strip"));
  found.strip = tip();
  const cell = document.querySelector(".hm-cell[data-gate='1']");
  hover(cell);
  found.cell = tip();
  const slider = document.getElementById("epoch");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  hover(cell);
  found.moved = [document.getElementById("epoch-shown").textContent, tip()];
  const view = document.querySelectorAll(".gs-view")[2], svg = view.querySelector("svg");
  const box = () => svg.getAttribute("viewBox").split(" ").map(Number).join(" "), before = box();
  view.focus();
  press(view, "+");
  found.zoomed = box() !== before;
  press(view, "0");
  found.reset = box() === before;
  press(view, "n");
  found.stepped = tip();
  press(view, "Escape");
  found.closed = tip();
  document.body.innerHTML = "";
  document.body.dataset.found = JSON.stringify(found);
});
</script>"""
WATCH = """<script>
window.failures = [];
addEventListener("error", (event) => window.failures.push(event.message));
addEventListener("securitypolicyviolation", (event) => window.failures.push("blocked " + event.blockedURI));
</script>"""


def in_chromium(program: str, page: Path, profile: Path) -> dict[str, Any]:
    """What the probe found on the page, run in headless Chromium."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update"]
    options += ["--window-size=1366,900", "--virtual-time-budget=5000", "--dump-dom"]
    command = [program, *options, f"--user-data-dir={profile}", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r'data-found="([^"]*)"', dom)
    assert found, dom[:2000]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


if "GRAPHSPEC_CHROMIUM" in os.environ:

    def test_the_page_is_alive(tmp_path: Path) -> None:
        run, graph = finished_run(tmp_path)
        source = write_report(run).read_text(encoding="utf-8")
        page = tmp_path / "probe.html"
        page.write_text(
            source.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PROBE}</body>"), encoding="utf-8"
        )
        found = in_chromium(os.environ["GRAPHSPEC_CHROMIUM"], page, tmp_path / "profile")
        assert found["errors"] == []
        assert "level1.sep_conv_3x3\nsep_conv" in found["node"]
        assert found["lit"] >= 3
        assert "gate " in found["edge"]
        assert found["chart"].startswith("epoch ")
        assert re.match(r"epoch \d+\n\S+ = [\d.]+", found["strip"])
        gate = graph.gates()[1]
        assert found["cell"] == f"{gate} = 0"
        assert found["moved"][0] == "1"
        name, value = found["moved"][1].split(" = ")
        assert name == gate
        assert float(value) == pytest.approx(values_at(graph, 1)[1], abs=1e-3)
        assert found["zoomed"]
        assert found["reset"]
        assert found["stepped"]
        assert found["closed"] is None
