"""Classify images with an exported model, without torch.

    pip install onnxruntime numpy pillow
    python examples/use_onnx.py MODEL.onnx IMAGE [IMAGE ...]

Images are read as in training, by graphspec's own reader, which needs numpy and Pillow only. Where graphspec is not
installed, copy runtime/data/pixels.py beside this file and import it as `pixels`.

Works for a model exported with its preprocessing (`export.with_preprocessing`, raw bytes go in) and for one without
(mean and standard deviation are then read from the model's metadata).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from runtime.data.pixels import Reading, read_pixels


def batch(session: onnxruntime.InferenceSession, paths: list[Path]) -> Any:
    """The images as the model takes them."""
    metadata = session.get_modelmeta().custom_metadata_map
    image = session.get_inputs()[0]
    raw, sizes = image.type == "tensor(uint8)", list(image.shape[1:])
    last = metadata.get("layout") == "nhwc"
    channels, height, width = (sizes[2], *sizes[:2]) if last else sizes
    reading = Reading(**json.loads(metadata.get("reading", "{}")))
    images = np.stack([read_pixels(path, (channels, height, width), reading)[0] for path in paths])
    if raw:
        images = images.round().astype(np.uint8)
        return images if last else images.transpose(0, 3, 1, 2)
    mean, std = (np.array(json.loads(metadata[key]), np.float32) for key in ("mean", "std"))
    return ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)


def main(model: Path, paths: list[Path]) -> None:
    """Print the best class of each image."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(batch(session, paths))})
    for path, row in zip(paths, scores, strict=True):
        print(f"{path}: {labels[int(row.argmax())]} ({float(row.max()):.3f})")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
