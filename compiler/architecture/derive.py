"""Transfer: re-stack found blocks in another network.

Every block of the target whose kind was searched gets the edges found for that kind, whatever the two specs say about
sharing gates; blocks of other kinds keep all edges. The blocks must offer the same edges in both specs; sizes, number
and order of the blocks are the target's own.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from compiler.analysis.costs import total_cost
from compiler.architecture.found import Architecture, ArchitectureError, Scope
from compiler.errors import did_you_mean
from compiler.ir.graph import Graph
from compiler.passes.pipeline import TO_COMPACT

OPEN = 1.0  # value written for gates of blocks that keep all edges


def derive(architecture: Architecture, target: Graph, block: str | None = None, *, spec_hash: str = "") -> Architecture:
    """The architecture of the search graph `target` with the found blocks; its notes say what was done.

    `block` is the scope to take (a block of a full-space result, such as `normal0.block3`), for its kind; without it,
    each kind's only scope is taken. ArchitectureError if that leaves the choice of the main kind open, if a kind has
    other gates in the target, or if no kind of the target was searched.
    """
    chosen, notes = _choose(architecture, block)
    kept: dict[str, float] = {}
    origin: dict[str, Any] = {"strategy": architecture.strategy, "seed": architecture.seed, "spec_hash": spec_hash}
    blank = Architecture.of(target, dict.fromkeys(target.gates(), OPEN), **origin)
    for scope in blank.scopes:
        kept |= {f"{scope.id}/{local}": value for local, value in _carried(chosen.get(scope.kind), scope).items()}
    kinds = dict.fromkeys(scope.kind for scope in blank.scopes)
    untouched = [kind for kind in kinds if kind not in chosen]
    if len(untouched) == len(kinds):
        raise _nothing_in_common(architecture, target, untouched)
    searched = [scope.kind for scope in architecture.scopes]
    for kind in untouched:
        reason = f"{n} different ones were found" if (n := searched.count(kind)) else "none was searched"
        notes.append(f"blocks of kind {kind!r} keep all edges: {reason}")
    derived = Architecture.of(target, kept, notes=notes, **origin)
    found = total_cost(TO_COMPACT.run(derived.model(target)).graph)
    return replace(derived, costs={"full": asdict(total_cost(target)), "found": asdict(found)})


def _choose(architecture: Architecture, block: str | None) -> tuple[dict[str, Scope], list[str]]:
    """The scope to take for each kind, and notes. A kind with several is left out unless all keep the same edges."""
    by_kind: dict[str, list[Scope]] = {}
    for scope in architecture.scopes:
        by_kind.setdefault(scope.kind, []).append(scope)
    chosen = {kind: scopes[0] for kind, scopes in by_kind.items() if kind and len({tuple(s.kept) for s in scopes}) == 1}
    if block is not None:
        scope = _named(architecture, block)
        chosen[scope.kind] = scope
    else:
        main = max(architecture.scopes, key=lambda s: s.gates, default=None)
        if main is not None and main.kind not in chosen:
            raise _open_choice(architecture, by_kind[main.kind])
    notes = [f"derived from {architecture.name} (architecture {architecture.hash[:12]})"]
    return chosen, notes + [f"blocks of kind {kind!r} take the edges of {scope.id}" for kind, scope in chosen.items()]


def _named(architecture: Architecture, block: str) -> Scope:
    scopes = {scope.id: scope for scope in architecture.scopes if scope.kind}
    if block not in scopes:
        raise ArchitectureError(
            f"the architecture {architecture.name!r} has no block {block!r}{did_you_mean(block, scopes)}\n"
            f"  try: one of {_listed(list(scopes))}"
        )
    return scopes[block]


def _open_choice(architecture: Architecture, scopes: list[Scope]) -> ArchitectureError:
    return ArchitectureError(
        f"the architecture {architecture.name!r} has {len(scopes)} different blocks of kind {scopes[0].kind!r}\n"
        f"  try: choose the one to re-stack with --block: {_listed([scope.id for scope in scopes])}"
    )


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _carried(source: Scope | None, target: Scope) -> dict[str, float]:
    """Values of the target scope's kept gates; `target` has all its gates open."""
    if source is None:
        return dict(target.kept)
    missing = [local for local in source.kept if local not in target.kept]
    if missing or source.gates != target.gates:
        reason = (
            f"has no gate {missing[0]!r}{did_you_mean(missing[0], target.kept)}"
            if missing
            else f"has {target.gates} gates, {source.id} has {source.gates}"
        )
        raise ArchitectureError(
            f"blocks of kind {target.kind!r} differ between the two specs: {target.id} {reason}\n"
            f"  try: the same definition of the block in both (`extends` takes it from the other file)"
        )
    return dict(source.kept)


def _nothing_in_common(architecture: Architecture, target: Graph, kinds: list[str]) -> ArchitectureError:
    return ArchitectureError(
        f"no block of {target.name!r} with gates ({', '.join(kinds) or 'it has none'}) is of a kind found in "
        f"{architecture.name!r} ({', '.join(dict.fromkeys(s.kind for s in architecture.scopes))})\n"
        f"  try: call the block in the spec as the one that was searched, with the same nodes and gates"
    )
