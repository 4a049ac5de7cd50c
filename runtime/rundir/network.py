"""What a job left: the found architecture, the graph, the network as a `Model`. It must not import torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from compiler.analysis.weights import GATES, fitting, weight_shapes
from compiler.architecture.found import Architecture
from compiler.errors import RunError
from compiler.ir.graph import Graph, Model
from compiler.ir.text import graph_and_version
from runtime.rundir.directory import JobDir
from runtime.rundir.files import MissingFileError, damaged, naming, read_json, read_tensors, read_text
from runtime.rundir.records import Result

Tensors = dict[str, Any]  # arrays by name


def read_graph(path: Path) -> Graph:
    """The graph of a JSON file; RunError if it is missing or damaged."""
    return read_graph_and_version(path)[0]


def read_graph_and_version(path: Path) -> tuple[Graph, int]:
    """As `read_graph`, with the version of the format that the graph was written in."""
    source = read_text(path)
    with naming(path):
        return graph_and_version(source)


def read_architecture(path: Path) -> Architecture:
    """What a search found; RunError or ArchitectureError if the file is missing or damaged."""
    try:
        document = read_text(path)
    except MissingFileError as error:
        raise RunError(f"{path}: there is no such file\n  try: the search/arch.yaml of a run") from error
    return Architecture.from_yaml(document, str(path))


def read_weights(path: Path) -> Tensors:
    """Arrays by name; RunError if the file is missing or damaged."""
    return _read_weights(path)[0]


def _read_weights(path: Path) -> tuple[Tensors, str]:
    """Arrays by name, all numbers finite, and the SHA-256 of the file."""
    import numpy as np  # which most commands on runs do not need
    import safetensors.numpy

    tensors, content = read_tensors(path, safetensors.numpy.load)
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise damaged(path, f"{name} holds numbers that are not finite")
        if name.endswith(".running_var") and (array < 0).any():
            raise damaged(path, f"{name} holds variances below 0")
    return tensors, hashlib.sha256(content).hexdigest()


def read_model(folder: JobDir) -> Model:
    """The graph of a job with its weights and the gates it has; RunError or GraphspecError if they are damaged."""
    graph, (tensors, digest) = read_graph(folder.graph_json), _read_weights(folder.weights)
    wanted = read_json(folder.result, Result).get("weights") if folder.is_finished else None
    if wanted not in (None, digest):
        raise damaged(folder.weights, f"these are not the weights that {folder.result} tells of")
    with naming(folder.weights):
        return Model(graph, _gates(graph, tensors), fitting(tensors, weight_shapes(graph)))


def _gates(graph: Graph, tensors: Tensors) -> dict[str, float]:
    values: dict[str, float] = {}
    for scope, gates in graph.gate_scopes().items():
        vector = tensors.get(scope + GATES)
        if vector is None or vector.shape != (len(gates),):
            raise RunError(f"it has no gates that fit {scope!r}")
        values |= zip(gates, vector.tolist(), strict=True)
    return values
