"""derive: a block that was found in one network, in all such blocks of another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from compiler.analysis.costs import total_cost
from compiler.analysis.guards import kept_by_strength
from compiler.architecture.derive import derive
from compiler.architecture.found import Architecture, ArchitectureError
from compiler.elaborate.builder import load
from compiler.ir.graph import Graph
from compiler.ir.text import graph_hash
from compiler.language.overrides import overrides_of
from compiler.passes.pipeline import TO_COMPACT
from tests.graphs import random_gates

SPECS = Path(__file__).parents[3] / "specs"


def graph(name: str, *overrides: str) -> Graph:
    return load(SPECS / f"{name}.yaml", overrides_of(overrides))[1]


def found_in(searched: Graph, seed: int = 0) -> Architecture:
    gates = random_gates(searched, seed, zeros=0.6)
    closed = {gate for gate, value in gates.items() if value == 0.0}
    gates |= dict.fromkeys(kept_by_strength(searched, closed, gates), 0.5)
    return Architecture.of(searched, gates, strategy="dso", seed=seed, spec_hash="aa", metrics={}, costs={})


def edges_of(found: Architecture, scope: str) -> dict[str, float]:
    return next(dict(s.kept) for s in found.scopes if s.id == scope)


def kinds(found: Architecture, wanted: Iterable[str]) -> Architecture:
    return Architecture(
        found.name, found.strategy, found.seed, found.spec_hash, found.graph_hash,
        tuple(scope for scope in found.scopes if scope.kind in wanted),
    )  # fmt: skip


def edges_in_block(compact: Graph, block: str) -> set[tuple[str, str]]:
    """Edges between nodes of a block, named as in the block."""
    inside = [e for e in compact.edges() if e.dst.startswith(f"{block}.") and e.src.startswith(f"{block}.")]
    return {(e.src.removeprefix(f"{block}."), e.dst.removeprefix(f"{block}.")) for e in inside}


def test_a_cifar_block_is_restacked_in_the_imagenet_network() -> None:
    cifar, imagenet = graph("dso_nas_cifar10_share"), graph("dso_nas_imagenet")
    found = found_in(cifar)
    derived = derive(found, imagenet, spec_hash="bb")
    blocks = [b.id for b in imagenet.blocks if b.kind == "normal"]
    assert len(blocks) == 23
    assert all(edges_of(derived, block) == edges_of(found, "normal") for block in blocks)
    assert (derived.name, derived.spec_hash, derived.graph_hash) == ("dso-nas-imagenet", "bb", graph_hash(imagenet))
    assert any("kind 'normal' take the edges of normal" in note for note in derived.notes)
    compact = TO_COMPACT.run(derived.model(imagenet)).graph
    original = edges_in_block(TO_COMPACT.run(found.model(cifar)).graph, "stage0.block0")
    assert original
    assert {frozenset(edges_in_block(compact, block)) for block in blocks} == {frozenset(original)}
    assert derived.costs["found"]["params"] == total_cost(compact).params < derived.costs["full"]["params"]
    assert Architecture.from_yaml(derived.to_yaml(), "arch.yaml") == derived


def test_reductions_that_were_found_differently_keep_all_edges_and_a_note_says_so() -> None:
    cifar, imagenet = graph("dso_nas_cifar10_share"), graph("dso_nas_imagenet")
    gates = dict.fromkeys(cifar.gates(), 1.0) | {"reduce0/out<a": 0.0, "reduce1/out<b": 0.0}
    found = Architecture.of(cifar, gates, strategy="", seed=0, spec_hash="", metrics={}, costs={})
    derived = derive(found, imagenet)
    assert edges_of(derived, "reduce2") == {"out<a": 1.0, "out<b": 1.0}
    assert "blocks of kind 'reduce' keep all edges: 2 different ones were found" in derived.notes
    chosen = derive(found, imagenet, "reduce1")
    assert [edges_of(chosen, f"reduce{i}") for i in range(3)] == [{"out<a": 1.0}] * 3


def test_reductions_that_were_found_alike_are_carried_over() -> None:
    cifar, imagenet = graph("dso_nas_cifar10_share"), graph("dso_nas_imagenet")
    gates = dict.fromkeys(cifar.gates(), 1.0) | {"reduce0/out<a": 0.0, "reduce1/out<a": 0.0, "reduce0/out<b": 0.7}
    found = Architecture.of(cifar, gates, strategy="", seed=0, spec_hash="", metrics={}, costs={})
    assert edges_of(derive(found, imagenet), "reduce2") == {"out<b": 0.7}


@pytest.mark.parametrize("share", ["none", "stage", "block"])
def test_one_block_of_a_full_space_goes_into_every_kind_of_sharing(share: str) -> None:
    searched = graph("dso_nas_cifar10_small")
    target = graph("dso_nas_imagenet", f"gates.share={share}", "blocks.reduce.share=none")
    found = found_in(searched)
    derived = derive(found, target, "stage1.block0")
    wanted = edges_of(found, "stage1.block0")
    assert wanted != edges_of(found, "stage0.block0")
    normal = [scope for scope in derived.scopes if scope.kind == "normal"]
    assert len(normal) == {"none": 23, "stage": 4, "block": 1}[share]
    assert all(scope.kept == wanted for scope in normal)
    TO_COMPACT.run(derived.model(target))


def test_the_choice_among_blocks_must_be_made() -> None:
    found, target = found_in(graph("dso_nas_cifar10_small")), graph("dso_nas_imagenet")
    with pytest.raises(ArchitectureError, match="6 different blocks of kind 'normal'") as caught:
        derive(found, target)
    assert "--block: stage0.block0, stage0.block1" in str(caught.value)
    with pytest.raises(ArchitectureError, match=r"no block 'stage0\.blok0'; did you mean 'stage0\.block0'"):
        derive(found, target, "stage0.blok0")


def test_blocks_with_other_gates_are_refused() -> None:
    found = found_in(graph("dso_nas_cifar10_share"))
    with pytest.raises(ArchitectureError, match="has 128 gates, normal has 124"):
        derive(found, graph("dso_nas_imagenet", "blocks.normal.levels.gate_input=true"))
    with pytest.raises(ArchitectureError, match=r"differ between the two specs: .* has no gate 'level"):
        derive(found, graph("dso_nas_imagenet", "blocks.normal.levels.count=3"))


def test_kinds_that_were_not_searched_keep_all_edges() -> None:
    searched, target = graph("dso_nas_cifar10_share"), graph("dso_nas_imagenet")
    only = kinds(found_in(searched), ["normal"])
    derived = derive(only, target)
    assert "blocks of kind 'reduce' keep all edges: none was searched" in derived.notes
    assert edges_of(derived, "reduce0") == {"out<a": 1.0, "out<b": 1.0}


@pytest.mark.parametrize("target", ["darts_cell", "hand_wired"])
def test_networks_without_a_common_kind_are_refused(target: str) -> None:
    only = kinds(found_in(graph("dso_nas_cifar10_share")), ["normal"])
    with pytest.raises(ArchitectureError, match=r"is of a kind found in 'dso-nas-cifar10-share' \(normal\)"):
        derive(only, graph(target))


def test_sharing_blocks_of_the_same_network_changes_nothing() -> None:
    searched = graph("dso_nas_cifar10_share")
    found = found_in(searched)
    again = derive(found, searched)
    assert edges_of(again, "normal") == edges_of(found, "normal")
