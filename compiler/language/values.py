"""What the values of settings are: numbers and words with their ranges."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def parse_count(value: Any) -> Any:
    """`"3.0M"` -> 3000000; a plain number passes through; anything else is left for pydantic to refuse."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([kMG]?)\s*", value) if isinstance(value, str) else None
    return round(float(match[1]) * _UNITS[match[2]]) if match else value


MOST, LARGEST = 10**9, 1e6  # of a whole number, of a rate or a weight: beyond them arithmetic overflows, or memory ends
Positive = Annotated[int, Field(gt=0, le=MOST)]
_WRITTEN_COUNT = Annotated[str, Field(pattern=r"^\s*\d{1,18}(\.\d{1,18})?\s*[kMG]?\s*$")]
Count = Annotated[int, Field(gt=0), BeforeValidator(parse_count, json_schema_input_type=Positive | _WRITTEN_COUNT)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Chance = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0.0, le=LARGEST)]
Epochs = Annotated[int, Field(ge=0, le=MOST)]
Pixels = Annotated[int, Field(ge=0, le=2**16)]
Policy = Literal["none", "trivial", "rand"]  # of augmentation
Byte = Annotated[int, Field(ge=0, le=255)]


def _share(value: float) -> float:
    """A value of a pixel as a share of the largest; ValueError with the share where it is given in 0..255."""
    if 0 <= value <= 1:
        return value
    advice = f"; of values of 0 to 255 write {value / 255:.4g}" if 1 < value <= 255 else ""
    raise ValueError(f"expected 0 to 1, found {value:g}{advice}")


Label = Annotated[
    str, BeforeValidator(lambda label: str(label) if type(label) is int else label, json_schema_input_type=str | int)
]
Share = Annotated[float, AfterValidator(_share), Field(json_schema_extra={"minimum": 0, "maximum": 1})]


def _now(**names: str) -> BeforeValidator:
    """Reads a word that was called otherwise before."""
    return BeforeValidator(lambda word: names.get(word, word) if isinstance(word, str) else word)


StrategyName = Annotated[str, _now(apg_nag="dso")]
Adaptive = Annotated[Literal["none", "flops", "memory_access", "latency"], _now(mac="memory_access")]


def _alone(value: Any) -> Any:
    """`["class"]` -> `"class"`; ValueError of a list of none or several."""
    if isinstance(value, list) and len(value) != 1:
        other = "".join(f"; try {each!r} alone, and a spec for each of the others" for each in value[:1])
        raise ValueError(f"classification takes one label column, found {len(value)}{other}")
    return value[0] if isinstance(value, list) else value


_ONE_COLUMN = Annotated[list[str], Field(min_length=1, max_length=1)]
Column = Annotated[str, BeforeValidator(_alone, json_schema_input_type=str | _ONE_COLUMN)]
