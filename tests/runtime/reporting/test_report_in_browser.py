"""The report in a headless Chromium: loads in silence, answers pointer and keys, light and dark, and prints.

The tests need a Chromium (`chromium` on the path, or named by GRAPHSPEC_CHROMIUM); without one they are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from compiler.ir.graph import Graph
from runtime.reporting.page import write_report
from tests.chromium import Chromium, find_chromium
from tests.runtime.reporting.report_runs import SEARCH, finished_run, finished_study, new_run, search_for, values_at

PROGRAM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium: install one, or name it in GRAPHSPEC_CHROMIUM"),
]
TIP = "(() => { const t = document.querySelector('.gs-tip'); return t.hidden ? null : t.textContent; })()"
CELL = "document.querySelector(\".hm-cell[data-gate='1']\")"
SLIDER = "document.getElementById('epoch')"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
BRIGHTNESS = f"{BACKGROUND}.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with Chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Graph]:
    run, graph = finished_run(tmp_path_factory.mktemp("finished"))
    return write_report(run), graph


@pytest.fixture
def page(browser: Chromium, finished: tuple[Path, Graph]) -> Chromium:
    """A finished run's report, freshly loaded at the usual size, with its heat maps unfolded."""
    browser.look()
    browser.open(finished[0])
    browser.run("document.getElementById('gates').open = true")
    return browser


def test_pages_load_in_silence_and_ask_for_nothing(browser: Chromium, tmp_path: Path) -> None:
    """Of a run at every point and of a study, in both colours."""
    (tmp_path / "started").mkdir()
    (tmp_path / "study").mkdir()
    started, graph = new_run(tmp_path / "started")
    pages = [write_report(started)]
    search_for(started, graph, 3)
    pages.append(write_report(started).rename(tmp_path / "in_progress.html"))
    pages.append(write_report(started))
    pages.append(write_report(finished_study(tmp_path / "study", {0: 0.9, 1: 0.95})))
    for path in pages:
        for dark in (False, True):
            browser.look(dark=dark)
            browser.open(path)
            assert browser.run("document.querySelectorAll('svg').length") > 0
            assert browser.complaints() == []
            assert browser.requests() == [path.as_uri()]


def test_silence_is_not_deafness(browser: Chromium, tmp_path: Path) -> None:
    """What the test above looks for is found where it is."""
    noisy = tmp_path / "noisy.html"
    noisy.write_text("<script>console.error('no'); fetch('other.json'); undefined.x;</script><img src='none.png'>")
    browser.open(noisy)
    complaints = "\n".join(browser.complaints())
    assert "error: " in complaints
    assert "TypeError" in complaints
    assert (tmp_path / "none.png").as_uri() in browser.requests()


def test_hovering_tells_costs_gates_and_values(page: Chromium, finished: tuple[Path, Graph]) -> None:
    page.hover("document.querySelector(\".gs-node[data-id$='level1.sep_conv_3x3']\")")
    assert "level1.sep_conv_3x3\nsep_conv" in page.run(TIP)
    assert "params" in page.run(TIP)
    assert page.run("document.querySelectorAll('.gs-edge.gs-lit').length") >= 3
    page.hover("document.querySelector('.chart')")
    assert page.run(TIP).startswith("epoch ")
    page.hover("document.getElementById('strip')")
    assert re.match(r"epoch \d+\n\S+ = [\d.]+", page.run(TIP))
    page.hover(CELL)
    assert page.run(TIP) == f"{finished[1].gates()[1]} = 0"
    page.hover("document.querySelector('h1')", across=0.99)
    assert page.run(TIP) is None


def test_the_slider_moves_through_the_epochs(page: Chromium, finished: tuple[Path, Graph]) -> None:
    graph = finished[1]
    assert page.run(f"{SLIDER}.value") == str(SEARCH - 1)
    page.click(SLIDER, across=0.001)
    assert page.run("document.getElementById('epoch-shown').textContent") == "1"
    page.press("ArrowRight")
    assert page.run("document.getElementById('epoch-shown').textContent") == "2"
    page.hover(CELL)
    name, value = page.run(TIP).split(" = ")
    assert name == graph.gates()[1]
    assert float(value) == pytest.approx(values_at(graph, 2)[1], abs=1e-3)
    page.click("document.getElementById('strip')", across=4.5 / SEARCH)
    assert page.run("document.getElementById('epoch-shown').textContent") == "5"


def test_everything_is_reached_by_keyboard(page: Chromium) -> None:
    page.run("document.querySelectorAll('.gs-view')[2].scrollIntoView()")
    box = "document.querySelectorAll('.gs-view svg')[2].getAttribute('viewBox').split(' ').map(Number).join(' ')"
    whole = page.run(box)
    page.run("document.querySelectorAll('.gs-view')[2].focus()")
    page.press("+")
    assert page.run(box) != whole
    page.press("0")
    assert page.run(box) == whole
    page.press("n")
    first = page.run(TIP)
    page.press("n")
    assert first != page.run(TIP) is not None
    page.press("p")
    assert page.run(TIP) == first
    page.press("Escape")
    assert page.run(TIP) is None
    for element in (".chart", ".hm"):
        page.run(f"document.querySelector('{element}').focus()")
        page.press("ArrowRight")
        assert page.run(TIP), element
    page.run("document.querySelector('nav a').focus()")
    page.press("Tab")
    assert page.run("document.activeElement.textContent") == "Strategy"


def test_light_and_dark_follow_the_reader(page: Chromium) -> None:
    light = page.run(BRIGHTNESS)
    page.look(dark=True)
    assert page.run(BRIGHTNESS) < 150 < 600 < light
    assert page.run("getComputedStyle(document.body).color") != page.run(BACKGROUND)


@pytest.mark.parametrize("width", [1366, 420])
def test_nothing_sticks_out(page: Chromium, width: int) -> None:
    page.look(width=width)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_print_is_light_and_whole(page: Chromium) -> None:
    page.run(
        "document.querySelectorAll('#architecture details').forEach((item) => { item.open = false; }); "
        "addEventListener('beforeprint', () => { window.closed = "
        "document.querySelectorAll('#architecture details:not([open])').length; })"
    )
    pdf = page.printed()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", pdf)) > 2
    assert page.run("window.closed") == 0
    assert page.run("document.querySelectorAll('#architecture details[open]').length") == 0
    page.look(dark=True, media="print")
    assert page.run(BRIGHTNESS) > 600
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
