"""What a pass is: a small frozen dataclass, its options as fields and one method.

Passes are functional: they take a `Model` and return one; the graphs have at most some ten thousand nodes, so a copy is
cheap and nothing needs undoing. The runner (`compiler.passes.pipeline`) verifies after every pass, a pass never has to.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.graph import Model


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes, called after their classes (`FoldGates`: `fold-gates`); the docstring is the help text."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=.)(?=[A-Z])", "-", cls.__name__).lower()

    @abstractmethod
    def run(self, model: Model) -> Model:
        """The transformed model; the given one stays as it is. PassError if the pass does not apply."""
