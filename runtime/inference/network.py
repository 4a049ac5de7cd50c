"""An ONNX model in onnxruntime. It must not import torch."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from compiler.errors import RunError, advice_on

Array = NDArray[Any]
FATAL_ONLY = 4  # of onnxruntime's log levels: it raises what is an error


class OnnxNetwork:
    """An ONNX model with one input and one output, ready to run on `threads` threads (0: all cores)."""

    def __init__(self, path: Path, threads: int = 0, content: bytes | None = None, profile: Path | None = None) -> None:
        """RunError if onnxruntime refuses the file, or the model `content` that was made of it.

        With `profile`, onnxruntime's profile goes to a file whose name begins so, until `session.end_profiling()`.
        """
        options = onnxruntime.SessionOptions()
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        options.intra_op_num_threads = threads
        options.log_severity_level = FATAL_ONLY
        try:
            self.session = onnxruntime.InferenceSession(content or path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base class of their own
            advice = advice_on(errno.ENOMEM) if "allocate" in str(error) else ""
            raise RunError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {str(error).strip()}\n"
                f"  try: {advice or 'a lower export.opset, or a newer onnxruntime'}"
            ) from error
        self.path = path

    @property
    def inputs(self) -> list[Any]:
        """What the model reads; RunError if that is nothing."""
        if not (inputs := self.session.get_inputs()):
            raise RunError(f"{self.path}: the model reads nothing\n  try: a model that takes images")
        return inputs  # type: ignore[no-any-return]

    def __call__(self, image: Array) -> Array:
        """Outputs (N, classes) of images in the model's own type and layout."""
        outputs: Array = self.run({self.inputs[0].name: image})[0]
        return outputs

    def run(self, feed: Mapping[str, Array]) -> list[Any]:
        """All outputs for these inputs by name; RunError if onnxruntime cannot compute them."""
        try:
            outputs: list[Any] = self.session.run(None, feed)
        except Exception as error:  # its exceptions have no base class of their own
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
            raise RunError(
                f"{self.path}: onnxruntime cannot run it on {shapes}: {str(error).strip()}\n"
                f"  try: another --batch; a number of images may be fixed inside the model"
            ) from error
        return outputs
