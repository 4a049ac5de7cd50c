"""Search, retrain and export a network for images in folders.

    python examples/own_images.py FOLDER [KEY=VALUE ...]

FOLDER holds one folder of images per class, or train/ and test/ (or val/) with such folders. Where FOLDER does not
exist, a small set of drawn shapes is put there first, so that there is something to try. The settings are those of
specs/own_images.yaml; `KEY=VALUE` changes one, as `--set` does on the command line.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

import graphspec

SPEC = Path(__file__).parent.parent / "specs" / "own_images.yaml"
SHAPES = ("ellipse", "rectangle", "triangle")


def draw_shapes(folder: Path, training: int = 120, test: int = 30, size: int = 48, seed: int = 0) -> None:
    """Write images of three kinds of shapes, so many of each kind."""
    rng = random.Random(seed)
    for part, count in (("train", training), ("test", test)):
        for shape in SHAPES:
            (folder / part / shape).mkdir(parents=True)
            for number in range(count):
                draw_shape(shape, size, rng).save(folder / part / shape / f"{number:04d}.png")


def draw_shape(shape: str, size: int, rng: random.Random) -> Image.Image:
    """One filled shape of random place, size and bright colour on a dark ground.

    Of colours that are any at all, a network learns a few hundred by heart before it learns shapes.
    """
    ground, colour = (tuple(first + rng.randrange(96) for _ in range(3)) for first in (0, 160))
    image = Image.new("RGB", (size, size), ground)
    left, top = rng.randrange(size // 3), rng.randrange(size // 3)
    right, bottom = left + rng.randrange(size // 3, size // 2), top + rng.randrange(size // 3, size // 2)
    pen = ImageDraw.Draw(image)
    if shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=colour)
    else:
        getattr(pen, shape)([left, top, right, bottom], fill=colour)
    return image


def main(folder: Path, settings: list[str]) -> None:
    """The four steps; each one's result is typed and can be looked into."""
    if not folder.exists():
        draw_shapes(folder)
    compiled = graphspec.compile(SPEC, overrides=[f"data.root={folder.resolve()}", *settings])
    print(compiled.costs.render())
    found = graphspec.search(compiled.run)
    print(f"kept {found.found.flops:,} of {found.full.flops:,} multiply-adds")
    trained = graphspec.retrain(compiled.run)
    print(f"test accuracy {trained.accuracy:.1%} with {trained.found.params:,} parameters")
    exported = graphspec.export(compiled.run)
    print(f"wrote {exported.path}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
