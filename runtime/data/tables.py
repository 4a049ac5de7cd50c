"""Tables with a line for each image: CSV, TSV and JSON lines. It must not import torch."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from compiler.errors import RunError, did_you_mean
from runtime.rundir.files import checked, guarded

_LINES = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv", *_LINES)  # endings
_LARGEST_CELL = 2**20


class Row(NamedTuple):
    """An image of a set."""

    path: str
    name: str  # of its class
    part: str  # empty: the set has no parts


def read_table(
    file: Path,
    root: Path,
    image: str,
    label: str,
    part: str | None,
    parts: Mapping[str, str],
    *,
    unlabelled: bool = False,
) -> Iterator[Row]:
    """The rows of a table, whose paths are relative to `root`. `parts`: what words in the column `part` mean;
    `unlabelled`: images without a label are of the class "".

    RunError naming the line where it cannot be read or a value is missing.
    """
    with guarded(file, "read"), checked(file).open(encoding="utf-8-sig", newline="") as lines:
        records = _objects if file.suffix.lower() in _LINES else _cells
        try:
            for number, record in records(file, lines):
                path = _text(file, number, record, image)
                name = "" if unlabelled and _is_empty(record, label) else _text(file, number, record, label)
                word = _text(file, number, record, part).lower() if part else ""
                if word and word not in parts:
                    said = f"{part} is {word!r}, not {', '.join(dict.fromkeys(parts))}"
                    raise RunError(f"{file}:{number}: {said}\n  try: another column with data.part, or none")
                yield Row(os.path.join(root, path), name, parts.get(word, ""))
        except (csv.Error, UnicodeDecodeError) as error:
            raise RunError(f"{file} cannot be read as a table: {error}\n  try: save it as CSV in UTF-8") from error


def _cells(file: Path, lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines of cells under a line of names, between tabs, semicolons or commas, as the first line says."""
    csv.field_size_limit(_LARGEST_CELL)
    first = lines.readline()
    lines.seek(0)
    between = (
        "\t" if file.suffix.lower() == ".tsv" or "\t" in first else ";" if first.count(";") > first.count(",") else ","
    )
    reader = csv.DictReader(lines, delimiter=between)
    for record in reader:
        yield reader.line_num, record


def _objects(file: Path, lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """An object a line."""
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise RunError(f"{file}:{number}: is no JSON: {error}\n  try: one JSON object a line") from error
        if isinstance(record, dict):
            yield number, record
        elif record is not None:
            raise RunError(f"{file}:{number}: is no JSON object\n  try: one JSON object a line")


def _text(file: Path, number: int, record: Mapping[str, Any], column: str) -> str:
    """A value that is a text or a whole number; RunError if there is none."""
    value = record.get(column)
    text = str(value).strip() if isinstance(value, str | int) else ""
    if not text:
        names = [str(name) for name in record if name]
        hint = did_you_mean(column, names) or f"; there are {', '.join(names[:10])}"
        missing = f"there is no column {column!r}{hint}" if column not in record else f"{column} is empty or no text"
        other = "; data.ignore: [''] leaves out what has no label" * (column in record)
        names_them = "data.image, data.label, data.part name the columns, otherwise path and label"
        raise RunError(f"{file}:{number}: {missing}\n  try: {names_them}{other}")
    return text


def _is_empty(record: Mapping[str, Any], column: str) -> bool:
    value = record.get(column, 0)
    return value is None or (isinstance(value, str) and not value.strip())
