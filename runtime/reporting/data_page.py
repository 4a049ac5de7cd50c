"""The page of `graphspec data`: what is in a set, and some images of every class. It needs nothing from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from runtime.data.health import Health, Item
from runtime.data.pictures import address
from runtime.reporting.templates import template

_EACH, _CLASSES, _GROUPS = 12, 100, 20  # images of a class or a group; classes and groups that are shown
_SIDE = 96  # pixels of the longer side of an image


def render(health: Health, augmented: Sequence[tuple[str, Sequence[Image.Image]]] = ()) -> str:
    """The page; `augmented`: paths of images with what augmentation makes of each."""
    sheets = [
        (title, [(one.path, address(health.picture(one.path), _SIDE)) for one in shown])
        for title, shown in _sheets(health)
    ]
    changed = [(path, [address(image, _SIDE) for image in images]) for path, images in augmented]
    return template("data_page.html.j2").render(health=health, sheets=sheets, changed=changed)


def _sheets(health: Health) -> Iterator[tuple[str, list[Item]]]:
    """Titles with images: some of every class, evenly over all of it; then near-duplicates."""
    by_class: dict[str, list[Item]] = {name: [] for name in health.classes[:_CLASSES]}
    for item in health.readable:
        by_class.get(item.label, []).append(item)
    for name, items in by_class.items():
        yield name, items[:: max(1, len(items) // _EACH)][:_EACH]
    for group in health.groups[:_GROUPS]:
        yield (
            f"Near-duplicates: {', '.join(dict.fromkeys(f'{one.part} {one.label}'.strip() for one in group))}",
            [*group[:_EACH]],
        )
