"""graphspec: a declarative architecture-graph compiler for neural architecture search.

The names below are loaded when first used, so that importing the language never imports torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["bench", "compile", "export", "import_model", "load", "open_run", "retrain", "search", "smoke"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = "runtime.importing" if name == "import_model" else "graphspec.api"
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'graphspec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
