"""Pipelines: passes in order, verified after every one; the ones the commands use, and how one is written as text.

A pipeline takes a model from one phase to the next. Halfway, only the structure rules must hold.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from compiler.analysis.limits import MEASURES, limits_of
from compiler.errors import GraphspecError, PassError, did_you_mean
from compiler.ir.graph import Graph, Model, Phase
from compiler.ir.text import text
from compiler.ir.verify import verify
from compiler.language.config import BudgetConfig
from compiler.passes.base import Pass
from compiler.passes.collapse_identities import CollapseIdentities
from compiler.passes.drop_gates import DropGates
from compiler.passes.expand_parts import ExpandParts
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.fold_gates import FoldGates
from compiler.passes.infer_types import InferTypes
from compiler.passes.merge_branches import MergeBranches
from compiler.passes.pad_channels import PadChannels
from compiler.passes.prune_zero_edges import PruneZeroEdges
from compiler.passes.reuse_sums import ReuseSums
from compiler.passes.share_equal_nodes import ShareEqualNodes
from compiler.passes.split_projections import SplitProjections
from compiler.passes.split_sums import SplitSums
from compiler.passes.stack_chains import StackChains
from compiler.passes.training_parts import AddTrainingParts
from compiler.passes.ungroup import Ungroup
from compiler.passes.widen import Widen, solve_width

PASSES: dict[str, type[Pass]] = {
    kind.name: kind for kind in (
        InferTypes, PruneZeroEdges, DropGates, FoldGates, ExpandParts, SplitSums, FoldBatchNorm, CollapseIdentities,
        Ungroup, MergeBranches, StackChains, ShareEqualNodes, ReuseSums, SplitProjections, PadChannels, Widen,
        AddTrainingParts,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Printer:
    """Writes one line of differences per pass and, if asked, the graph after it."""

    write: Callable[[str], object]
    graphs: bool = False

    def after(self, step: Pass, before: Model, after: Model, seconds: float) -> None:
        """Write what the pass changed."""
        self.write(f"-- {step.name}: {_changes(before.graph, after.graph)} ({seconds * 1000:.1f} ms)")
        if self.graphs:
            self.write(text(after.graph))


def _changes(before: Graph, after: Graph) -> str:
    if text(before) == text(after):
        return "changed nothing"
    earlier, later = _sizes(before), _sizes(after)
    return ", ".join(f"{name} {later[name]:,} ({later[name] - earlier[name]:+,})" for name in earlier if name in later)


def _sizes(graph: Graph) -> dict[str, int]:
    sizes = {"nodes": len(graph), "edges": graph.edge_count()}
    if all(node.type is not None for node in graph.nodes()):
        sizes |= {measure.unit: round(measure.of(graph)) for measure in MEASURES}
    return sizes


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, and the phases before and after them (None: whichever the graph says it is in)."""

    passes: tuple[Pass, ...]
    before: Phase | None = None
    after: Phase | None = None

    def run(self, model: Model, trace: Printer | None = None) -> Model:
        """The transformed model; the error of a pass or of a broken rule carries a note naming the pass."""
        verify(model.graph, self.before)
        for number, step in enumerate(self.passes, start=1):
            started = time.perf_counter()
            try:
                result = step.run(model)
                verify(result.graph, Phase.RAW)  # rules of a phase may be broken halfway, those of structure not
            except GraphspecError as error:
                error.add_note(f"while running {step.name!r}, pass {number} of {len(self.passes)}")
                raise
            if trace is not None:
                trace.after(step, model, result, time.perf_counter() - started)
            model = result
        verify(model.graph, self.after)
        return model


PRUNED = Pipeline((PruneZeroEdges(),), Phase.SEARCH, Phase.SEARCH)
"""What is left of the search space, with its gates."""

TO_COMPACT = Pipeline((PruneZeroEdges(), DropGates()), Phase.SEARCH, Phase.COMPACT)
"""The found architecture, to be trained from scratch."""

TO_INHERIT = Pipeline((PruneZeroEdges(), FoldGates()), Phase.SEARCH, Phase.COMPACT)
"""The found architecture with what the search trained: computes what the pruned supernet does."""

TO_EXPORT = Pipeline(
    (
        ExpandParts(), SplitSums(), FoldBatchNorm(), CollapseIdentities(), Ungroup(), MergeBranches(), StackChains(),
        ShareEqualNodes(), ReuseSums(), SplitProjections(), PadChannels(),
    ),
    Phase.COMPACT,
    Phase.COMPACT,
)  # fmt: skip
"""Primitive nodes ready to be emitted, arithmetic folded into the weights."""


def compacted(model: Model, budget: BudgetConfig, *, inherit: bool = False) -> tuple[Model, float]:
    """The network to train and its width multiplier: pruned, without gates, as wide as the budget allows.

    Every network takes this road, whether it was found, derived, drawn at random or had no gates from the start. With
    `inherit` the model's weights come along, the gates folded into them, and the widths stay whatever the budget says.
    They stay too where the search has met a latency.
    """
    if inherit:
        return TO_INHERIT.run(model), 1.0
    found = TO_COMPACT.run(model)
    if not limits_of(budget) or budget.latency is not None:
        return found, 1.0
    width = solve_width(found.graph, budget)
    return Pipeline((Widen(width, budget.round_to),), Phase.COMPACT, Phase.COMPACT).run(found), width


_ITEM = re.compile(r"\s*([a-z][a-z0-9-]*)\s*(?:\{([^{}]*)\})?\s*(?:,|$)")


def parse_pipeline(written: str) -> Pipeline:
    """`"prune-zero-edges,fold-batch-norm{option=value,...}"` as a pipeline; PassError at a name or option it lacks."""
    passes: list[Pass] = []
    position = 0
    while position < len(written):
        match = _ITEM.match(written, position)
        if match is None:
            raise PassError(
                "pipeline", repr(written), f"cannot read {written[position:]!r}", "write pass-name{option=value},..."
            )
        passes.append(_named_pass(match[1], match[2] or ""))
        position = match.end()
    if not passes:
        raise PassError("pipeline", repr(written), "it names no pass", f"choose among {', '.join(PASSES)}")
    return Pipeline(tuple(passes))


def _named_pass(name: str, options: str) -> Pass:
    if name not in PASSES:
        raise PassError(
            "pipeline", name, f"there is no such pass{did_you_mean(name, PASSES)}", f"choose among {', '.join(PASSES)}"
        )
    kind = PASSES[name]
    values = {}
    for item in filter(None, (part.strip() for part in options.split(","))):
        option, _, value = (part.strip() for part in item.partition("="))
        values[option] = _option_value(kind, option, value)
    return kind(**values)


def _option_value(kind: type[Pass], option: str, value: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    if option not in known:
        has = f"it takes {', '.join(known)}" if known else "it takes no options"
        raise PassError("pipeline", kind.name, f"no option {option!r}{did_you_mean(option, known)}", has)
    wanted = get_type_hints(kind)[option]
    try:
        return value if wanted is str else TypeAdapter(wanted).validate_json(value, strict=True)
    except ValidationError as error:
        raise PassError(
            "pipeline", kind.name, f"{option}: {value!r} is no {wanted.__name__}", f"write {option}=<{wanted.__name__}>"
        ) from error
