"""The style of figures as attributes with literal colours, for viewers that know no style sheets, or no variables.

It knows the rules that figure.css has: elements and classes, one inside the other.
"""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from xml.etree import ElementTree

Names = frozenset[str]  # of an element and of its classes, these with a dot before them
_RULE = re.compile(r"([^{}]+){([^}]+)}")


def asset(name: str) -> str:
    """A style or script of this folder."""
    return (files("compiler.drawing") / name).read_text(encoding="utf-8")


def dressed(svg: str) -> str:
    """An element and all inside of it, each with what figure.css says of it as attributes."""
    root = ElementTree.fromstring(svg)
    _dress(root, ())
    return ElementTree.tostring(root, encoding="unicode")


def dark_style() -> str:
    """A style sheet on top of the attributes: dark colours where they are preferred, more ink under a pointer."""
    hover = "".join(f"{where}{{{what}}}" for where, what in _RULE.findall(asset("figure.css")) if ":hover" in where)
    return f"{hover}\n@media screen and (prefers-color-scheme: dark) {{\n{_literal(dark=True)}}}\n"


def _literal(dark: bool) -> str:
    """figure.css with one of the two palettes."""
    palette = dict(re.findall(r"--(\w+): (#\w+)", asset("palette.css").split("@media")[dark]))
    return re.sub(r"var\(--(\w+)\)", lambda name: palette[name[1]], asset("figure.css"))


@functools.cache
def _rules() -> list[tuple[tuple[Names, ...], dict[str, str]]]:
    """Where each rule applies and what it says, the more special ones last."""
    found = []
    for where, what in _RULE.findall(_literal(dark=False)):
        says = {name: value.strip() for name, value in re.findall(r"([a-z-]+):([^;]+)", what)}
        for selector in (selector for selector in where.split(",") if ":" not in selector):
            found.append((tuple(frozenset(re.findall(r"\.?[\w-]+", part)) for part in selector.split()), says))
    return sorted(
        found, key=lambda rule: (sum(n[0] == "." for names in rule[0] for n in names), sum(map(len, rule[0])))
    )


def _dress(element: ElementTree.Element, above: tuple[Names, ...]) -> None:
    path = (*above, frozenset([element.tag, *(f".{name}" for name in element.get("class", "").split())]))
    for (*outer, last), says in _rules():
        names = iter(above)
        if last <= path[-1] and all(any(each <= name for name in names) for each in outer):
            element.attrib.update(says)
    for child in element:
        _dress(child, path)
