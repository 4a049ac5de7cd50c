"""graphspec: a declarative architecture-graph compiler for neural architecture search.

The names below are loaded when first used, so that importing the language never imports torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "baseline", "bench", "compile", "evaluate", "export", "import_model", "load", "open_run", "predict", "probe",
    "retrain", "search", "smoke",
]  # fmt: skip
HOMES = {
    **dict.fromkeys(("bench", "evaluate", "predict"), "graphspec.models"),
    **dict.fromkeys(("baseline", "probe"), "graphspec.trials"),
    "import_model": "runtime.importing",
}
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(HOMES.get(name, "graphspec.api")), name)
    raise AttributeError(f"module 'graphspec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
