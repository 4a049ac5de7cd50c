"""Tasks for tests that need one and are not about it."""

from __future__ import annotations

from compiler.language.config import Configuration
from runtime.tasks.classification import Classification


def class_task(classes: int = 10) -> Classification:
    return Classification(classes, Configuration())
