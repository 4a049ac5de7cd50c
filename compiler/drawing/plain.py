"""The style of figures as attributes with literal colours, for viewers that know no style sheets, or no variables.

It knows the rules that figure.css has: elements and classes, one inside the other.
"""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from xml.etree import ElementTree

Names = tuple[str, frozenset[str]]  # an element, or any if empty, and classes
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
        for selector in where.split(","):
            names = [part.split(".") for part in selector.split()]
            found.append((tuple((name, frozenset(classes)) for name, *classes in names), says))
    found = [rule for rule in found if ":" not in str(rule[0])]
    return sorted(found, key=lambda rule: (sum(len(n[1]) for n in rule[0]), sum(bool(n[0]) for n in rule[0])))


def _dress(element: ElementTree.Element, above: tuple[Names, ...]) -> None:
    path = (*above, (element.tag, frozenset(element.get("class", "").split())))
    for (*outer, last), says in _rules():
        names = iter(above)
        if _is(last, path[-1]) and all(any(_is(each, name) for name in names) for each in outer):
            element.attrib.update(says)
    for child in element:
        _dress(child, path)


def _is(wanted: Names, found: Names) -> bool:
    return wanted[0] in ("", found[0]) and wanted[1] <= found[1]
