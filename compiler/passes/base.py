"""What a pass is: a small frozen dataclass with a kebab-case name, its options as fields and one method.

Passes are functional: they take a `Model` and return one; the graphs have at most some ten thousand nodes, so a copy is
cheap and nothing needs undoing. The runner (`compiler.passes.pipeline`) verifies after every pass, a pass never has to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.graph import Model


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes; the first line of the docstring is the help text."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, model: Model) -> Model:
        """The transformed model; the given one stays as it is. PassError if the pass does not apply."""
