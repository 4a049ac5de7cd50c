"""Commands around a run, as a user gives them: init, show before and after, diff, derive, report."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest
import yaml

from compiler.analysis.limits import budget_share
from compiler.architecture.random_network import random_closed
from compiler.elaborate.builder import load
from compiler.errors import RunError
from compiler.language.overrides import overrides_of
from graphspec import api
from graphspec.cli.main import main
from graphspec.starters import OVER, starters
from runtime.jobs.signals import Interrupted
from runtime.rundir.directory import RunDir
from tests.tiny import TINY

SPECS = Path(__file__).parent.parent / "specs"
FAST = """\
data: {name: fake, fake_size: 64}
search: {strategy: random, random_params: 4k}
retrain: {epochs: 1, batch_size: 16}
"""
SPEC = TINY[: TINY.index("data:")] + FAST
WIDER = SPEC.replace("name: tiny", "name: wider").replace("width: 8", "width: 12")
WIDER = WIDER.replace("{normal: 2}, reduce, {normal: 1}", "{normal: 1}, reduce, {normal: 3}")


class Shell:
    """Runs commands in this process, in a folder of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        self.monkeypatch.setattr(sys, "argv", ["graphspec", *arguments])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = self.capsys.readouterr()
        assert (stop.value.code or 0) == code, err
        return out, err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SPEC)
    Path("wider.yaml").write_text(WIDER)
    return Shell(monkeypatch, capsys)


# -- init -------------------------------------------------------------------------------------------------------------


def test_init_lists_what_there_is(shell: Shell) -> None:
    out, _ = shell("init")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == list(starters())
    assert "digits" in names
    assert all(re.fullmatch(r"\S+ +[A-Z].{10,80}\.", line) for line in out.splitlines())  # each with a sentence


def test_init_copies_what_then_compiles(shell: Shell) -> None:
    for name in starters():
        shell("init", name, "--into", f"of_{name}")
        assert Path(f"of_{name}/graphspec.schema.json").is_file()
        said_by_data = overrides_of(["classes=3"] if name in ("own_images", "photos") else [])
        assert load(f"of_{name}/{name}.yaml", said_by_data)[1].nodes()


def test_init_overwrites_nothing_and_knows_its_names(shell: Shell) -> None:
    shell("init", "digits")
    Path("digits.yaml").write_text("mine")
    _, err = shell("init", "digits", code=1)
    assert "exists already" in err
    assert Path("digits.yaml").read_text() == "mine"
    _, err = shell("init", "digts", "--into", "other", code=1)
    assert "digits" in err
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("name", "wishes", "sides", "limit"),
    [
        ("own_images", ["--size", "64"], (64, 8), {"flops": 4_240_000}),
        ("own_images", ["--flops", "3M", "--classes", "7"], (32, 8), {"flops": 3_000_000}),
        ("own_images", ["--params", "50k", "--size", "96"], (96, 6), {"params": 50_000}),
        ("photos", ["--size", "224", "--classes", "12"], (224, 7), {"flops": 27_800_000}),
        ("photos", ["--params", "100k"], (128, 8), {"params": 100_000}),
        ("own_images", ["--flops", "20M"], (32, 4), {"flops": 20_000_000}),
        ("cifar10_small", ["--params", "270k"], (32, 4), {"params": 270_000}),
    ],
)
def test_init_makes_a_space_for_size_and_limit(
    shell: Shell, name: str, wishes: list[str], sides: tuple[int, int], limit: dict[str, int]
) -> None:
    shell("init", name, *wishes)
    spec, graph = load(f"{name}.yaml", overrides_of([] if "--classes" in wishes else ["classes=3"]))
    image, last = sides
    assert spec.input == (3, image, image)
    assert graph.node("head.norm").shape[1:] == (last, last)
    assert {key: most for key in ("params", "flops") if (most := getattr(spec.config.budget, key))} == limit
    assert 1 < budget_share(graph, spec.config.budget) <= OVER


def test_init_refuses_what_it_cannot_make(shell: Shell) -> None:
    for name, wishes, word in (
        ("digits", ["--size", "64"], "own_images"),
        ("own_images", ["--size", "4"], "--size 4"),
        ("own_images", ["--flops", "many"], "--flops many"),
        ("own_images", ["--flops", "3k"], "larger limit"),
        ("own_images", ["--classes", "1"], "--classes 1"),
        ("cifar10_small", ["--size", "64"], "32 pixels"),
    ):
        assert word in shell("init", name, *wishes, code=1)[1]
    assert not Path("own_images.yaml").exists()


# -- show and diff ----------------------------------------------------------------------------------------------------


def test_show_draws_before_and_after(shell: Shell) -> None:
    shell("search", "tiny.yaml", "-q")
    run = RunDir.latest()
    for kind in ("svg", "html", "dot", "txt"):
        shell("show", "-o", f"after.{kind}")
        shell("show", "tiny.yaml", "-o", f"before.{kind}")
        assert Path(f"after.{kind}").read_text() != Path(f"before.{kind}").read_text()
    out, _ = shell("show", str(run.path), "--block", "stage0.block0")
    assert "level0.sep_conv_3x3" in out
    whole, left = shell("show")[0], shell("show", "--kept")[0]
    assert "(pruned)" in whole
    assert "(pruned)" not in left
    assert len(left.splitlines()) < len(whole.splitlines())
    assert "there is nothing that a search has kept" in shell("show", "tiny.yaml", "--kept", code=1)[1]


def test_show_of_a_run_takes_no_settings(shell: Shell) -> None:
    shell("compile", "tiny.yaml")
    assert "--set changes a spec" in shell("show", "--set", "seed=1", code=1)[1]


def test_diff_lists_what_went(shell: Shell) -> None:
    shell("search", "tiny.yaml", "-q")
    result = json.loads(RunDir.latest().search.result.read_text())
    out, _ = shell("diff", "tiny.yaml", "runs/latest", "--json")
    found = json.loads(out)
    text = json.dumps(found)
    assert str(result["full"]["params"]) in text
    assert str(result["found"]["params"]) in text
    rendered, _ = shell("diff", "tiny.yaml", "runs/latest")
    assert re.search(r"stage\d\.block\d", rendered)
    same = json.loads(shell("diff", "tiny.yaml", "tiny.yaml", "--json")[0])
    assert same != found


# -- derive -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["block", "none"])
def test_a_derived_network_is_retrained(shell: Shell, share: str) -> None:
    for name in ("tiny.yaml", "wider.yaml"):
        path = Path(name)
        path.write_text(f"{path.read_text()}gates: {{share: {share}}}\n")
    shell("search", "tiny.yaml", "-q")
    arch = RunDir.latest().search.arch
    chosen = [] if share == "block" else ["--block", "stage0.block1"]
    if chosen:
        _, err = shell("derive", str(arch), "--into", "wider.yaml", code=1)
        assert "--block" in err
        assert RunDir.latest().search.arch == arch  # no half-made run
    _, err = shell("derive", str(arch), "--into", "wider.yaml", *chosen)
    assert "graphspec retrain" in err
    run = RunDir.latest()
    assert run.path.name.startswith("wider")
    kept = yaml.safe_load(run.search.arch.read_text())["edges"]
    before = yaml.safe_load(arch.read_text())["edges"]
    source = "normal" if share == "block" else "stage0.block1"
    assert all(scope["kept"] == before[source]["kept"] for scope in kept.values() if scope["kind"] == "normal")
    shell("show")
    out, _ = shell("retrain", "-q", "--json")
    result = json.loads(out)
    costs = yaml.safe_load(run.search.arch.read_text())["costs"]
    assert result["found"]["params"] == costs["found"]["params"]
    assert result["supernet_accuracy"] is None
    _, err = shell("retrain", "--smoke")
    assert "warning" not in shell("search", "tiny.yaml", "--smoke")[1]  # two steps close no gate
    assert "every stage of retrain on fake data" in err  # the derived network: the wider space was never searched
    assert "no weights to inherit" in shell("retrain", "--from", "search", "--overwrite", code=1)[1]


def test_derive_says_what_is_wrong_and_leaves_nothing(shell: Shell) -> None:
    assert "there is no such file" in shell("derive", "nowhere.yaml", "--into", "tiny.yaml", code=1)[1]
    assert "no architecture" in shell("derive", "tiny.yaml", "--into", "tiny.yaml", code=1)[1]
    assert not Path("runs").exists()


# -- random control ---------------------------------------------------------------------------------------------------


def test_a_random_network_matches_the_size_of_another_run(shell: Shell) -> None:
    shell("search", "tiny.yaml", "-q")
    first = RunDir.latest()
    size = json.loads(first.search.result.read_text())["found"]["params"]
    out, _ = shell("search", "tiny.yaml", "--strategy", "random", "--match", str(first.path), "--seed", "5", "--json")
    drawn = json.loads(out)
    graph = load("tiny.yaml")[1]
    closed = random_closed(graph, size, 5)
    assert drawn["found"]["params"] <= size
    assert drawn["gates"] - drawn["kept_gates"] >= len(closed) > 0
    assert "no finished search" in shell("search", "wider.yaml", "--match", _compiled("wider.yaml"), code=1)[1]
    plain = ("search", "wider.yaml", "--match", str(first.path), "--strategy", "dso")
    before = list(Path("runs").iterdir())
    for more in ([], ["--smoke"], ["--seeds", "0,1"]):
        assert "only a random network is drawn at a size" in shell(*plain, *more, code=1)[1]
    assert list(Path("runs").iterdir()) == before


def test_a_mistake_leaves_no_unfinished_search(shell: Shell) -> None:
    shell("compile", "tiny.yaml", "--set", "search.random_params=10")
    assert "no random network of 10 parameters" in shell("search", code=1)[1]
    shell("search", "--set", "search.random_params=4k", "-q")


def _compiled(spec: str) -> str:
    run = api.compile(spec).run
    if run is None:
        raise RunError("not compiled")
    return str(run.path)


# -- report -----------------------------------------------------------------------------------------------------------


def test_report_covers_a_run_at_every_point(shell: Shell) -> None:
    shell("compile", "tiny.yaml")
    sizes = []
    for step in ("compiled", "search", "retrain"):
        if step != "compiled":
            shell(step, "-q")
        told, _ = shell("report")
        page = RunDir.latest().report.read_text()
        assert "tiny" in page
        assert not re.search(r"(src|href)=.https?://", page)  # self-contained
        sizes.append(len(page))
    assert sizes == sorted(sizes)
    assert "test accuracy" in page
    assert [line.split()[0] for line in told.splitlines()] == ["retrained", "params", "FLOPs"]  # a random network
    as_json = json.loads(shell("report", "--json")[0])
    assert as_json["report"] == str(RunDir.latest().report)
    result = json.loads(RunDir.latest().retrain.result.read_text())
    assert as_json["summary"]["accuracy.retrained"] == {"mean": result["accuracy"], "std": None, "n": 1}
    assert "no such run" in shell("report", "runs/nowhere", code=1)[1]


def test_a_stop_that_was_asked_for_is_no_error(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT, "graphspec search runs/tiny-001-s0 --resume")

    monkeypatch.setattr(api, "search", stop)
    _, err = shell("search", "tiny.yaml", code=130)
    assert err.startswith("stopped by SIGINT after writing a checkpoint\n  go on with: graphspec search")


# -- the width of a terminal ------------------------------------------------------------------------------------------

COMPILED = [f"compile {name} --dry-run{' --set classes=3' * (name in ('own_images', 'photos'))}" for name in starters()]


@pytest.mark.parametrize(
    "line",
    ["ops", "rules", "init", "show tiny.yaml", "show missing", *COMPILED],
)
def test_a_terminal_gets_lines_of_80_columns(shell: Shell, line: str) -> None:
    for spec in SPECS.glob("*.yaml"):
        Path(spec.name).write_text(spec.read_text())
    words = [f"{word}.yaml" if word in starters() else word for word in line.split()]
    for stream in (sys.stdout, sys.stderr):
        shell.monkeypatch.setattr(stream, "isatty", lambda: True)
    shown = "".join(shell(*words, code=int("missing" in line)))
    wide = [each for each in shown.splitlines() if len(each) > 80]
    assert [each for each in wide if max(map(len, each.split())) < 60 and "graphspec " not in each] == []
