"""Reads the `network` section: block instances and stages, as a chain (a list) or wired freely (a map)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from compiler.errors import did_you_mean
from compiler.language.blocks import check_name
from compiler.language.reader import At, Reader, key_place
from compiler.language.spec import BlockSpec, NetworkEntry

ENTRY_KEYS = ("block", "repeat", "from")


def read_network(reader: Reader, at: At, blocks: Mapping[str, BlockSpec]) -> tuple[NetworkEntry, ...]:
    """The entries of the network; entries with a mistake are left out and count as broken."""
    is_chain = isinstance(at.tree.value, list)
    entries = _read_chain(reader, at, blocks) if is_chain else _read_map(reader, at, blocks)
    if not entries and not any(path[0] == "network" for path in reader.broken):
        reader.broken.add(at.path)
        if isinstance(at.tree.value, (dict, list)):
            reader.error(at.place, "the network is empty; list its blocks")
    return entries


# -- a chain --------------------------------------------------------------------------------------------------------


def _read_chain(reader: Reader, at: At, blocks: Mapping[str, BlockSpec]) -> tuple[NetworkEntry, ...]:
    """`[stem, {normal: 2}, head]`: an entry reads what the entries before it give, most recent first."""
    written = []
    for item in reader.items(at, "a list of blocks"):
        found = _read_chain_item(reader, item)
        if found is None:
            reader.broken.add(item.path)
        else:
            written.append((item, *found))
    uses = Counter(block for _, block, repeat in written if repeat is None)
    entries: dict[str, NetworkEntry] = {}
    singles: Counter[str] = Counter()
    stages = 0
    for item, block, repeat in written:
        if repeat is not None:
            name, stages = f"stage{stages}", stages + 1
        else:
            name = f"{block}{singles[block]}" if uses[block] > 1 else block
            singles[block] += 1
        if name in entries:
            reader.error(item.place, f"two entries of the network are called {name!r}; use the map form to name them")
            reader.broken.add(item.path)
            continue
        count = len(blocks[block].type.inputs) if block in blocks else 1
        entries[name] = NetworkEntry(name, block, repeat, _latest(list(entries), count), item.path)
    return tuple(entries.values())


def _latest(earlier: list[str], count: int) -> tuple[str, ...]:
    """The last `count` of `earlier`, most recent first; the first one again where there are fewer."""
    if not earlier:
        return ("in",) * count
    return tuple(earlier[max(len(earlier) - 1 - i, 0)] for i in range(count))


def _read_chain_item(reader: Reader, at: At) -> tuple[str, int | None] | None:
    """Block name and repeat of `name` or `{name: repeat}`."""
    value = at.tree.value
    if isinstance(value, str) and value:
        return value, None
    if not isinstance(value, dict) or len(value) != 1:
        expected = "a block's name, or {name: repeat}"
        reader.error(at.place, f"expected {expected}, found {at.tree}{_several(value)}")
        return None
    ((name, entry),) = reader.entries(at, "").items()
    repeat = reader.size(entry)
    return None if repeat is None else (name, repeat)


def _several(value: object) -> str:
    return f" with {len(value)} keys" if isinstance(value, dict) else ""


# -- a map ----------------------------------------------------------------------------------------------------------


def _read_map(reader: Reader, at: At, blocks: Mapping[str, BlockSpec]) -> tuple[NetworkEntry, ...]:
    """`{cells: {block: cell, repeat: 2, from: [stem, stem]}}`: entries with names and inputs of their own."""
    entries = []
    for entry in reader.entries(at, "a network: a list of blocks, or a map of entries").values():
        before = len(reader.problems)
        check_name(reader, entry, "an entry of the network")
        shared = blocks.get(entry.name)
        found = _read_entry(reader, entry)
        if shared is not None and shared.share == "block" and found is not None and found.block != shared.name:
            message = f"{entry.name!r} names the gates that all blocks {shared.name!r} share; choose another name"
            reader.error(key_place(entry), message)
        if found is not None and len(reader.problems) == before:
            entries.append(found)
        else:
            reader.broken.add(entry.path)
    return tuple(entries)


def _read_entry(reader: Reader, at: At) -> NetworkEntry | None:
    keys = reader.known_entries(at, "an entry: a map with block and from", ENTRY_KEYS)
    if not isinstance(at.tree.value, dict):
        return None
    for needed in ("block", "from"):
        if needed not in keys and not any(did_you_mean(name, (needed,)) for name in at.tree.value):
            reader.error(at.place, f"entry {at.name!r} needs {needed!r}")
    block = reader.text(keys["block"], "a block's name") if "block" in keys else None
    repeat = reader.size(keys["repeat"]) if "repeat" in keys else None
    if block is None or "from" not in keys:
        return None
    return NetworkEntry(at.name, block, repeat, _read_sources(reader, keys["from"]), at.path)


def _read_sources(reader: Reader, at: At) -> tuple[str, ...]:
    """Names of the entries whose values an entry reads."""
    if not isinstance(at.tree.value, list):
        found = reader.text(at, "the name of an entry, or a list of names")
        return () if found is None else (found,)
    names = [reader.text(item, "the name of an entry") for item in reader.items(at, "")]
    if not names:
        reader.error(key_place(at), "from is an empty list; an entry reads at least one value")
    return tuple(name for name in names if name is not None)
