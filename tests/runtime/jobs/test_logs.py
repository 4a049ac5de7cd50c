"""The metrics log survives a resume unchanged, TensorBoard can read it, and people read the right thing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compiler.errors import RunError, folded
from runtime.jobs.logs import Console, MetricsLog
from runtime.jobs.runner import LiveReport
from runtime.rundir.directory import RunDir
from tests.full_disk import fill_disk
from tests.runtime.reporting.report_runs import finished_run


class Log(MetricsLog):
    """A log that remembers its warnings."""

    def __init__(self, folder: Path | None) -> None:
        self.warnings: list[str] = []
        super().__init__(folder, self.warnings.append)


def epochs(log: MetricsLog, numbers: range, pace: float = 1.0) -> None:
    for epoch in numbers:
        log.histogram("gates/stage0", torch.linspace(0, 1, epoch + 1, dtype=torch.float64))
        log.write({"stage": "search", "epoch": epoch, "loss": 1 / epoch, "zero": {"open": epoch, "all": 9}})
        log.write_timing({"epoch": epoch, "seconds": pace * epoch})


def curves(folder: Path) -> EventAccumulator:
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    read.Reload()
    return read


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(p.step, round(p.value, 6)) for p in curves(folder).Scalars(name)]


def test_a_record_is_one_line_with_its_keys_in_order(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write({"stage": "λ", "epoch": 1, "loss": 0.1, "parts": [float("inf"), {"x": float("nan")}]})
    log.write_timing({"seconds": 2})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"stage": "λ", "epoch": 1, "loss": 0.1, "parts": [null, {"x": null}]}\n'
    )
    assert (tmp_path / "timings.jsonl").read_text() == '{"seconds": 2}\n'


def test_tensorboard_shows_every_number_and_the_histograms(tmp_path: Path) -> None:
    epochs(Log(tmp_path), range(1, 4))
    assert curves(tmp_path).Tags()["scalars"] == ["loss", "zero/open", "zero/all", "seconds"]
    assert points(tmp_path, "loss") == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    histogram = curves(tmp_path).Histograms("gates/stage0")[2]
    value = histogram.histogram_value
    assert (histogram.step, value.num, value.min, value.max, sum(value.bucket)) == (3, 4, 0.0, 1.0, 4)
    assert value.sum == pytest.approx(2.0, rel=1e-12)
    assert value.sum_squares == pytest.approx(1 + 4 / 9 + 1 / 9, rel=1e-12)
    assert len(value.bucket_limit) == len(value.bucket)


def test_a_histogram_of_nothing_or_of_one_value_is_no_trouble(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.histogram("none", torch.zeros(0))
    log.histogram("infinite", torch.tensor([float("nan")]))
    log.histogram("ones", torch.ones(3, 2))
    log.write({})
    assert curves(tmp_path).Tags()["histograms"] == ["ones"]


def test_a_resumed_log_is_byte_identical_and_has_no_double_points(tmp_path: Path) -> None:
    epochs(Log(tmp_path / "whole"), range(1, 7))
    killed = Log(tmp_path / "killed")
    epochs(killed, range(1, 4))
    position = json.loads(json.dumps(killed.position()))
    epochs(killed, range(4, 6))  # lost: the checkpoint is older
    with (tmp_path / "killed/metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "sea')  # the kill came in the middle of a write
    resumed = Log(tmp_path / "killed")
    resumed.rewind(position)
    epochs(resumed, range(4, 7), pace=10.0)
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    times = [json.loads(line) for line in (tmp_path / "killed/timings.jsonl").read_text().splitlines()]
    assert [(t["epoch"], t["seconds"]) for t in times] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
        (5, 50.0),
        (6, 60.0),
    ]
    assert points(tmp_path / "killed", "seconds") == [(t["epoch"], t["seconds"]) for t in times]
    assert [h.step for h in curves(tmp_path / "killed").Histograms("gates/stage0")] == [1, 2, 3, 4, 5, 6]
    assert resumed.position() == {"metrics": 6, "timings": 6}
    assert resumed.warnings == []


def test_a_position_depends_on_no_time(tmp_path: Path) -> None:
    slow, fast = Log(tmp_path / "slow"), Log(tmp_path / "fast")
    epochs(slow, range(1, 3), pace=1234.56789)
    epochs(fast, range(1, 3), pace=0.1)
    assert slow.position() == fast.position() == {"metrics": 2, "timings": 2}


def test_a_log_starts_empty_without_rewind(tmp_path: Path) -> None:
    epochs(Log(tmp_path), range(1, 4))
    anew = Log(tmp_path)
    assert anew.position() == {"metrics": 0, "timings": 0}
    epochs(anew, range(1, 2))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert points(tmp_path, "loss") == [(1, 1.0)]


def test_a_file_that_lost_lines_is_reported_and_continued(tmp_path: Path) -> None:
    log = Log(tmp_path)
    epochs(log, range(1, 4))
    position = log.position()
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    resumed = Log(tmp_path)
    resumed.rewind(position)
    assert [w.partition("metrics.jsonl")[2] for w in resumed.warnings] == [" has lost 2 of 3 lines"]
    resumed.write({"epoch": 4})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 4}\n'
    assert resumed.position() == {"metrics": 2, "timings": 3}


def test_a_rank_that_writes_nothing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = Log(None)
    epochs(log, range(1, 3))
    assert log.position() == {"metrics": 2, "timings": 2}
    log.rewind({"metrics": 1, "timings": 1})
    assert log.position() == {"metrics": 1, "timings": 1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard/events.out.tfevents.0000000001"])
def test_a_full_disk_is_a_clear_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path)
    epochs(log, range(1, 2))
    fill_disk(monkeypatch, after=["metrics.jsonl", "tensorboard/events.out.tfevents.0000000001"].index(name))
    with pytest.raises(RunError, match=f"{name}: cannot write: No space left on device\n  try: free some space"):
        log.write({"epoch": 2, "loss": 0.5})


# -- people -----------------------------------------------------------------------------------------------------


def show(console: Console) -> None:
    with console.progress("search 1/2", total=4, done=1) as advance:
        advance(1)
        console.line("[bold] 12:30 /tmp/x " + "long " * 40)
        console.warn("careful")
        advance(2)


def test_without_a_terminal_there_are_plain_unwrapped_lines() -> None:
    stream = io.StringIO()
    show(Console(stream=stream))
    assert stream.getvalue() == "[bold] 12:30 /tmp/x " + "long " * 40 + "\nwarning: careful\n"


def test_quiet_leaves_the_warnings() -> None:
    stream = io.StringIO()
    show(Console(quiet=True, stream=stream))
    assert stream.getvalue() == "warning: careful\n"


def test_people_read_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    show(Console())
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith("warning: careful\n")


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, kind: str) -> str:
    monkeypatch.setenv("TERM", kind)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    ours, its = pty.openpty()
    with os.fdopen(its, "w") as stream:
        show(Console(stream=stream))
    seen = bytearray()
    with suppress(OSError):  # how the other side of a terminal ends
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    return seen.decode()


def test_a_terminal_shows_a_bar_with_the_time_left_and_its_cursor_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_a_terminal(monkeypatch, "xterm")
    assert "search 1/2" in seen
    assert "100%" in seen
    assert "0:00:00" in seen
    assert "[bold] 12:30 /tmp/x" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


def test_a_terminal_gets_lines_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "  try: graphspec search " + "runs/" * 20
    excerpt = "   12 | " + "value " * 15
    long = f"first {'word ' * 40}\n{command}\n{excerpt}"
    lines = folded(long).split("\n")
    assert lines[-2:] == [command, excerpt]
    assert all(len(line) <= 80 for line in lines[:-2])
    assert "".join(lines).replace(" ", "") == long.replace(" ", "").replace("\n", "")
    seen = re.sub("\x1b.*?[a-zA-Z]", "", on_a_terminal(monkeypatch, "xterm"))
    assert all(len(part) <= 80 for line in seen.splitlines() for part in line.split("\r"))


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_a_terminal(monkeypatch, "dumb").splitlines()[1:] == ["warning: careful"]


# -- the report ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["5", '{"stage": 5}', '{"stage": "search", "epoch": 1, "gate_values": ["x"]}', "[["])
def test_a_report_that_cannot_be_made_is_a_warning(
    tmp_path: Path, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished_run(tmp_path)
    with run.search.metrics.open("a") as file:
        file.write(line + "\n")
    LiveReport(run, Console(quiet=True)).write()
    assert "warning: no report: " in (said := capfd.readouterr().err)
    assert "metrics.jsonl: is damaged: line 13: " in said


def test_no_fault_of_a_report_ends_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(run: RunDir) -> Path:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("runtime.jobs.runner.write_report", broken)
    LiveReport(RunDir(tmp_path), Console(quiet=True)).write()
    assert "warning: no report: ZeroDivisionError('a fault of ours')" in capfd.readouterr().err
