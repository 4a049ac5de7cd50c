"""An exported model: an ONNX file with its metadata, which says all that is needed to use it. It must not import torch.

Pixels become what the file reads by the arithmetic of training, so that outputs are those that the export has judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Json, TypeAdapter, ValidationError

from compiler.errors import RunError
from compiler.language.findings import first_of
from runtime.data.pixels import Pixels, Reading, as_raw
from runtime.inference.network import Array, OnnxNetwork
from runtime.rundir.directory import RunDir
from runtime.rundir.files import checked
from runtime.rundir.study import is_study

MODEL = "model.onnx"  # in the folder `export` of a run
RAW = "raw"  # how the metadata `preprocessing` of a model begins that normalises images itself
TASK = "classification"  # the only one whose answers are read here
KINDS = {"tensor(uint8)": "uint8", "tensor(uint16)": "uint16"}  # of raw images, by onnxruntime's names


class Metadata(BaseModel):
    """What an exported file says of itself, as far as it is needed to use it."""

    labels: Json[list[str]]
    mean: Json[list[float]]
    std: Json[list[float]]
    layout: Literal["nchw", "nhwc"]
    outputs: str  # name of the output that answers
    reading: Json[dict[str, Any]]
    preprocessing: str = ""
    input_range: Json[list[float]] = [0, 255]
    size: Json[list[int]] = []  # of the network's input, where the model takes images of any size
    source: Literal["retrain", "search"]  # the job whose network it is
    ignored: Json[list[str]] = []  # classes that were left out of the training
    task: str = TASK


@dataclass(frozen=True)
class ExportedModel:
    """A classifier that `graphspec export` has written."""

    network: OnnxNetwork
    metadata: Metadata
    reading: Reading
    shape: tuple[int, ...]  # (C, H, W), or (C, T) of signals

    @classmethod
    def open(cls, path: Path) -> ExportedModel:
        """RunError if the file is no classifier that `graphspec export` has written."""
        network = OnnxNetwork(checked(path))
        metadata = _metadata(path, network.session.get_modelmeta().custom_metadata_map)
        sizes = filled(network.inputs[0].shape[1:], metadata.size)
        shape = (*sizes[-1:], *sizes[:-1]) if metadata.layout == "nhwc" else sizes
        outputs = {output.name: output.shape for output in network.session.get_outputs()}
        fits = all(isinstance(size, int) for size in shape) and shape[:1] == (len(metadata.mean),)
        fits = fits and len(metadata.std) == len(metadata.mean)
        if not fits or outputs.get(metadata.outputs, [])[1:2] != [len(metadata.labels)]:
            raise _foreign(path, f"its metadata does not fit its input {shape} and its outputs {outputs}")
        try:
            return cls(network, metadata, Reading(**metadata.reading), shape)
        except TypeError as error:
            raise _foreign(path, f"the metadata `reading` is of another version: {error}") from error

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.network.path

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of the outputs."""
        return self.metadata.labels

    def check_reads_files(self) -> None:
        """RunError if the model does not read images of files."""
        if len(self.shape) != 3:
            raise RunError(
                f"{self.path}: the model reads arrays of shape {self.shape}, which image files are not\n"
                f"  try: graphspec evaluate with its run, or onnxruntime with arrays of your own"
            )

    def outputs(self, pixels: Pixels) -> Array:
        """What the network gives, (N, classes), for pixels (N, H, W, C) or (N, T, C) in 0..255."""
        feed = {self.network.inputs[0].name: self._fed(pixels)}
        names = [output.name for output in self.network.session.get_outputs()]
        found: Array = self.network.run(feed)[names.index(self.metadata.outputs)]
        found = found.reshape(len(pixels), len(self.labels))
        if not np.isfinite(found).all():
            raise RunError(
                f"{self.path}: gives values that are no numbers\n  try: the float32 file, or train the network again"
            )
        return found

    def probabilities(self, outputs: Array) -> NDArray[np.float64]:
        """Of the classes, (N, classes), from `outputs`."""
        if self.metadata.outputs == "probabilities":
            return outputs.astype(np.float64)
        powers = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def _fed(self, pixels: Pixels) -> Array:
        kind = KINDS.get(self.network.inputs[0].type, "float32")
        if kind != "float32" or self.metadata.preprocessing.startswith(RAW):
            raw = as_raw(pixels, kind, self.metadata.input_range[-1])
            return raw if self.metadata.layout == "nhwc" else np.ascontiguousarray(np.moveaxis(raw, -1, 1))
        if pixels.dtype != np.uint8:
            return np.ascontiguousarray(np.moveaxis(self._normalised(pixels), -1, 1))
        planes = [values[pixels[..., channel]] for channel, values in enumerate(self._of_bytes.T)]
        return np.stack(planes, axis=1)

    @cached_property
    def _of_bytes(self) -> NDArray[np.float32]:
        """The normalised value of each of the 256, by channel: (256, C)."""
        return self._normalised(np.arange(256)[:, None])

    def _normalised(self, pixels: Array) -> NDArray[np.float32]:
        """As `runtime.data.augment.to_float` rounds: factor and summand once, then product and sum together."""
        mean, std = np.array(self.metadata.mean), np.array(self.metadata.std)
        scale, bias = (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)
        normalised: NDArray[np.float32] = (pixels * scale.astype(np.float64) + bias).astype(np.float32)
        return normalised


def open_model(target: RunDir | Path | None) -> tuple[ExportedModel, RunDir | None]:
    """The model of an ONNX file, or in the folder `export` of a run (None: the latest), and the run.

    RunError if there is none.
    """
    if isinstance(target, Path) and (target.suffix == ".onnx" or (target.is_file() and target.name != "latest")):
        return ExportedModel.open(target), None
    run = target if isinstance(target, RunDir) else RunDir.latest() if target is None else RunDir.open(target)
    if is_study(run):
        seeds = run.seed_runs()
        listed, first = ", ".join(map(str, seeds)), next(iter(seeds.values()))
        raise RunError(f"{run.path}: holds the runs of seed {listed}\n  try: one of them, such as {first.path}")
    path = run.export / MODEL
    if not path.exists():
        raise RunError(f"{run.path}: its network was not exported to {path}\n  try: graphspec export {run.path}")
    return ExportedModel.open(path), run


def filled(sizes: Sequence[Any], said: Sequence[int]) -> tuple[Any, ...]:
    """Sizes with what is `said` in the place of those that are left open, if it is as many."""
    if sum(not isinstance(size, int) for size in sizes) != len(said):
        return tuple(sizes)
    left = iter(said)
    return tuple(size if isinstance(size, int) else next(left) for size in sizes)


def said_size(properties: Mapping[str, str]) -> list[int]:
    """The metadata `size` of a file that anyone may have made; empty if it says none."""
    try:
        return TypeAdapter(list[int]).validate_json(properties.get("size", "[]"))
    except ValidationError:
        return []


def _metadata(path: Path, said: Mapping[str, str]) -> Metadata:
    missing = [name for name, field in Metadata.model_fields.items() if field.is_required() and name not in said]
    if missing:
        raise _foreign(path, f"its metadata lacks {', '.join(missing)}")
    try:
        metadata = Metadata.model_validate(said)
    except ValidationError as error:
        raise _foreign(path, f"its metadata is damaged: {first_of(error)}") from error
    if metadata.task != TASK:
        raise RunError(
            f"{path}: is a network for the task {metadata.task}, and only classes can be read here\n"
            f"  try: onnxruntime, as examples/use_onnx.py does"
        )
    return metadata


def _foreign(path: Path, reason: str) -> RunError:
    return RunError(
        f"{path}: is no model that graphspec can use: {reason}\n"
        f"  try: a file that graphspec export of this version has written"
    )
