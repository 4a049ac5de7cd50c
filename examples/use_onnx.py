"""Classify images with an exported model, without torch.

    pip install onnxruntime numpy pillow
    python examples/use_onnx.py MODEL.onnx IMAGE [IMAGE ...]

Images are read as in training, by graphspec's own reader, which needs numpy and Pillow only. Where graphspec is not
installed, copy runtime/data/pixels.py beside this file and import it as `pixels`.

Works for a model exported with its preprocessing (`export.with_preprocessing`, raw numbers go in) and for one without
(mean and standard deviation are then read from the model's metadata).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from runtime.data.pixels import Reading, UnreadableError, as_raw, read_pixels


def batch(session: onnxruntime.InferenceSession, paths: list[Path]) -> Any:
    """The images as the model takes them; SystemExit with a message if it takes none, or one cannot be read."""
    metadata = session.get_modelmeta().custom_metadata_map
    image = session.get_inputs()[0]
    raw, sizes = metadata.get("preprocessing", "").startswith("raw"), list(image.shape[1:])
    if len(sizes) != 3:
        sys.exit(f"the model takes signals {sizes}, and this example reads images: give the model arrays of yours")
    last = metadata.get("layout") == "nhwc"
    channels, height, width = (sizes[2], *sizes[:2]) if last else sizes
    if isinstance(height, str):  # it takes images of any size; read as training did, they make one batch
        height, width = json.loads(metadata["size"])
    reading = Reading(**json.loads(metadata.get("reading", "{}")))
    images = np.stack([pixels(path, (channels, height, width), reading) for path in paths])
    if raw:
        kind = {"tensor(uint8)": "uint8", "tensor(uint16)": "uint16"}.get(image.type, "float32")
        images = as_raw(images, kind, json.loads(metadata["input_range"])[1])
        return images if last else images.transpose(0, 3, 1, 2)
    mean, std = (np.array(json.loads(metadata[key]), np.float32) for key in ("mean", "std"))
    return ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)


def pixels(path: Path, shape: tuple[int, ...], reading: Reading) -> Any:
    """An image (H, W, C) as the model of input `shape` (C, H, W) sees it; SystemExit if it cannot be read."""
    try:
        return read_pixels(path, shape, reading)[0]
    except UnreadableError as error:
        sys.exit(f"{path}: cannot be read: {error}")


def main(model: Path, paths: list[Path]) -> None:
    """Print the best class of each image."""
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    except Exception as error:  # onnxruntime has many kinds
        sys.exit(f"{model}: is no ONNX file that graphspec has exported ({error})")
    (scores,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(batch(session, paths))})
    for path, row in zip(paths, scores, strict=True):
        print(f"{path}: {labels[int(row.argmax())]} ({float(row.max()):.3f})")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
