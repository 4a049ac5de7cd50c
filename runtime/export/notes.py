"""What an exported file needs to be used, as text beside it: class names, and how an image becomes its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.data.pixels import Reading
from runtime.export.parity import ImageForm
from runtime.inference.model import TASK

LABELS, README = "labels.txt", "README.md"  # beside the model; behind `NAME.` where `-o NAME.onnx` says where that is


@dataclass(frozen=True)
class Note:
    """What there is to say of one exported network."""

    shape: tuple[int, ...]  # (C, H, W), or (C, T) of signals
    form: ImageForm
    reading: Reading
    output: str
    labels: Sequence[str]
    task: str

    def label_lines(self) -> str:
        """A line for each output; line ends in a name are written as Python escapes them."""
        return "".join(label.replace("\n", "\\n").replace("\r", "\\r") + "\n" for label in self.labels)

    def text(self, name: str, labels: str) -> str:
        """The note on a model of this name, whose class names lie in the file `labels`."""
        channels, *sizes = self.shape
        last = self.form.layout == "nhwc"
        given = ", ".join(map(str, ["N", *sizes, channels] if last else ["N", *self.shape]))
        kind = "float32" if self.form.layout == "none" else "uint8"
        steps = [*(self._image_steps() if len(sizes) == 2 else ()), *self._value_steps()]
        numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))
        count = f"{len(self.labels)} classes, in the order of `{labels}`" if self.labels else "no classes"
        return (
            f"# {name}\n\nAn ONNX model, exported by graphspec.\n\n"
            f"- Input: `[{given}]` {kind}, N at a time.\n"
            f"- Output: `{self.output}`, {count}.\n\n"
            f"How an image becomes the input (the metadata of the file says the same):\n\n{numbered}\n\n"
            + f"`graphspec predict {name} IMAGES` does all of it.\n"
            * (self.task == TASK and len(sizes) == 2)
        )

    def _image_steps(self) -> list[str]:
        channels, height, width = self.shape
        margin = f" times {self.reading.margin:.4g}" if self.reading.margin != 1.0 else ""
        colours = "grey" if channels == 1 else "RGB"
        ground = ", ".join(map(str, self.reading.background))
        white = "the largest of the file's type" if self.reading.range is None else f"{self.reading.range:g}"
        return [
            "Turn it upright, as its EXIF orientation says.",
            f"Put transparent images on the background ({ground}); make it {colours}.",
            f"Of more than 8 bits, scale values so that {white} becomes 255.",
            f"Scale it until it just covers {height} x {width} (height x width){margin}, and crop that in the middle "
            f"(bicubic, antialiased).",
        ]

    def _value_steps(self) -> list[str]:
        if self.form.layout != "none":
            return ["Give the bytes, 0 to 255, as they are: the model normalises them."]
        mean, std = (
            ", ".join(f"{value:.9g}" for value in found)
            for found in (self.form.normalise.mean, self.form.normalise.std)
        )
        return [f"(pixels / 255 - mean) / std, for each channel: mean {mean}; std {std}."]
