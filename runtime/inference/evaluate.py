"""How often an exported model is right, how sure it may be, and what it gets wrong. It must not import torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import RunError, printable
from runtime.data.archives import source
from runtime.data.pictures import address, first_channels, read_picture
from runtime.inference import usual_batch
from runtime.inference.figures import EVALUATION, Evaluation, Mistake, figures_of
from runtime.inference.images import listed
from runtime.inference.labelled import Labelled, given_images, own_test_images
from runtime.inference.model import ExportedModel, open_model
from runtime.rundir.directory import RunDir
from runtime.rundir.files import write_json

MISTAKES = 24  # that are kept, with pictures
_PICTURE, _EXACT = 128, 64  # longest side, in pixels, of pictures; those that are smaller are kept to the bit


def evaluate(
    model: ExportedModel,
    data: Labelled,
    *,
    batch: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> Evaluation:
    """Run the model on all images; `advance` is told of so many more. RunError if none can be read."""
    found: list[tuple[int, int, float]] = []  # row, answer, confidence
    unreadable: dict[str, str] = {}
    for part in data.batches(model, batch or usual_batch(model.shape[1:])):
        unreadable |= {printable(data.names[row]): printable(why) for row, why in part.failed.items()}
        outputs = model.outputs(part.pixels)
        answers, probabilities = outputs.argmax(axis=1), model.probabilities(outputs)
        confidences = probabilities[np.arange(len(answers)), answers]
        found += zip(part.rows, answers.tolist(), confidences.tolist(), strict=True)
        advance(len(part.rows) + len(part.failed))
    if not found:
        raise RunError(f"none of {len(data.names)} images can be read: {listed(unreadable)}\n  try: mend them")
    rows, said, sure = (np.array(column) for column in zip(*found, strict=True))
    figures = figures_of(data.truths[rows], said, sure, model.labels)
    wrong = sorted((each for each in found if data.truths[each[0]] != each[1]), key=lambda each: -each[2])
    mistakes = tuple(_mistake(model, data, *each) for each in wrong[:MISTAKES])
    path, says = printable(str(model.path)), printable(data.says)
    return Evaluation(**vars(figures), model=path, data=says, mistakes=mistakes, unreadable=unreadable)


def _mistake(model: ExportedModel, data: Labelled, row: int, answer: int, confidence: float) -> Mistake:
    truth, said = model.labels[data.truths[row]], model.labels[answer]
    return Mistake(printable(data.names[row]), truth, said, confidence, _picture(model, data, row))


def _picture(model: ExportedModel, data: Labelled, row: int) -> str:
    """A small picture of an image, the whole of it, for a page."""
    channels, *sizes = model.shape
    if len(sizes) != 2:
        return ""
    if data.pixels is None:
        image = read_picture(source(data.names[row]), model.reading)
    else:
        image = first_channels(data.pixels[row].round().astype(np.uint8), model.reading)[0]
    return address(image.convert("L" if channels == 1 else "RGB"), _PICTURE, _EXACT)


def run_evaluate(
    target: RunDir | Path | None,
    data: Path | None = None,
    *,
    trust_code: bool = False,
    batch: int | None = None,
    warn: Callable[[str], None] = lambda text: None,
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int], Any] = lambda name, total: nullcontext(lambda images: None),
) -> Evaluation:
    """Evaluate an ONNX file or the model of a run on a folder of class folders, an archive of them, a table or arrays,
    or a run's on its own test images.

    The latter is written into the run, for its report. RunError if there is no such model or data.
    """
    model, run = open_model(target)
    if data is not None:
        images = given_images(data, model, run)
    elif run is not None:
        images = own_test_images(run, model, tell, trust_code=trust_code)
    else:
        raise RunError(
            f"{model.path}: a file alone does not say what to evaluate it on\n"
            f"  try: graphspec evaluate {model.path} FOLDER (a folder of images for each class), or its run"
        )
    own = run if data is None else None
    with own.locked() if own else nullcontext(), progress("images", len(images.names)) as advance:
        found = evaluate(model, images, batch=batch, advance=advance)
        if own:
            write_json(own.export / EVALUATION, asdict(found))
    if images.passed:
        warn(images.passed)
    left_out, count = len(found.unreadable), len(images.names)
    if left_out:
        warn(f"{left_out} of {count} images cannot be read and are left out: {listed(found.unreadable)}")
    if images.expected is not None and images.expected not in (count, count - left_out):
        warn(f"the training had {images.expected} test images, now there are {count}")
    return found
