"""Options of the test suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from compiler.lowering import groups

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results are compared bit by bit, and only the CPU gives the same ones again
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of commands would compile all sources again
settings.register_profile("graphspec", deadline=None, derandomize=True, database=None)  # no test depends on time
settings.load_profile("graphspec")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with a golden file; with --update-golden it writes the file."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; write it with pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; if that is right, pytest --update-golden"

    return check


@pytest.fixture(scope="session", autouse=True)
def _the_checkout_stays_as_it_is() -> Iterator[None]:
    """Tests make no runs in the checkout, and leave its latest run the latest."""
    runs = Path(__file__).parents[1] / "runs"

    def seen() -> dict[Path, Path]:
        return {path: path.resolve() for path in runs.glob("*")}

    before = seen()
    yield
    assert seen() == before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests start first, so that two workers end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: sums depend on their number, and processes that tests start have one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder for commands that run in this process, where torch is imported already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runtime.export.run_export.THREADS", (1,))  # fewer timings of the exported model
    monkeypatch.setattr("runtime.export.run_export.LATENCY_BATCHES", (1,))
    return tmp_path


# In graphs as small as those of tests, stacks (`compiler.lowering.groups`) hardly ever pay.


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gated sums of equal shapes always share a stack."""
    monkeypatch.setattr(groups, "EDGES_PER_VALUE", 0)


@pytest.fixture(
    params=[("reference", 0), ("fused", 0), ("fused", groups.EDGES_PER_VALUE)], ids=["reference", "stacks", "apart"]
)
def lowering(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The reference, which has no stacks, and the fused lowering with and without them."""
    name, edges_per_value = request.param
    monkeypatch.setattr(groups, "EDGES_PER_VALUE", edges_per_value)
    return str(name)


@pytest.fixture(params=[0, groups.EDGES_PER_VALUE], ids=["stacks", "apart"])
def stacks_or_not(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Once with stacks always, once where they pay."""
    monkeypatch.setattr(groups, "EDGES_PER_VALUE", request.param)
