"""The command line as a user meets it: outputs, exit codes, and that nothing is half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import graphspec as graphspec_package
from compiler.errors import SpecError
from compiler.ir.text import from_json, graph_hash
from graphspec.api import open_run
from graphspec.cli.listings import op_listing, op_records, rule_listing
from graphspec.cli.main import main
from runtime.rundir import files
from tests.tiny import TINY, environment, write_spec

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "rich", "sklearn", "tensorboard")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process, in an empty folder with the tiny spec."""
    monkeypatch.chdir(tmp_path)
    write_spec(tmp_path)

    def call(*arguments: str, code: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["graphspec", *arguments])
        with pytest.raises(SystemExit) as raised:
            main()
        captured = capsys.readouterr()
        done = Done(int(raised.value.code or 0), captured.out, captured.err)
        assert done.code == code, captured
        assert "Traceback" not in done.err
        return done

    return call


# -- compile --------------------------------------------------------------------------------------------------------


def test_compile_says_what_comes_next_and_what_cannot_be_searched(run: Run) -> None:
    plain = TINY.replace(", gated: true", "").replace("avg_pool_3x3]}", "avg_pool_3x3], gated: false}")
    Path("plain.yaml").write_text(plain)
    done = run("compile", "plain.yaml", "--set", "search.gates.gamma=1e6", "--set", "retrain.schedule.warmup=2")
    assert done.err.startswith("warning: retrain.schedule.warmup is 2 of 2 epochs")
    assert done.err.splitlines()[-1] == "wrote runs/tiny-001-s0; next: graphspec retrain (there are no gates to search)"
    assert "warning: gates.init is 0" in run("compile", "tiny.yaml", "--set", "gates.init=0").err


def test_compile_prints_the_table_and_writes_a_run(run: Run) -> None:
    done = run("compile", "tiny.yaml")
    assert [line.split()[0] for line in done.out.splitlines() if line] == [
        "nodes", "stem", "stage0", "block0", "block1", "reduce", "stage1", "block0", "head",
        "total", "gates", "smallest", "largest", "memory", "graph", "data",
    ]  # fmt: skip
    assert "wrote runs/tiny-001-s0; next: graphspec search" in done.err
    assert os.readlink("runs/latest") == "tiny-001-s0"
    made = Path("runs/tiny-001-s0")
    assert {p.name for p in made.iterdir()} == {
        ".lock", "run.json", "spec.yaml", "spec.resolved.yaml", "config.json", "graph.json", "graph.txt",
        "environment.json",
    }  # fmt: skip
    assert (made / "spec.yaml").read_text() == TINY


def test_compile_as_json_is_one_object_on_stdout(run: Run) -> None:
    done = run("compile", "tiny.yaml", "--json", "--set", "name=other", "--seed", "5")
    found = json.loads(done.out)
    graph = from_json(Path(found["run_dir"], "graph.json").read_text())
    assert found["run_dir"] == "runs/other-001-s5"
    assert (found["name"], found["graph_hash"]) == ("other", graph_hash(graph))
    assert (found["nodes"], found["edges"]) == (len(graph) - 2, graph.edge_count())
    assert found["gates"] == len(graph.gates()) == 3 * (2 + 6 + 4) + 2
    assert all(
        isinstance(found[key], int) and found[key] > 0
        for key in ("params", "flops", "mac_bytes", "search_memory_bytes")
    )
    assert found["search_memory_bytes"] == 12 * found["params"] + 32 * found["activation_bytes"]
    assert found["smallest"]["flops"] < found["flops"] == found["largest"]["flops"]
    assert sum(row["params"] for row in found["blocks"]) == found["params"]
    assert sum(row["flops"] for row in found["stages"]) == found["flops"]


def test_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    found = json.loads(run("compile", "tiny.yaml", "--dry-run", "--json").out)
    assert found["run_dir"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_run_with_a_graph_of_version_1_opens(run: Run) -> None:
    golden = Path(__file__).parent / "compiler" / "golden"
    run("compile", str(golden / "choices.yaml"), "--out", "old")
    assert json.loads(Path("old/graph.json").read_text())["version"] == 2
    shutil.copy(golden / "version1.json", "old/graph.json")
    assert [len(decision.alternatives) for decision in open_run(Path("old")).graph.decisions()] == [2, 2, 3]


def test_a_wrong_spec_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path, TINY.replace("op: project", "op: projekt"))
    done = run("compile", "tiny.yaml", code=1)
    assert done.err.startswith("tiny.yaml:17:17: error: unknown op 'projekt'; did you mean 'project'?")
    assert done.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_full_disk_leaves_the_latest_run_as_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("compile", "tiny.yaml")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    done = run("compile", "tiny.yaml", code=1)
    assert "No space left on device" in done.err
    assert os.readlink("runs/latest") == "tiny-001-s0"
    assert not any(p.name.endswith(".tmp") for p in Path("runs").rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile", "nowhere.yaml"], "nowhere.yaml"),
        (["compile", "tiny.yaml", "--set", "search.epoch=3"], "did you mean 'epochs'?"),
        (["compile", "tiny.yaml", "--set", "search.epochs=many"], "search.epochs"),
        (["show", "nowhere"], "nowhere"),
        (["show", "tiny.yaml", "-o", "picture.png"], "try a file that ends in"),
        (["show", "tiny.yaml", "--block", "nrmal"], "did you mean 'normal'"),
        (["opt", "tiny.yaml", "-p", "prune-zero-edge"], "did you mean 'prune-zero-edges'?"),
        (["opt", "tiny.yaml", "-p", ""], "it names no pass"),
        (["show"], "no run yet"),
        (["diff", "tiny.yaml", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_exit_with_1_and_one_message(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments, code=1)
    assert message in done.err
    assert done.out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "arguments", [["compil"], ["compile"], ["compile", "tiny.yaml", "--jsn"], ["compile", "--seed", "x", "a"]]
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str]) -> None:
    assert "Usage:" in run(*arguments, code=2).err


def test_debug_lets_the_error_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_spec(tmp_path, "name: 1\n")
    for arguments in (["--debug", "compile", str(path)], ["compile", str(path), "--debug"]):
        monkeypatch.setattr(sys, "argv", ["graphspec", *arguments])
        with pytest.raises(SpecError):
            main()


# -- the other commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "start"), [("svg", "<svg"), ("html", "<!doctype html>"), ("dot", "digraph"), ("txt", "")]
)
def test_show_draws_specs_and_runs(run: Run, ending: str, start: str) -> None:
    run("compile", "tiny.yaml")
    for target in ("tiny.yaml", "runs/latest", "runs/tiny-001-s0/graph.json"):
        done = run("show", target, "-o", f"picture.{ending}")
        drawn = Path(f"picture.{ending}").read_text()
        assert drawn.lower().startswith(start)
        assert "sep_conv" in drawn
        assert f"wrote picture.{ending}" in done.err
    assert run("show").out == run("show", "runs/latest").out != ""


def test_show_of_a_block(run: Run) -> None:
    whole, block = run("show", "tiny.yaml").out, run("show", "tiny.yaml", "--block", "reduce").out
    assert "sep_conv" in whole
    assert "sep_conv" not in block


def test_opt_shows_what_each_pass_did(run: Run) -> None:
    done = run("opt", "tiny.yaml", "-p", "prune-zero-edges,drop-gates,expand-parts", "--print-after-all")
    assert [line.split(":")[0] for line in done.out.splitlines() if line.startswith("-- ")] == [
        "-- prune-zero-edges", "-- drop-gates", "-- expand-parts",
    ]  # fmt: skip
    assert "-- prune-zero-edges: changed nothing" in done.out
    assert done.out.count("graph @tiny") == 3
    last = run("opt", "tiny.yaml", "-p", "drop-gates").out
    assert last.count("graph @tiny") == 1
    assert "[" not in last.split("graph @tiny")[1]


def test_schema_is_the_shipped_one(run: Run) -> None:
    printed = json.loads(run("schema").out)
    committed = json.loads((ROOT / "specs" / "graphspec.schema.json").read_text())
    assert printed == committed, "run: graphspec schema -o specs/graphspec.schema.json"
    run("schema", "-o", "s.json")
    assert json.loads(Path("s.json").read_text()) == printed


def test_listings_are_printed(run: Run) -> None:
    assert json.loads(run("ops", "--json").out) == op_records()
    assert run("ops").out == f"{op_listing()}\n"
    assert run("rules").out == f"{rule_listing()}\n"


def test_version_is_the_packages(run: Run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "graphspec.__version__"}
    assert run("--version").out == f"graphspec {graphspec_package.__version__}\n"


def test_help_names_every_command(run: Run) -> None:
    text = run("--help").out
    titles = ["From a spec to a model:", "With a model:", "Around a run:", "The language and the compiler:"]
    assert [line for line in text.splitlines() if line in titles] == titles
    for command in ("compile", "show", "diff", "opt", "schema", "ops", "rules", "search", "retrain", "bench"):
        assert command in text
        assert "Usage:" in run(command, "--help").out


# -- processes of their own -----------------------------------------------------------------------------------------


def test_commands_that_do_not_train_import_nothing_heavy(tmp_path: Path) -> None:
    """In a process of its own: `compile`, `show`, `ops` and the rest never pay for torch."""
    write_spec(tmp_path)
    code = """
import sys
from graphspec import cost_report
from graphspec.cli.main import main
for line in sys.argv[1:]:
    sys.argv = ["graphspec", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, line
print("HEAVY", sorted(set(sys.modules) & {HEAVY}))
""".replace("{HEAVY}", repr(set(HEAVY)))
    lines = [
        "--help",
        "search --help",
        "compile tiny.yaml",
        "show tiny.yaml",
        "show",
        "diff tiny.yaml tiny.yaml",
        "schema -o s.json",
        "ops",
        "rules",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *lines],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_completion_is_offered(tmp_path: Path) -> None:
    environ = {
        **environment(),
        "_GRAPHSPEC_COMPLETE": "complete_bash",
        "COMP_WORDS": "graphspec comp",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv = ['graphspec']; from graphspec.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["compile"], done.stderr


def test_the_python_api_is_lazy_and_complete() -> None:
    code = """
import sys, graphspec, graphspec.cli.app
assert "pydantic" not in sys.modules
assert set(graphspec.__all__) <= set(dir(graphspec))
assert callable(graphspec.compile) and callable(graphspec.load)
assert "torch" not in sys.modules
try:
    graphspec.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout == "module 'graphspec' has no attribute 'nothing'\n", done.stderr
