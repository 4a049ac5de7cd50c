"""How gated sums are lowered: on graphs as small as those of tests, stacks would hardly ever pay."""

import pytest

from compiler.lowering import groups


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gated sums of equal shapes always share a stack."""
    monkeypatch.setattr(groups, "EDGES_PER_VALUE", 0)


@pytest.fixture(params=[0, groups.EDGES_PER_VALUE], ids=["stacks", "apart"])
def stacks_or_not(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Once with stacks always, once where they pay."""
    monkeypatch.setattr(groups, "EDGES_PER_VALUE", request.param)
