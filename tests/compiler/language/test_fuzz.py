"""Mutated specs: parsing and elaborating either works or raises SpecError with positions, never anything else."""

from __future__ import annotations

import random
import resource
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.elaborate.builder import load
from compiler.errors import Diagnostic, SpecError
from compiler.language.overrides import overrides_of

pytestmark = pytest.mark.slow

SPECS = Path(__file__).parents[3] / "specs"
PIECES = [
    b"", b" ", b"\n", b"\t", b"\r", b":", b": ", b"- ", b"[", b"]", b"{", b"}", b",", b"&a ", b"*a",
    b"*cell_nodes", b"<<: ", b"!!int ", b"# ", b"'", b'"', b"|", b">", b"%", b"@", b"`", b"---", b"...",
    b"\xff", b"\x00", b"\xe2\x80\xa8", b"\xc3\xa9", b"null", b"true", b"on", b"-1", b"0", b"1", b"7",
    b"99999999999", b"9999", b"9" * 60, b"1e999", b".nan", b"0x10", b"007", b"2*C", b"H/0", b"C**9", b"[C, H, W]",
    b"-> [C]", b"in", b"in0", b"out", b"levels.*", b"*.*", b"class", b"extends: .", b"extends: digits.yaml",
    b"conv", b"add", b"concat", b"project", b"linear", b"flatten", b"mean", b"zero", b"kernel", b"gated",
    b"choose", b"repeat",
]  # fmt: skip
OVERRIDES = [
    "symbols.width", "blocks.normal.levels.count", "blocks.stem.nodes.out.kernel", "blocks.stem", "blocks",
    "network", "network.1", "input", "classes", "ops", "search", "search.epochs", "search.gates.gamma",
    "budget.params", "seed", "a.b",
]  # fmt: skip


def mutate(content: bytes, seed: int) -> bytes:
    """A few random edits of bytes, words and lines."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice([0, 1, 1, 3, 8, 40]))
        lines = content.split(b"\n")
        first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind <= 1:  # replace a stretch
            content = content[:at] + rng.choice(PIECES) + content[end:]
        elif kind == 2:  # replace a word
            words = content.split(b" ")
            words[rng.randrange(len(words))] = rng.choice(PIECES)
            content = b" ".join(words)
        elif kind == 3:  # move a line, with another indentation
            moved = lines.pop(first)
            lines.insert(second, b" " * rng.randrange(6) + moved.lstrip())
            content = b"\n".join(lines)
        elif kind == 4:  # repeat or drop a line
            lines[first : first + 1] = [lines[first]] * rng.choice([0, 2])
            content = b"\n".join(lines)
        else:  # noise
            content = content[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 4))) + content[end:]
    return content


def random_overrides(seed: int) -> list[str]:
    """None most of the time, else one or two."""
    rng = random.Random(seed)
    if rng.random() < 0.7:
        return []
    noise = "".join(rng.choice(string.printable) for _ in range(rng.randint(0, 6)))
    values = [noise, *(piece.decode("latin-1") for piece in PIECES)]
    return [f"{rng.choice(OVERRIDES)}={rng.choice(values)}" for _ in range(rng.randint(1, 2))]


def diagnostics(path: Path, overrides: list[str]) -> tuple[Diagnostic, ...] | None:
    """What is wrong with a spec; None if nothing is."""
    try:
        load(path, overrides_of(overrides))
    except SpecError as error:
        return error.diagnostics
    return None


def check(path: Path, overrides: list[str]) -> None:
    found = diagnostics(path, overrides)
    if found is None:
        return
    assert found
    for diagnostic in found:
        assert diagnostic.message
        assert diagnostic.place.file
        assert diagnostic.place.line >= 1
        assert diagnostic.place.column >= 1
        assert diagnostic.render().startswith(str(diagnostic.place))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all shipped specs, so that a mutated one can extend another."""
    found = tmp_path_factory.mktemp("fuzz")
    for path in SPECS.glob("*.yaml"):
        (found / path.name).write_bytes(path.read_bytes())
    return found


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("digits", 990),
        ("hand_wired", 600),
        ("darts_cell", 150),
        ("dso_nas_cifar10_share", 60),
        ("dso_nas_cifar10_small", 200),
    ],
)
def test_mutated_specs_give_messages(folder: Path, name: str, cases: int) -> None:
    original = (SPECS / f"{name}.yaml").read_bytes()
    mutated = folder / f"{name}.mutated.yaml"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=cases)
    @given(st.integers(0, 2**32), st.integers(0, 2**32))
    def run(seed: int, override_seed: int) -> None:
        mutated.write_bytes(mutate(original, seed))
        check(mutated, random_overrides(override_seed))

    run()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500 * 1024, "kB more than before"
