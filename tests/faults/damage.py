"""Files of a run that are damaged, hostile or gone, and every command afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.faults.trials import FORGED, contents, copied, run

STATES = ("finished", "searching", "retraining")
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "finished": (
        ("report", "run", "--json"),
        ("show", "run", "-o", "out.svg"),
        ("diff", "run", "run/search/graph.json"),
        ("derive", "run/search/arch.yaml", "--into", "tiny.yaml"),
        ("evaluate", "run", "--json"),
        ("export", "run", "--no-latency"),
        ("export", "run", "--from", "search", "--no-latency"),
        ("bench", "run", "--batch", "1", "--threads", "1", "--seconds", "0"),
        ("bench", "run/export/model.onnx", "--batch", "1", "--threads", "1", "--seconds", "0"),
        ("search", "run", "--resume"),
        ("retrain", "run", "--resume"),
        ("retrain", "run", "--overwrite", "--from", "search"),
        ("retrain", "run", "--seeds", "1"),
        ("compile", "tiny.yaml", "--out", "run"),
    ),
    "searching": (("search", "run", "--resume"), ("search", "run", "--overwrite"), ("report", "run")),
    "retraining": (("retrain", "run", "--resume"), ("retrain", "run"), ("report", "run")),
}
HOSTILE: tuple[Any, ...] = (None, -1, 1e300, True, "x", "../../../x", [], {}, [[]], 10**30, "\x1b[2J", FORGED)


@dataclass(frozen=True)
class Damage:
    """A file of a run in some state, what happens to it, and the command afterwards."""

    state: str
    file: str
    kind: str
    seed: int
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.state}: {self.file} {self.kind} {self.seed}, then {' '.join(self.command)}"

    def problem(self, states: dict[str, Path]) -> str:
        """What is wrong with the command afterwards; empty if nothing is."""
        with copied(states[self.state]) as folder:
            outside = folder.parent / "outside"
            shutil.copytree(folder / "run" / "search", outside)
            (outside / "precious").write_text("years of work")
            KINDS[self.kind](folder / self.file, random.Random(self.seed), outside)
            before = contents(outside)
            others = sorted(set(contents(folder)) - {self.file})
            done = run(folder, *self.command)
            if contents(outside) != before:
                return "changed files outside of the run"
            made = {n for n in contents(folder) if not n.startswith(("run/", "runs/"))} - set(others)
            if made - {"out.svg", self.file} or set(os.listdir(folder.parent)) != {"copy", "outside"}:
                return f"made files outside of the run: {sorted(made)} {os.listdir(folder.parent)}"
            return done.problem


def _write(content: bytes) -> Callable[[Path, random.Random, Path], None]:
    def change(file: Path, draw: random.Random, outside: Path) -> None:
        file.write_bytes(content)

    return change


def _cut(file: Path, draw: random.Random, outside: Path) -> None:
    file.write_bytes(file.read_bytes()[: draw.randrange(max(file.stat().st_size, 1))])


def _flip(file: Path, draw: random.Random, outside: Path) -> None:
    content = bytearray(file.read_bytes() or b"x")
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def _append(file: Path, draw: random.Random, outside: Path) -> None:
    file.write_bytes(file.read_bytes() + draw.choice((b"5\n", b'{"stage": 5}\n', b"null\n", b"\xff\n", b"[[\n")))


def _gone(file: Path, draw: random.Random, outside: Path) -> None:
    file.unlink()


def _folder(file: Path, draw: random.Random, outside: Path) -> None:
    file.unlink()
    file.mkdir()


def _pipe(file: Path, draw: random.Random, outside: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _link(file: Path, draw: random.Random, outside: Path) -> None:
    """A link to a file of the same name, if there is one, or a precious one."""
    target = outside / file.name if (outside / file.name).exists() and draw.random() < 0.5 else outside / "precious"
    file.unlink()
    file.symlink_to(target)


def _folder_link(file: Path, draw: random.Random, outside: Path) -> None:
    """The folder that the file lies in lies outside."""
    shutil.copytree(file.parent, outside / "moved")
    shutil.rmtree(file.parent)
    file.parent.symlink_to(outside / "moved")


def _json(file: Path, draw: random.Random, outside: Path) -> None:
    """One value of JSON (of a log: of its last line) becomes another, or goes; checkpoints get the right hash again."""
    *first, last = file.read_bytes().splitlines(keepends=True) if file.suffix == ".jsonl" else [file.read_bytes()]
    record = json.loads(last)
    _mutate(record, draw)
    if "sha256" in record and "state" in record:
        rest = {key: value for key, value in record.items() if key != "sha256"}
        text = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
        record = rest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    end = "\n" if file.suffix == ".jsonl" else ""
    file.write_bytes(b"".join(first) + (json.dumps(record, separators=(",", ":")) + end).encode())


def _mutate(value: Any, draw: random.Random) -> None:
    places = list(_places(value))
    if not places:
        return
    at, key = draw.choice(places)
    action = draw.random()
    if action < 0.2:
        del at[key]
    elif action < 0.3 and isinstance(at, dict):
        at[draw.choice(("../../../x", FORGED))] = at.pop(key)
    else:
        at[key] = draw.choice(HOSTILE)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def _tensors(file: Path, draw: random.Random, outside: Path) -> None:
    """A tensor of other numbers, shape, type or name; results and checkpoints get the right hash again."""
    arrays = safetensors.numpy.load(file.read_bytes())
    name = draw.choice(sorted(arrays))
    array = arrays[name]
    changes: list[Callable[[], Any]] = [
        lambda: np.full_like(array, np.nan) if array.dtype.kind == "f" else array * 0 - 1,
        lambda: array * 0 - 1,  # the largest number where there is no -1
        lambda: np.zeros_like(array),
        lambda: array.astype(np.int64),
        lambda: np.concatenate([array.reshape(-1), array.reshape(-1)]),
        lambda: np.full_like(array, 1e30) if array.dtype.kind == "f" else array,
    ]
    arrays[name] = draw.choice(changes)()
    if draw.random() < 0.2:
        arrays["../../x"] = arrays.pop(name)
    file.write_bytes(safetensors.numpy.save(arrays))
    _hash_again(file)


def _hash_again(file: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    result, checkpoint = file.parent / "result.json", file.with_suffix(".json")
    if file.name == "weights.safetensors" and result.is_file():
        result.write_text(json.dumps(json.loads(result.read_text()) | {"weights": digest}))
    elif checkpoint.is_file() and checkpoint.name != "split.json":
        record = json.loads(checkpoint.read_text()) | {"tensors": digest}
        record.pop("sha256")
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        checkpoint.write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")))


def _huge_header(file: Path, draw: random.Random, outside: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])


KINDS: dict[str, Callable[[Path, random.Random, Path], None]] = {
    "empty": _write(b""),
    "x": _write(b"x"),
    "nested": _write(b"[" * 200_000),
    "nested yaml": _write(b"a: &a [x]\nb: " + b"{" * 5000),
    "not UTF-8": _write(b'{"a": "\xff\xfe"}'),
    "an object": _write(b"{}"),
    "cut": _cut,
    "flipped": _flip,
    "longer": _append,
    "gone": _gone,
    "a folder": _folder,
    "a pipe": _pipe,
    "a link": _link,
    "in a linked folder": _folder_link,
    "JSON": _json,
    "tensors": _tensors,
    "header": _huge_header,
}
MANY = {"JSON": 25, "tensors": 10, "flipped": 4, "cut": 2, "a link": 2, "longer": 2}


def damages(states: dict[str, Path], most: int | None) -> list[Damage]:
    """All damages with all commands, or as many of them, spread over everything."""
    every = [
        Damage(state, name, kind, seed, command)
        for state in STATES
        for name in contents(states[state])
        if name.startswith("run/")
        for kind in KINDS
        if _fits(kind, name)
        for seed in range(MANY.get(kind, 1))
        for command in COMMANDS[state]
    ]
    return every if most is None else random.Random(0).sample(every, min(most, len(every)))


def _fits(kind: str, name: str) -> bool:
    suffix = Path(name).suffix
    if kind == "JSON":
        return suffix in (".json", ".jsonl")
    if kind in ("tensors", "header"):
        return suffix == ".safetensors"
    if kind == "in a linked folder":
        return name.count("/") > 1
    return not (kind == "longer" and suffix == ".onnx")
