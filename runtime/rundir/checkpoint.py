"""Checkpoints: what a job needs to go on, as safetensors and JSON, verified by hash. Nothing is ever unpickled.

    00000012.safetensors    all tensors
    00000012.json           {"format", "number", "tensors": SHA-256 of the other file, "state", "sha256": of the rest}

A checkpoint exists once its JSON, which is written last, does. The same tensors and state give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from compiler.errors import RunError
from runtime.rundir.files import damaged, names_in, read_json, read_tensors, remove, write_bytes, write_text
from runtime.rundir.records import Checkpointed

FORMAT = 1
_FILE = re.compile(r"\.?\d{8}\.(safetensors|json)(\..*tmp)?")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint as read. `state` keeps the order of its keys; tuples have become lists."""

    number: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class _NewerError(RunError):
    """A checkpoint is of a later version."""


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints in `folder`, of which the `keep` newest stay; `warn` takes one line for people."""

    folder: Path
    keep: int
    warn: Callable[[str], None]

    @property
    def latest_path(self) -> Path | None:
        """The newest checkpoint's JSON file, verified or not; None if there is none."""
        numbers = self._numbers()
        return self._path(numbers[0], "json") if numbers else None

    def save(self, number: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove all but the newest.

        `number` is at least 0 and grows from one checkpoint to the next. A checkpoint with a higher number is removed:
        whoever writes this one did not find it whole. All numbers are finite; `state` is JSON. RunError if the disk
        refuses; the earlier checkpoints are then as they were.
        """
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        content = safetensors.torch.save(copies)
        document = {
            "format": FORMAT,
            "number": number,
            "tensors": hashlib.sha256(content).hexdigest(),
            "state": dict(state),
        }
        text = _dump(document | {"sha256": _digest(document)})
        write_bytes(self._path(number, "safetensors"), content)
        write_text(self._path(number, "json"), text)
        self.remove_others(number)

    def load_latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, with a warning for each damaged newer one; None if there is none at all.

        RunError if there are some and all are damaged, or one was written by a newer graphspec.
        """
        numbers = self._numbers()
        for number in numbers:
            try:
                return self._read(number)
            except _NewerError:
                raise
            except RunError as error:
                why = str(error).partition("\n")[0]
                self.warn(f"checkpoint {self._path(number, 'json')} is damaged ({why}): taking the one before")
        if numbers:
            raise RunError(f"{self.folder}: every checkpoint is damaged\n  try: start anew, with --overwrite")
        return None

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:08d}.{suffix}"

    def _numbers(self) -> list[int]:
        """Numbers of the checkpoints, newest first."""
        names = map(Path, names_in(self.folder))
        stems = (name.stem for name in names if name.suffix == ".json" and _FILE.fullmatch(name.name))
        return sorted((int(stem) for stem in stems if stem.isdecimal()), reverse=True)

    def _read(self, number: int) -> Checkpoint:
        """A whole checkpoint; RunError if it is not what was written."""
        file, tensors_file = self._path(number, "json"), self._path(number, "safetensors")
        document = read_json(file, Checkpointed)
        if document.pop("sha256") != _digest(document):
            raise damaged(file, "it was altered")
        if document["format"] > FORMAT:
            raise _NewerError(f"{file}: a newer graphspec wrote it\n  try: update graphspec")
        tensors, content = read_tensors(tensors_file, safetensors.torch.load)
        if document["tensors"] != hashlib.sha256(content).hexdigest():
            raise damaged(tensors_file, "it was altered")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise damaged(tensors_file, f"{name} holds numbers that are not finite")
        return Checkpoint(number, tensors, document["state"])

    def remove_others(self, newest: int) -> None:
        """Remove all files of checkpoints but those of the `keep` newest up to `newest`, the JSON files first."""
        kept = {f"{number:08d}" for number in [n for n in self._numbers() if n <= newest][: self.keep]}
        for name in names_in(self.folder):  # sorted: the JSON of a number comes before its tensors
            if _FILE.fullmatch(name) and name.lstrip(".").partition(".")[0] not in kept:
                remove(self.folder / name)


def _dump(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dump(document).encode()).hexdigest()


def optimizer_state(optimizer: Optimizer, parameters: Iterable[tuple[str, Parameter]]) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter name>/<key>` -> tensor; `parameters` names each of its parameters.

    State that is None (a momentum that has not started) is left out. The settings of parameter groups (rates, momentum)
    are no part of it: they follow from the configuration and the position. TypeError for other state than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.detach()
            elif value is not None:
                raise TypeError(f"the optimizer keeps {key} of {name} as {type(value).__name__}, not as a tensor")
    return tensors


def is_captured(optimizer: Optimizer) -> bool:
    """Whether the optimizer counts its steps beside its parameters; torch counts on the CPU otherwise."""
    return bool(optimizer.defaults.get("capturable"))


@torch.no_grad()
def restore_optimizer_state(
    optimizer: Optimizer, parameters: Iterable[tuple[str, Parameter]], tensors: Mapping[str, Tensor]
) -> None:
    """Replace the optimizer's state by what `optimizer_state` gave, copied to each parameter's device and layout.

    Whoever changed the network in between leaves out what belongs to parameters that are gone, and slices what belongs
    to parameters that lost inputs: RunError for a name that is not in `parameters`, or a state tensor that has neither
    its parameter's shape nor a single number. A parameter without state in `tensors` starts without.
    """
    named = dict(parameters)
    for parameter in named.values():
        optimizer.state.pop(parameter, None)
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in named:
            raise RunError(f"there is optimizer state for {name!r}, which the network does not have")
        parameter = named[name]
        if not tensor.is_floating_point():
            raise RunError(f"{full_name} holds {tensor.dtype}, which is no state of an optimizer")
        if tensor.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        elif tensor.dim() == 0:
            value = tensor.to(parameter.device if is_captured(optimizer) else "cpu", copy=True)  # a step count
        else:
            raise RunError(f"{full_name} has shape {tuple(tensor.shape)}, its parameter {tuple(parameter.shape)}")
        optimizer.state[parameter][key] = value
