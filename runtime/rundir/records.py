"""What the JSON files of a run hold: a model for each, by which it is checked when it is read.

A model states what readers rely on. What else a file says (metrics, what a strategy adds) may be any JSON with finite
numbers, and readers take it as it comes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Number = float | None


class Record(BaseModel, extra="allow", strict=True, allow_inf_nan=False):
    """Any JSON object."""


class Marker(Record):
    """`run.json`."""

    format: int
    name: str = ""


class Settings(Record):
    """What the report needs of a `config.json`, which may be of an earlier version."""

    class Search(Record):
        """The settings of the search."""

        strategy: str = "dso"

    search: Search
    task: str = "classification"


class Environment(Record):
    """`environment.json`."""

    packages: dict[str, str | None]


class Epoch(Record):
    """A line of `metrics.jsonl`."""

    stage: str
    epoch: Count
    gate_values: list[float] = []


class Timing(Record):
    """A line of `timings.jsonl`."""

    stage: str
    epoch: Count
    seconds: Annotated[float, Field(ge=0)]
    images_per_second: Positive


class Costs(Record):
    """`compiler.ops.Cost`."""

    params: Count
    flops: Count


class Result(Record):
    """`result.json` of a job; what else it has are numbers."""

    __pydantic_extra__: dict[str, Number] = Field(init=False)
    run: str = ""
    architecture: str = ""
    weights: str | None = None  # SHA-256 of the file of weights, where there is one
    full: Costs | None = None
    found: Costs | None = None


class Section(Record):
    """`strategy.json`: `runtime.strategies.base.ReportSection`."""

    text: str = ""
    tables: dict[str, Any] = {}
    curves: dict[str, dict[str, str]] = {}


class Exported(Record):
    """`export/parity.json`: the exported files."""

    class File(Record):
        """One of them."""

        kind: str
        path: str = ""

    source: Literal["search", "retrain"]
    files: list[File]
    parity: Record = Record()


class Latencies(Record):
    """`export/latency.json`."""

    device: str = ""
    latencies: list[Record]


Times = dict[str, dict[str, Positive]]  # `latencies.json`: seconds by device and op


class Checkpointed(Record):
    """The JSON file of a checkpoint; `sha256` is that of the rest, `tensors` that of the other file."""

    format: int
    number: Count
    tensors: str
    state: dict[str, Any]
    sha256: str


class Progress(BaseModel, extra="forbid", strict=True):
    """How many lines the logs of a job have."""

    metrics: Count
    timings: Count


class At(BaseModel, extra="forbid", strict=True):
    """The next step of a job: `runtime.training.stages.Position`."""

    stage: Count
    epoch: Count
    step: Count


class State(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """What a checkpoint says besides its tensors; `job` is the job's own."""

    job: dict[str, Any]
    position: At
    sums: dict[str, float]
    metrics: Progress
