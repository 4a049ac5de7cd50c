"""What a job left, read from its files: the found architecture, the graph, the network as a `Model`.

Nothing is lowered: only those who run the network need torch, and this file must not import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.analysis.weights import GATES, fitting, weight_shapes
from compiler.architecture.found import Architecture
from compiler.errors import RunError
from compiler.ir.graph import Graph, Model
from compiler.ir.text import from_json
from runtime.rundir.directory import JobDir
from runtime.rundir.files import guarded

Tensors = dict[str, Any]  # arrays by name


def read_graph(path: Path) -> Graph:
    """The graph of a JSON file; RunError or GraphspecError if it is missing or damaged."""
    with guarded(path, "read"):
        return from_json(path.read_text(encoding="utf-8"))


def read_architecture(path: Path) -> Architecture:
    """What a search found; RunError or ArchitectureError if the file is missing or damaged."""
    try:
        document = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}\n  try: the search/arch.yaml of a run") from error
    return Architecture.from_yaml(document, str(path))


def read_weights(path: Path) -> Tensors:
    """Arrays by name; RunError if the file is missing or damaged."""
    import safetensors.numpy  # and with it numpy, which most commands on runs do not need

    try:
        return safetensors.numpy.load(path.read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(
            f"{path}: cannot read the weights: {error}\n  try: run the command that writes them again"
        ) from error


def read_model(folder: JobDir) -> Model:
    """The graph of a job with its weights and the gates it has; RunError or GraphspecError if they are damaged."""
    graph, tensors = read_graph(folder.graph_json), read_weights(folder.weights)
    return Model(graph, _gates(graph, tensors, folder.weights), fitting(tensors, weight_shapes(graph)))


def _gates(graph: Graph, tensors: Tensors, file: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for scope, gates in graph.gate_scopes().items():
        vector = tensors.get(scope + GATES)
        if vector is None or vector.shape != (len(gates),):
            raise RunError(f"{file}: has no gates that fit {scope!r}\n  try: run the search again with --overwrite")
        values |= zip(gates, vector.tolist(), strict=True)
    return values
