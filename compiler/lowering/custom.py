"""Rows of custom ops, which the packages that offer them name as `module:function`."""

from __future__ import annotations

import pkgutil
from typing import Any, Literal

from compiler.errors import GraphspecError
from compiler.ops import op


def imported_row(name: str, field: Literal["torch", "onnx"]) -> Any:
    """The row of a custom op, named by this field of its `Op`; GraphspecError if it has none or the import fails."""
    target = getattr(op(name), field)
    lowering = {"torch": "torch", "onnx": "ONNX"}[field]
    if target is None:
        raise GraphspecError(
            f"the op {name!r} has no {lowering} row\n"
            f'  try: give its compiler.ops.Op {"an" if field == "onnx" else "a"} `{field}="module:function"`'
        )
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise GraphspecError(
            f"the {lowering} row {target!r} of the op {name!r} cannot be imported: {error}\n"
            f"  try: mend or uninstall the package that offers it"
        ) from error
