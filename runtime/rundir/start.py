"""The weights that a spec names to start from: checked when it is compiled, copied into the run, read by its jobs.

A spec may come from a stranger: its file of weights is read as safetensors, or as numbers alone from a file of torch.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.analysis.weights import fitting, weight_shapes
from compiler.errors import Diagnostic, RunError, SpecError
from compiler.ir.graph import Graph
from compiler.language.spec import Spec
from runtime.rundir.directory import Opened
from runtime.rundir.files import MOST_TENSORS, naming, read_bytes
from runtime.rundir.network import Tensors, read_weights

CHECKPOINT = ("state_dict", "model_state_dict", "model", "net")  # keys of checkpoints
WRAPPED = re.compile(r"^(_orig_mod\.)?(module\.)?(_orig_mod\.)?")  # names behind torch.compile, DataParallel


def start_weights(opened: Opened) -> Tensors | None:
    """What the jobs of a run start from; None if the spec names no weights. RunError if the copy is damaged."""
    if not opened.spec.weights:
        return None
    path = Path(opened.spec.weights)
    with naming(path):
        return fitting(read_weights(path), weight_shapes(opened.graph))


def file_for(spec: Spec, graph: Graph) -> bytes:
    """The weights that a spec names for its network, as a safetensors file; SpecError if they do not fit."""
    import numpy as np
    import safetensors.numpy

    try:
        given = tensors_of(Path(spec.weights))
    except RunError as error:
        raise _refusal(spec, str(error)) from error
    shapes = weight_shapes(graph)
    missing = [name for name in shapes if name not in given]
    unfit = [name for name, shape in shapes.items() if name in given and tuple(given[name].shape) != shape]
    found = (
        [f"{len(missing)} of {len(shapes)} tensors are missing, the first of them {missing[0]!r}"] if missing else []
    )
    if unfit:
        found.append(
            f"{unfit[0]!r} has shape {list(given[unfit[0]].shape)}, the network asks for {list(shapes[unfit[0]])}"
        )
    if found:
        raise _refusal(spec, f"{spec.weights}: {'; '.join(found)}")
    arrays = {name: np.ascontiguousarray(given[name], np.float32) for name in shapes}
    broken = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
    if broken:
        raise _refusal(spec, f"{spec.weights}: {broken!r} holds numbers that are not finite")
    return safetensors.numpy.save(arrays)


def _refusal(spec: Spec, message: str) -> SpecError:
    hint = "give weights that were saved for this network, or `weights: null` to start from random ones"
    return SpecError([Diagnostic(spec.place("weights"), f"{message.splitlines()[0]}; {hint}")])


def tensors_of(path: Path) -> Tensors:
    """Arrays by name of a file that anyone may have made; RunError if it holds no tensors. No code of it is run."""
    import safetensors.numpy

    content = read_bytes(path, MOST_TENSORS)
    try:
        is_safetensors = content[8:9] == b"{"  # behind the length of its header; files of torch have many suffixes
        return safetensors.numpy.load(content) if is_safetensors else _unpickled(content)
    except Exception as error:  # of safetensors, numpy or torch, which do not say which; it may quote a secret
        raise RunError(
            f"{path}: holds no weights that can be read\n  try: a .safetensors file, or a state dict"
        ) from error


def _unpickled(content: bytes) -> Tensors:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that are no files of torch
        state: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    for key in CHECKPOINT:
        state = state[key] if isinstance(state.get(key), Mapping) else state
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    return {WRAPPED.sub("", name): tensor.float().numpy() for name, tensor in tensors.items()}
