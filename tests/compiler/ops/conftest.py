"""What tests of ops begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compiler.ops.cases import custom_ops


@pytest.fixture
def with_custom_ops() -> Iterator[None]:
    """Ops of one's own are known."""
    with custom_ops():
        yield
