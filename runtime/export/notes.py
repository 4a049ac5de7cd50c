"""What an exported file needs to be used, as text beside it: class names, and how an image becomes its input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.errors import one_line
from runtime.data.pixels import MODES, Reading
from runtime.export.parity import ImageForm

LABELS, README = "labels.txt", "README.md"  # beside the model; behind `NAME.` where `-o NAME.onnx` says where that is


def label_lines(labels: Sequence[str]) -> str:
    """A line for each output; line ends in a name are written as Python escapes them."""
    return "".join(f"{one_line(label)}\n" for label in labels)


@dataclass(frozen=True)
class Note:
    """What there is to say of the input and output of one exported network."""

    shape: tuple[int, ...]  # (C, H, W), or (C, T) of signals
    form: ImageForm
    reading: Reading
    output: str
    any_size: bool = False  # whether the model scales images itself

    def text(self, name: str) -> str:
        """The note on a model of this name."""
        last = self.form.layout == "nhwc"
        pixels = ["height", "width"] if self.any_size else self.shape[1:]
        sizes = ", ".join(map(str, [*pixels, self.shape[0]] if last else [self.shape[0], *pixels]))
        kind = self.form.input_kind
        steps = "\n".join(f"{number}. {step}" for number, step in enumerate(self._steps(), start=1))
        return (
            f"# {name}\n\nAn ONNX model, exported by graphspec. Input: {kind} `[N, {sizes}]`; output: `{self.output}`, "
            f"in the order of the labels beside it.\n\nThe input is made of an image so (the file's metadata says the "
            f"same, and `graphspec predict` does it):\n\n{steps}\n"
        )

    def _steps(self) -> Iterator[str]:
        if len(self.shape) == 3:
            channels, height, width = self.shape
            margin = f" times {self.reading.margin:.4g}" if self.reading.margin != 1.0 else ""
            ground = ", ".join(map(str, self.reading.background))
            white = "the largest of the file's type" if self.reading.range is None else f"{self.reading.range:g}"
            yield "Turn it upright, as its EXIF orientation says."
            flat = (
                f"Put what is transparent on the background ({ground}); make it {'grey' if channels == 1 else 'RGB'}."
            )
            yield flat if channels in MODES else f"Take its {channels} channels or pages, each as a grey image."
            if self.form.layout == "none" or self.form.kind == "uint8":
                yield f"Scale values of more than 8 bits so that {white} becomes 255."
            size = f"{height} x {width} (height x width)"
            steps = {
                "crop": f"Scale it until it just covers {size}{margin}, and crop {height} x {width} in the middle",
                "squash": f"Scale it to {size}, out of shape",
                "letterbox": f"Scale it until it just fits into {size}, in the middle of the background",
            }
            if not self.any_size:
                yield f"{steps[self.reading.resize]}: bicubic, antialiased."
        if self.form.layout != "none":
            whole = "the whole image: the model scales and normalises it. The images of a batch need one size."
            rest = whole if self.any_size else "as they are: the model normalises them."
            yield f"Give the numbers, 0 to {self.form.white:g}, {rest}"
            return
        normalise = self.form.normalise
        mean, std = (", ".join(f"{value:.9g}" for value in found) for found in (normalise.mean, normalise.std))
        yield f"(pixels / 255 - mean) / std, for each channel: mean {mean}; std {std}."
