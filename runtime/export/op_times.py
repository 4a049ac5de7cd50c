"""Where the time of an ONNX model goes, by node and by block of the graph: onnxruntime's own profile.

onnxruntime runs fewer and other nodes than the file has: it folds, fuses, and puts values into the order that its
kernels like. A node of the profile is called like a node of the file that it stands for, or like the value it makes.
"""

from __future__ import annotations

import json
import re
import signal
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.export.bench import OnnxFile, apart, subjects_of
from runtime.inference.network import OnnxNetwork
from runtime.rundir.files import MOST_TENSORS, read_bytes
from runtime.rundir.study import rendered
from runtime.strategies.latency import WARM_UP, seconds_of_runs

KERNEL = "_kernel_time"  # how the events of nodes end
ADDED = re.compile(r"(_nchwc|_bn|_fused)+$")  # what onnxruntime adds to a node's name
OF_RUNTIME = "(onnxruntime's own)"  # the block of nodes that the file has not
SHOWN = 30  # nodes in the table; `--json` has all


@dataclass(frozen=True)
class OpTime:
    """One node of the model as onnxruntime runs it."""

    node: str
    op: str
    block: str
    ms: float  # a run
    share: float  # of the time of all nodes


@dataclass(frozen=True)
class OpTimes:
    """The nodes of a model, the slowest first; profiling itself takes about a microsecond a node."""

    model: str
    threads: int
    batch: int
    nodes: tuple[OpTime, ...]

    def shares(self, key: str) -> dict[str, tuple[int, float, float]]:
        """Nodes, milliseconds and share of each value of `block` or `op`, the largest first."""
        found: dict[str, list[OpTime]] = defaultdict(list)
        for node in self.nodes:
            found[getattr(node, key)].append(node)
        sums = {name: (len(own), sum(n.ms for n in own), sum(n.share for n in own)) for name, own in found.items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1][1]))

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        sums = {
            f"{key}s": [
                {key: name, "nodes": count, "ms": ms, "share": share}
                for name, (count, ms, share) in self.shares(key).items()
            ]
            for key in ("block", "op")
        }
        own = {"model": self.model, "threads": self.threads, "batch": self.batch}
        return {**own, **sums, "nodes": [asdict(node) for node in self.nodes]}

    def render(self) -> str:
        """Tables for people."""
        total = sum(node.ms for node in self.nodes)
        tables = [
            f"{self.model}: {total:.3f} ms in {len(self.nodes)} nodes, batch {self.batch}, threads {self.threads}"
        ]
        for key in ("block", "op"):
            rows = [(n, str(count), f"{ms:.4f}", f"{s:.1%}") for n, (count, ms, s) in self.shares(key).items()]
            tables.append(rendered([(key, "nodes", "ms", "share"), *rows], numbers=True))
        slowest = [(f"{n.node} ({n.op})", f"{n.ms:.4f}", f"{n.share:.1%}") for n in self.nodes[:SHOWN]]
        tables.append(rendered([("node", "ms", "share"), *slowest], numbers=True))
        left = len(self.nodes) - len(slowest)
        return "\n\n".join(tables) + (f"\n... and {left} more nodes: --json has them" if left else "")


def run_op_times(target: Path | None = None, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> OpTimes:
    """The float32 model of a run (default: the latest) or a model file, run for about so many seconds.

    RunError as for a bench.
    """
    name, subjects = subjects_of(target)
    file = next(subject for subject in subjects if isinstance(subject, OnnxFile))
    proto = file.proto()
    names = {value: node.name for node in proto.graph.node for value in (*node.output, node.name) if node.name}
    said = {item.key: item.value for item in proto.metadata_props}
    blocks = _blocks(said.get("blocks", "[]"))
    means = apart(mean_times, file, threads, batch, seconds)
    total = sum(means.values()) or 1.0
    nodes = [
        OpTime(names.get(node, node), op, _block(names[node], blocks) if node in names else OF_RUNTIME, ms, ms / total)
        for (node, op), ms in means.items()
    ]
    return OpTimes(name, threads, batch, tuple(sorted(nodes, key=lambda node: -node.ms)))


def mean_times(
    file: OnnxFile, threads: int, batch: int, seconds: float, limit: float = 0
) -> dict[tuple[str, str], float]:
    """Milliseconds a run by node and op; for a process of its own, which ends after `limit` seconds (0: none).

    The mean of the middle half of the runs: onnxruntime counts whole microseconds.
    """
    signal.setitimer(signal.ITIMER_REAL, limit)  # SIGALRM ends it, wherever onnxruntime may be
    with tempfile.TemporaryDirectory(prefix="graphspec-ops-") as folder:
        network = OnnxNetwork(file.path, threads, profile=Path(folder) / "profile")
        feed = file.feed(network, batch)
        seconds_of_runs(lambda: network.run(feed), seconds)
        events = json.loads(read_bytes(Path(network.session.end_profiling()), MOST_TENSORS))
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            node = ADDED.sub("", event["name"].removesuffix(KERNEL))
            found[node, event["args"]["op_name"]].append(event["dur"])
    return {key: _middle(times[WARM_UP:] or times) / 1000 for key, times in found.items()}


def _middle(times: Sequence[int]) -> float:
    ordered = sorted(times)
    quarter = len(ordered) // 4
    return float(np.mean(ordered[quarter : len(ordered) - quarter]))


def _blocks(said: str) -> tuple[str, ...]:
    """What the file says are the blocks of its graph; none if it says nothing that can be read."""
    try:
        found = json.loads(said)
    except ValueError:
        return ()
    return tuple(each for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def _block(node: str, blocks: Iterable[str]) -> str:
    """The innermost block that the node stands in; in other files, the first part of its name."""
    inside = [block for block in blocks if node.startswith(f"{block}.")]
    return max(inside, key=len, default=re.split(r"[./]", node.strip("/"))[0])
