"""The documentation is true: links resolve, commands and snippets run as written, generated parts are up to date."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import typer.main
import yaml
from PIL import Image

from compiler.elaborate.builder import MAX_NODES, load
from compiler.elaborate.template import MAX_EDGES
from compiler.errors import GraphspecError
from compiler.language.overrides import overrides_of
from compiler.language.reference import rewritten
from compiler.language.source import MAX_BYTES, MAX_DEPTH, MAX_SIZE
from graphspec.cli.app import app
from tests import warm
from tests.tiny import TINY, environment

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SPECS = ROOT / "specs"
HOSTS = {"arxiv.org", "doi.org", "github.com", "semver.org"}  # that the documentation may link to
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group, because there are several


@dataclass(frozen=True)
class Snippet:
    """A fenced block: where it stands, its info string (`bash run`) and its text."""

    where: str
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]


def snippets(*documents: Path) -> Iterator[Snippet]:
    for path in documents:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            yield Snippet(f"{path.relative_to(ROOT)}:{line}", match[1].strip(), match[2])


def of_language(language: str) -> list[Snippet]:
    return [s for s in snippets(*DOCUMENTS) if s.language == language]


def lines(snippet: Snippet) -> list[str]:
    return [line for line in snippet.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def named(snippet: Snippet) -> str:
    return snippet.where


# -- text -------------------------------------------------------------------------------------------------------------


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_no_local_paths_and_no_unknown_hosts(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|Users|mnt)/", text)
    assert {host.lower() for host in re.findall(r"https?://([^/\s)`\"']+)", text)} <= HOSTS


@pytest.mark.parametrize("name", ["language.md", "ir.md"])
def test_generated_parts_are_up_to_date(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert "<!-- generated: " in text
    assert rewritten(text) == text, "run: python -m compiler.language.reference docs/*.md"


def test_limits_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "language.md").read_text(encoding="utf-8").partition("## Limits")[2].partition("\n## ")[0]
    for said in (f"{MAX_BYTES // 2**20} MB", f"{MAX_DEPTH} deep", f"{MAX_NODES:,} nodes", f"{MAX_EDGES:,} edges"):
        assert said in text
    assert MAX_SIZE == 1_000_000, "the text says a million"


def test_an_unknown_generated_part_is_an_error() -> None:
    with pytest.raises(GraphspecError, match="did you mean 'settings'"):
        rewritten("<!-- generated: setings -->\n<!-- end of setings -->\n")


# -- messages ---------------------------------------------------------------------------------------------------------


def spoken(node: ast.AST) -> str:
    """The text of a string expression, `…` for what is put in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(spoken, values))
        case ast.BinOp(left=left, right=right):
            return spoken(left) + spoken(right)
    return "…"


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in ("graphspec", "compiler", "runtime"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def said_in_code() -> str:
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    texts = {spoken(node) for _, tree in sources() for node in ast.walk(tree) if isinstance(node, kinds)}
    return "\n\0\n".join(texts)


def pattern_of(message: str) -> str:
    """A pattern for a message as the documentation writes it: `…` for anything, `\\n` for a line break."""
    return ".*?".join(re.escape(part.replace("\\n", "\n")) for part in re.split("…+", message) if part)


def listed_messages() -> list[str]:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"\| message \| reason and remedy \|\n\| --- \| --- \|\n((?:\|.*\n)+)", text)
    cells = [row.split("|")[1] for table in tables for row in table.splitlines()]
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    code = said_in_code()
    unsaid = [m for m in listed_messages() if not re.search(pattern_of(m), code)]
    assert not unsaid, "docs/troubleshooting.md lists messages that nothing says"


def test_every_job_error_is_in_troubleshooting() -> None:
    patterns = [re.compile(pattern_of(message), re.DOTALL) for message in listed_messages()]
    missing = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RunError":
                message = spoken(node.args[0])
                says_something = re.search(r"\w", message.partition("\n")[0])
                if says_something and not any(pattern.search(message) for pattern in patterns):
                    missing.append(f"{path.relative_to(ROOT)}:{node.lineno}: {message}")
    assert not missing, "docs/troubleshooting.md lacks these messages"


def test_every_error_class_is_in_troubleshooting() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    bases = {"GraphspecError"}
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and bases & {ast.unparse(base) for base in node.bases}:
                assert f"`{node.name}`" in text, f"docs/troubleshooting.md does not mention {node.name}"


# -- snippets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snippet", of_language("bash"), ids=named)
def test_commands_are_real(snippet: Snippet) -> None:
    for line in lines(snippet):
        for command in re.split(r"&&|;", line):
            words = shlex.split(command, comments=True)
            if words[:1] == ["graphspec"]:
                check_command(words[1:])
            elif words[:1] == ["make"]:
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
            elif words[:2] == ["python", "-m"]:
                assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file() or words[2] in ("pip", "venv"), command
            elif words[:1] == ["python"]:
                assert (ROOT / words[1]).is_file(), command


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_in_the_text_are_real(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"`graphspec ([^`\n]+)`", text):
        words = shlex.split(line)
        assert words[0] in COMMANDS, line
        unknown = {word for word in words if word.startswith("-")} - options_of(words[0])
        assert not unknown, f"graphspec {line}: there is no {', '.join(unknown)}"


def options_of(command: str) -> set[str]:
    return {option for parameter in COMMANDS[command].params for option in parameter.opts}


def test_the_demo_is_made_of_real_commands_and_ends_with_the_report() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    commands = [line.split("graphspec ", 1)[1] for line in recipe.splitlines() if "/graphspec " in line]
    for command in commands:
        check_command(shlex.split(command))
    assert [command.split()[0] for command in commands] == ["compile", "search", "retrain", "export", "report"]


def check_command(words: list[str]) -> None:
    """Parse it as the command line does; unknown commands and options raise."""
    if words[0].startswith("--"):
        assert words[0] in {o for p in typer.main.get_command(app).params for o in p.opts}
        return
    assert words[0] in COMMANDS, f"there is no command {words[0]!r}"
    COMMANDS[words[0]].make_context(words[0], words[1:])


def test_python_compiles() -> None:
    for snippet in of_language("python"):
        compile(snippet.text, snippet.where, "exec")


RUN_EACH = """
import json, sys
for where, text in json.load(sys.stdin):
    exec(compile(text, where, "exec"), {"__name__": "__main__"})
"""


@pytest.mark.slow
def test_python_runs() -> None:
    """One after the other in a process of their own, each for itself."""
    wanted = [(s.where, s.text) for s in of_language("python") if s.info == "python run"]
    assert wanted
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH], input=json.dumps(wanted), cwd=ROOT, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [s for s in of_language("bash") if s.info == "bash run"], ids=named)
def test_commands_run(snippet: Snippet, tmp_path: Path) -> None:
    (tmp_path / "specs").symlink_to(SPECS)
    for line in lines(snippet):
        graphspec_command(tmp_path, line)


@pytest.mark.parametrize("snippet", of_language("yaml"), ids=named)
def test_yaml_is_right(snippet: Snippet, tmp_path: Path) -> None:
    """Whole specs and those that extend one are elaborated, fragments are read as YAML; data may say the classes."""
    read = yaml.safe_load(snippet.text)
    if "graphspec" not in read:
        return
    shutil.copytree(SPECS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "snippet.yaml").write_text(snippet.text)
    load(tmp_path / "snippet.yaml", overrides_of([] if "classes" in read else ["classes=3"]))


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)[:200]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def graphspec_command(folder: Path, line: str) -> str:
    words = shlex.split(line, comments=True)
    assert words[0] == "graphspec", line
    done = warm.run(words[1:], folder, environment())
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# -- whole documents --------------------------------------------------------------------------------------------------

SMALLER = """\
graphspec: 1
extends: whole.yaml
symbols: {width: 8}
search: {pretrain_epochs: 1, epochs: 2, batch_size: 8, steps_per_epoch: null, weight_steps: 1}
retrain: {epochs: 1, batch_size: 8, steps_per_epoch: null}
budget: {flops: 300k}
"""


def follow(document: Path, after: Mapping[str, Callable[[], object]]) -> None:
    """Everything a document tells people to type, in order, in the working folder; `after` some commands do more."""
    for snippet in snippets(document):
        if snippet.language == "bash":
            for line in lines(snippet):
                for command in line.split("&&"):
                    words = shlex.split(command, comments=True)
                    if words[:1] == ["graphspec"]:
                        app(words[1:], standalone_mode=False)
                        after.get(shlex.join(words), lambda: None)()
        elif snippet.language == "python":
            exec(compile(snippet.text, snippet.where, "exec"), {})  # noqa: S102  (what the reader would do)


def small_images(folder: Path, classes: tuple[str, ...]) -> None:
    """Plain images, one colour for each class."""
    for part, count in (("train", 16), ("test", 2)):
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for index in range(1, count + 1):
                colour = tuple(255 if channel == number else 4 * index for channel in range(3))
                Image.new("RGB", (40, 32), colour).save(folder / part / name / f"{index:04d}.jpg")


@pytest.mark.slow
def test_the_tutorial_works_as_written(in_process: Path) -> None:
    small_images(in_process / "images", ("cat", "dog", "owl"))

    def shrink() -> None:
        (in_process / "own_images.yaml").rename("whole.yaml")
        (in_process / "own_images.yaml").write_text(SMALLER)

    follow(ROOT / "docs" / "tutorial.md", {"graphspec init own_images": shrink})
    assert (in_process / "found.svg").stat().st_size > 0


@pytest.mark.slow
def test_the_readme_works_as_written(in_process: Path) -> None:
    shutil.copytree(SPECS, in_process / "specs")
    (in_process / "specs" / "digits.yaml").write_text(TINY)
    follow(ROOT / "README.md", {})


@pytest.mark.slow
def test_the_control_experiment_works_as_written(in_process: Path) -> None:
    (in_process / "specs").mkdir()
    fast = TINY.replace("{name: digits}", "{name: fake, fake_size: 96}").replace("batch_size: 32", "batch_size: 8")
    fast = fast.replace("pretrain_epochs: 2\n  epochs: 4", "pretrain_epochs: 0\n  epochs: 1").replace("tiny", "digits")
    fast = fast.replace("gamma: 0.05", "gamma: 0.5").replace("retrain: {epochs: 2", "retrain: {epochs: 1")
    (in_process / "specs" / "digits.yaml").write_text(fast)
    follow(ROOT / "docs" / "run_directory.md", {})
    sizes = []
    for run in ("digits-001-s0", "digits-002-s0"):
        summary = json.loads((in_process / "runs" / run / "seeds.json").read_text())
        assert summary["search"]["seeds"] == summary["retrain"]["seeds"] == [0, 1, 2]
        sizes.append(summary["search"]["figures"]["params"]["mean"])
    assert 0 < sizes[1] <= sizes[0]  # the drawn networks are no larger than those they match
