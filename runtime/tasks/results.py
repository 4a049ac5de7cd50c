"""Results of jobs, whose figures are named after the task's metrics: as Python values and as JSON records.

In a record the entries of `metrics` stand beside the other fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from compiler.errors import RunError
from compiler.language.findings import first_of


class Measured:
    """Base of dataclasses with a field `metrics`; an entry of it is an attribute too, such as `.accuracy`."""

    def __getattr__(self, name: str) -> Any:
        metrics = self.__dict__.get("metrics", {})  # none yet where a copy is being made
        if name not in metrics:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; its metrics: {', '.join(metrics) or 'none'}")
        return metrics[name]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The result from its JSON record."""
        own = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # subclasses are dataclasses
        metrics = {name: value for name, value in record.items() if name not in own}
        try:
            return TypeAdapter(cls).validate_python({**record, "metrics": metrics})
        except ValidationError as error:
            where = f"{record.get('run')}: a result of its jobs is damaged: {first_of(error)}"
            raise RunError(f"{where}\n  try: the job again, with --overwrite") from error


def as_record(result: Any) -> dict[str, Any]:
    """The JSON record of a result, or of a dataclass that holds results."""
    return dict(_spread(asdict(result)))


def _spread(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _spread(item) for name, item in value.items() if name != "metrics"} | value.get("metrics", {})
    return [_spread(item) for item in value] if isinstance(value, list | tuple) else value
