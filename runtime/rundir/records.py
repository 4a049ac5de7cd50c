"""The models by which JSON files of a run are checked when they are read.

A model states what readers rely on. What else a file says may be any JSON with finite numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Model = Any  # a class of pydantic's, made at run time


class Record(BaseModel, extra="allow", strict=True, allow_inf_nan=False):
    """Any JSON object."""


class Numbers(Record):
    """An object whose values, but for those that a model names, are numbers."""

    __pydantic_extra__: dict[str, float | None] = Field(init=False)


def _model(base: type[BaseModel] = Record, **fields: Any) -> Model:
    """A model with these fields: a type, or a type and the value of what is missing."""
    pairs: dict[str, Any] = {key: field if isinstance(field, tuple) else (field, ...) for key, field in fields.items()}
    return create_model("Record", __base__=base, **pairs)


Marker = _model(format=int)  # run.json
Settings = _model(search=_model(strategy=(str, "dso")), task=(str, ""))  # config.json, also of an earlier version
Environment = _model(packages=dict[str, str | None], threads=(Count | None, None))
Epoch = _model(stage=str, epoch=Count, gate_values=(list[float], []))  # a line of metrics.jsonl
Seconds = Annotated[float, Field(ge=0)]
Timing = _model(stage=str, epoch=Count, seconds=Seconds, images_per_second=Positive, cpu_seconds=(Seconds | None, None))
Section = _model(text=str, tables=dict[str, Any], curves=dict[str, dict[str, str]])  # strategy.json
Costs = _model(params=Count, flops=Count)
Result = _model(
    Numbers,  # the metrics
    run=(str, ""),
    architecture=(str, ""),
    weights=(str | None, None),  # SHA-256 of the file of weights
    full=(Costs | None, None),
    found=(Costs | None, None),
)
ExportedFile: Any = _model(kind=str, path=(str, ""))
Exported = _model(source=Literal["search", "retrain"], files=list[ExportedFile], parity=(Record, None))  # parity.json
Latencies = _model(device=(str, ""), latencies=list[Record])  # latency.json
Times = dict[str, dict[str, Positive]]  # latencies.json: seconds by device and op
Checkpointed = _model(format=int, number=Count, tensors=str, state=dict[str, Any], sha256=str)
State = _model(  # of a checkpoint; `job` is the job's own
    job=dict[str, Any],
    position=_model(stage=Count, epoch=Count, step=Count),
    sums=dict[str, float],
    metrics=_model(metrics=Count, timings=Count),
)
