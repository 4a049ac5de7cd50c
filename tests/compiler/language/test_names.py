from __future__ import annotations

import re

import pytest
import torch
import torch.fx

from compiler.language.names import name_problem


def test_no_attribute_of_a_torch_module_may_be_a_name() -> None:
    modules = [torch.nn.Module(), torch.fx.symbolic_trace(torch.nn.Identity())]
    attributes = {name for module in modules for name in dir(module) if re.fullmatch("[a-z][a-z0-9_]*", name)}
    assert [name for name in sorted(attributes) if not name_problem(name)] == []


@pytest.mark.parametrize("name", ["a", "stem", "conv_3x3", "mix2", "type_a", "weight", "norm"])
def test_good_names(name: str) -> None:
    assert name_problem(name) == ""


@pytest.mark.parametrize(
    "name",
    ["", "A", "1a", "a-b", "a.b", "é", "_a", "class", "in", "in0", "level3", "block0", "gates", "input", "a" * 65],
)
def test_bad_names(name: str) -> None:
    assert name_problem(name) != ""
