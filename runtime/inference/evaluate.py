"""How often an exported model is right, how sure it may be, and what it gets wrong. It must not import torch."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compiler.errors import RunError
from runtime.data.pixels import MODES, read_image
from runtime.inference.figures import Figures
from runtime.inference.images import listed
from runtime.inference.labelled import Labelled, in_folder, own_test_images
from runtime.inference.model import BATCH, ExportedModel, open_model
from runtime.rundir.directory import RunDir
from runtime.rundir.files import write_json
from runtime.rundir.study import rendered

EVALUATION = "evaluation.json"  # in the folder `export` of a run
MISTAKES = 24  # that are kept, with pictures
_PICTURE, _EXACT = 128, 64  # longest side, in pixels, of pictures; those that are smaller are kept to the bit
_CLASSES, _CONFUSED, _WORST = 20, 5, 3  # lines for people: classes, the most frequent mistakes, the most confident ones


@dataclass(frozen=True)
class Mistake:
    """An image of which the model says what it is not."""

    image: str
    truth: str
    answer: str
    confidence: float  # the probability of the answer
    picture: str  # `data:image/...`, small; empty where it is no image


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a set of images."""

    model: str
    data: str
    figures: Figures
    mistakes: tuple[Mistake, ...]  # the most confident first
    unreadable: dict[str, str]  # files left out, with the reasons

    def as_json(self, *, pictures: bool = True) -> dict[str, Any]:
        """The figures by name, for programs; `RUN/export/evaluation.json` has them with the pictures."""
        mistakes = [{k: v for k, v in asdict(each).items() if pictures or k != "picture"} for each in self.mistakes]
        figures = asdict(self.figures)
        return {"model": self.model, "data": self.data, **figures, "mistakes": mistakes, "unreadable": self.unreadable}

    def render(self) -> str:
        """Lines for people."""
        figures, low, high = self.figures, *self.figures.interval
        found = figures.calibration
        return "\n".join([
            f"{figures.accuracy:.2%} of {figures.images:,} images are right (95% interval: {low:.2%} to {high:.2%})",
            f"balanced accuracy {figures.balanced_accuracy:.2%}; mean confidence {found.confidence:.2%}, "
            f"expected calibration error {found.error:.2%}",
            "",
            *self._classes(),
            *self._wrong(),
        ])  # fmt: skip

    def _classes(self) -> Iterator[str]:
        """A line a class; of many, those that are found least."""
        classes = [each for each in self.figures.classes if each.images or each.answers]
        if len(classes) > _CLASSES:
            yield f"of {len(classes)} classes, the {_CLASSES} with the lowest recall:"
            classes = sorted(classes, key=lambda each: each.recall or 0.0)[:_CLASSES]
        rows = [(c.label, f"{c.images:,}", _share(c.precision), _share(c.recall)) for c in classes]
        yield rendered([("class", "images", "precision", "recall"), *rows], numbers=True)

    def _wrong(self) -> Iterator[str]:
        confused = [f"{truth} called {answer} {count}" for count, truth, answer in self.figures.confused()]
        if confused:
            yield f"\nmost frequent mistakes: {', '.join(confused[:_CONFUSED])}"
            yield "most confident mistakes:"
        for each in self.mistakes[:_WORST]:
            yield f"  {each.image}: {each.answer} ({each.confidence:.2%}), is {each.truth}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def evaluate(
    model: ExportedModel, data: Labelled, *, batch: int = BATCH, advance: Callable[[int], object] = lambda images: None
) -> Evaluation:
    """Run the model on all images; `advance` is told of so many more. RunError if none can be read."""
    rows, answers, confidences = list[int](), list[int](), list[float]()
    unreadable: dict[str, str] = {}
    for part in data.batches(model, batch):
        unreadable |= {data.names[row]: why for row, why in part.failed.items()}
        if len(part.rows):
            outputs = model.outputs(part.pixels)
            best = outputs.argmax(axis=1)
            rows += part.rows
            answers += best.tolist()
            confidences += model.probabilities(outputs)[np.arange(len(best)), best].tolist()
        advance(len(part.rows) + len(part.failed))
    if not rows:
        raise RunError(f"none of {len(data.names)} images can be read: {listed(unreadable)}\n  try: mend them")
    figures = Figures.of(data.truths[rows], np.array(answers), np.array(confidences), model.labels)
    mistakes = _mistakes(model, data, rows, answers, confidences)
    return Evaluation(str(model.path), data.says, figures, mistakes, unreadable)


def _mistakes(
    model: ExportedModel, data: Labelled, rows: list[int], answers: list[int], confidences: list[float]
) -> tuple[Mistake, ...]:
    found = zip(rows, answers, confidences, strict=True)
    wrong = [(row, answer, confidence) for row, answer, confidence in found if data.truths[row] != answer]
    worst = sorted(wrong, key=lambda item: -item[2])[:MISTAKES]
    labels = model.labels
    return tuple(
        Mistake(data.names[row], labels[data.truths[row]], labels[answer], confidence, _picture(model, data, row))
        for row, answer, confidence in worst
    )


def _picture(model: ExportedModel, data: Labelled, row: int) -> str:
    """A small picture of an image, the whole of it, for a page."""
    channels, *sizes = model.shape
    if len(sizes) != 2 or channels not in MODES:
        return ""
    if data.pixels is None:
        image = read_image(data.names[row], channels, model.reading)[0]
    else:
        values = data.pixels[row].round().astype(np.uint8)
        image = Image.fromarray(values if channels > 1 else values[..., 0])
    image = image.convert(MODES[channels])
    image.thumbnail((_PICTURE, _PICTURE))
    form, file = "png" if max(image.size) <= _EXACT else "jpeg", BytesIO()
    image.save(file, form)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"


def run_evaluate(
    target: RunDir | Path | None,
    data: Path | None = None,
    *,
    trust_code: bool = False,
    batch: int = BATCH,
    warn: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int], Any] = lambda name, total: nullcontext(lambda images: None),
) -> Evaluation:
    """Evaluate an ONNX file or the model of a run on a folder of class folders, or a run's on its own test images.

    The latter is written into the run, for its report. RunError if there is no such model or data.
    """
    model, run = open_model(target)
    if run is None and data is None:
        raise RunError(
            f"{model.path}: a file alone does not say what to evaluate it on\n"
            f"  try: graphspec evaluate {model.path} FOLDER (a folder of images for each class), or the run it is of"
        )
    own = run if data is None else None
    with own.locked() if own else nullcontext():
        images = (
            own_test_images(own, model, trust_code=trust_code) if own else in_folder(Path(data or "."), model.labels)
        )
        with progress("images", len(images.names)) as advance:
            found = evaluate(model, images, batch=batch, advance=advance)
        _warn(images, found, warn)
        if own:
            write_json(own.export / EVALUATION, found.as_json())
    return found


def _warn(images: Labelled, found: Evaluation, warn: Callable[[str], None]) -> None:
    left_out, count = len(found.unreadable), len(images.names)
    if left_out:
        warn(f"{left_out} of {count} images cannot be read and are left out: {listed(found.unreadable)}")
    if images.expected is not None and images.expected not in (count, count - left_out):
        warn(f"the training had {images.expected} test images, now there are {count}")
