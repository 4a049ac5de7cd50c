"""Our ONNX files beside torch.onnx.export's: latency in onnxruntime, nodes, bytes, export time, torch eager.

    python -m benchmarks.export [--json] [--sessions N] [NETWORK ...]

Both files hold the same network with the same weights, and run in sessions with default optimisation, in turns, for
one and two threads. For each pass that only makes networks faster stands what it gains: the file with all passes by
one without it. One thread is measured in its CPU time, which work of others on the machine hardly changes. A session's
speed depends on where its memory happens to lie, so there are many of each: a ratio of latencies is the median over
pairs of sessions, each pair's the median over its rounds; beside it stands where the true median lies with 95 %
confidence. Before every turn there is a pause: for a while after a run, a session's threads wait in a loop, which takes
cores from the other. Needs the `bench` extra. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks.common import Bar, parser, shipped, show, table
from compiler.analysis.costs import total_cost
from compiler.elaborate.builder import load
from compiler.errors import PassError
from compiler.ir.graph import INPUT, Graph, Model
from compiler.lowering.onnx.model import check, emit
from compiler.lowering.torch.fx import load_weights, lower, weights_of
from compiler.lowering.torch.modules import Conv
from compiler.passes.merge_branches import MergeBranches
from compiler.passes.pad_channels import PadChannels
from compiler.passes.pipeline import TO_COMPACT, TO_EXPORT, Pipeline, compacted
from compiler.passes.prune_zero_edges import prune
from compiler.passes.split_projections import SplitProjections
from compiler.passes.stack_chains import StackChains
from compiler.passes.ungroup import Ungroup

NETWORKS = {  # name -> spec and parameters to prune to; then as wide as the spec's budget allows
    "digits": ("digits", 34_000),
    "own_images": ("own_images", 21_000),
    "photos": ("photos", 54_000),
    "cifar10_small": ("cifar10_small", 98_000),
    "channels": ("channels", 102_000),
    "hand_wired": ("hand_wired", 7_000),
    "darts_cell": ("darts_cell", 750_000),
    "dso_nas_cifar10_small": ("dso_nas_cifar10_small", 190_000),
    "dso_nas_24_blocks": ("dso_nas_cifar10_full", 3_000_000),
}
PLAIN = {  # networks that no starter has: what they are made of
    "three_branches": {
        "a": {"op": "conv", "kernel": 3, "act": "none", "from": "in"},
        "b": {"op": "conv", "kernel": 1, "act": "none", "from": "in"},
        "n": {"op": "batch_norm", "from": "in"},
        "out": {"op": "add", "act": "relu", "from": ["a", "b", "n"]},
    },
    "two_bottlenecks": {
        **{f"{x}e": {"op": "conv", "kernel": 1, "channels": "3*C", "act": "relu6", "from": "in"} for x in "ab"},
        **{f"{x}d": {"op": "depthwise_conv", "kernel": 3, "act": "relu6", "from": f"{x}e"} for x in "ab"},
        **{f"{x}p": {"op": "conv", "kernel": 1, "channels": "C", "act": "none", "from": f"{x}d"} for x in "ab"},
        "out": {"op": "add", "from": ["ap", "bp", "in"]},
    },
}
FASTER = (Ungroup, MergeBranches, StackChains, SplitProjections, PadChannels)
ROUNDS = 5  # of a pair of sessions
SECONDS_PER_TURN = 0.03
PAUSE = 0.05  # seconds, in which the threads of another session come to rest
Runner = Callable[[], Any]
Row = dict[str, Any]


# -- the networks ---------------------------------------------------------------------------------------------------


def randomly_pruned(spec: str, params: int, seed: int = 0) -> Model:
    """The compact model left when random gates go until at most `params` parameters stay; reductions keep theirs.

    Then it is made as wide as the spec's budget allows.
    """
    read, graph = shipped(spec)
    rng = random.Random(seed)
    rank = {gate: 2.0 if "reduce" in gate else rng.random() for gate in graph.gates()}
    order = sorted(graph.gates(), key=rank.__getitem__)
    low, high = 0, len(order)  # closing `high` gates is enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _params_without(graph, order[:middle]) <= params else (middle, high)
    found = Model(prune(graph, order[:high]), dict.fromkeys(prune(graph, order[:high]).gates(), 1.0))
    compact = compacted(found, read.config.budget)[0].graph
    return Model(compact, {}, _lively_weights(compact, seed))


def plain(blocks: dict[str, Any]) -> Model:
    """A network of four equal blocks over images of 32x32 pixels."""
    types = {"stem": "[3, H, W] -> [24, H, W]", "block": "[C, H, W] -> [C, H, W]", "head": "[C, H, W] -> [classes]"}
    head = {"pool": {"op": "global_avg_pool", "from": "in"}, "out": {"op": "linear", "from": "pool"}}
    nodes = {"stem": {"out": {"op": "conv", "kernel": 3, "from": "in"}}, "block": blocks, "head": head}
    spec = {
        "graphspec": 1, "name": "plain", "input": [3, 32, 32], "classes": 10, "network": ["stem", {"block": 4}, "head"],
        "blocks": {name: {"type": types[name], "nodes": nodes[name]} for name in types},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.yaml"
        path.write_text(json.dumps(spec))
        graph = TO_COMPACT.run(Model(load(path)[1])).graph
    return Model(graph, {}, _lively_weights(graph, 0))


def _params_without(graph: Graph, closed: list[str]) -> int:
    try:
        return total_cost(prune(graph, closed)).params
    except PassError:  # nothing is left
        return 0


def _lively_weights(graph: Graph, seed: int) -> dict[str, Any]:
    """Starting weights with batch-norm statistics as if trained: folding must have something to fold."""
    rng = np.random.default_rng(seed)
    weights = weights_of(lower(graph))
    for name, value in weights.items():
        if name.endswith(("running_mean", "norm.bias")):
            weights[name] = rng.normal(0.0, 0.1, value.shape).astype(np.float32)
        elif name.endswith(("running_var", "norm.weight")):
            weights[name] = rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
    return weights


# -- measuring ------------------------------------------------------------------------------------------------------


def with_plain_convolutions(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose convolutions become one node each: ours leave out unread pixels before they multiply."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, Conv):
            part.steps, part.border = (1, 1), None
            part.window = part.stride, part.padding, part.dilation
    return module


def dynamo_bytes(module: torch.nn.Module, shape: tuple[int, ...]) -> bytes:
    """The file of torch.onnx.export, optimised, with a dynamic batch."""
    module = with_plain_convolutions(module)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (torch.randn(2, *shape),), dynamo=True, optimize=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )  # fmt: skip
        assert program is not None
        path = Path(folder) / "dynamo.onnx"
        program.save(path)
        return path.read_bytes()


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """The last result, and the shortest time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)


def session_runner(file: bytes, threads: int, image: Any) -> Runner:
    """Runs an ONNX file once on `image` (N, C, H, W)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, feed)[0]


def eager_runner(module: torch.nn.Module, image: Any) -> Runner:
    """Runs the torch network once on `image` (N, C, H, W)."""
    tensor = torch.from_numpy(image)

    def run() -> Any:
        with torch.inference_mode():
            return module(tensor).numpy()

    return run


@dataclass(frozen=True)
class Duel:
    """Median seconds of two networks that took turns, and how many times faster ours is."""

    ours: float
    other: float
    speed: float
    interval: tuple[float, float]  # of the speed, with 95 % confidence


def duel(make: dict[str, Callable[[], Runner]], pairs: int, threads: int) -> Duel:
    """The first of two networks against the second, each made anew for every pair."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    first, second = make
    found: dict[str, list[float]] = {first: [], second: []}
    speeds = []
    for index in range(pairs):
        runners = {name: make[name]() for name in (make if index % 2 == 0 else reversed(make))}
        seconds = {name: timed(run, 5)[1] for name, run in runners.items()}
        runs = max(1, round(SECONDS_PER_TURN / seconds[second]))
        turns: dict[str, list[float]] = {first: [], second: []}
        for turn in range(ROUNDS):
            for name in list(runners)[:: 1 if turn % 2 == 0 else -1]:
                turns[name].append(_turn(runners[name], runs, clock))
        speeds.append(statistics.median(b / a for a, b in zip(turns[first], turns[second], strict=True)))
        for name in make:
            found[name] += turns[name]
    return Duel(
        statistics.median(found[first]), statistics.median(found[second]), statistics.median(speeds), _interval(speeds)
    )


def _turn(run: Runner, runs: int, clock: Callable[[], float]) -> float:
    """Seconds a run, after a pause and one that does not count."""
    time.sleep(PAUSE)
    run()
    start = clock()
    for _ in range(runs):
        run()
    return (clock() - start) / runs


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the true median lies with 95 % confidence: from order statistics, no shape is assumed."""
    ordered, count = sorted(values), len(values)
    rank = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2) - 1)
    return ordered[rank], ordered[-1 - rank]


def latencies(files: dict[str, bytes], module: torch.nn.Module, image: Any, pairs: int) -> list[Row]:
    """Latency at batch 1 for one thread and two; `files` are `ours` and `dynamo`."""
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        eager = eager_runner(module, image)
        make = {which: partial(session_runner, file, threads, image) for which, file in files.items()}
        for which, session in make.items():
            assert np.abs(session()() - eager()).max() <= 1e-4 * np.abs(eager()).max(), f"{which} is wrong"
        rival = duel(make, pairs, threads)
        slow = duel({"ours": make["ours"], "eager": partial(eager_runner, module, image)}, max(1, pairs // 4), threads)
        seconds = {"ours": rival.ours, "dynamo": rival.other, "eager": slow.other}
        speeds = {"speed": rival.speed, "speed_interval": rival.interval, "speed_over_eager": slow.speed}
        rows.append({"threads": threads, "seconds": seconds, **speeds})
    return rows


def measure(name: str, pairs: int) -> Row:
    """Everything about one network."""
    model = plain(PLAIN[name]) if name in PLAIN else randomly_pruned(*NETWORKS[name])
    module = lower(model.graph).eval()
    load_weights(module, model.weights)
    shape = model.graph.node(INPUT).shape
    ours, our_seconds = timed(lambda: emit(model).SerializeToString(), 3)
    theirs, their_seconds = timed(lambda: dynamo_bytes(module, shape))
    proto, other = onnx.load_from_string(ours), onnx.load_from_string(theirs)
    check(proto)
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    return {
        "network": name,
        **{key: getattr(total_cost(model.graph), key) for key in ("params", "flops")},
        "nodes": {"ours": len(proto.graph.node), "dynamo": len(other.graph.node)},
        "bytes": {"ours": len(ours), "dynamo": len(theirs)},
        "export_seconds": {"ours": our_seconds, "dynamo": their_seconds},
        "latency": latencies({"ours": ours, "dynamo": theirs}, module, image, pairs),
        "gains": dict(gains(model, ours, image, max(2, pairs // 4))),
    }


def gains(model: Model, ours: bytes, image: Any, pairs: int) -> Iterator[tuple[str, float]]:
    """Our time with one thread by that without a pass, for the passes that do something."""
    for kind in FASTER:
        steps = tuple(step for step in TO_EXPORT.passes if not isinstance(step, kind))
        without = emit(model, passes=Pipeline(steps, TO_EXPORT.before, TO_EXPORT.after)).SerializeToString()
        if without != ours:
            files = {"ours": ours, "without": without}
            found = duel({which: partial(session_runner, file, 1, image) for which, file in files.items()}, pairs, 1)
            yield kind.name, 1 / found.speed


def bars(rows: Sequence[Row]) -> list[Bar]:
    """What our files are held to."""
    found = []
    for row in rows:
        name, seconds = row["network"], row["export_seconds"]
        for at in row["latency"]:
            threads = f"{at['threads']} thread(s)"
            most = 0.9 if at["threads"] == 1 and name in NETWORKS else 1.0
            found.append(Bar(f"{name}: latency / dynamo's, {threads}", 1 / at["speed"], most))
            found.append(Bar(f"{name}: torch eager / ours, {threads}", at["speed_over_eager"], 1.5, at_least=True))
        found += [Bar(f"{name}: time with {key} / without", ratio, 1.0) for key, ratio in row["gains"].items()]
        found.append(
            Bar(f"{name}: dynamo's export time / ours", seconds["dynamo"] / seconds["ours"], 5.0, at_least=True)
        )
    return found


def report(rows: Sequence[Row]) -> list[str]:
    """A table of files and one of latencies."""
    both = ("ours", "dynamo")
    files = [
        [row["network"], row["params"], row["flops"], *row["nodes"].values()]
        + [row[key][which] for key in ("bytes", "export_seconds") for which in both]
        for row in rows
    ]
    times = [[row["network"], *_latency_cells(at)] for row in rows for at in row["latency"]]
    gained = [[row["network"], name, f"{ratio:.3f}"] for row in rows for name, ratio in row["gains"].items()]
    header = ["network", "params", "multiply-adds", "nodes", "dynamo's", "bytes", "dynamo's", "export s"]
    speeds = ["our time by dynamo's", "95 % interval", "our speed by torch eager's"]
    return [
        table([*header, "dynamo's"], files),
        table(["network", "threads", "ours ms", "dynamo ms", "torch eager ms", *speeds], times),
        table(["network", "pass", "time with it by time without"], gained),
    ]


def _latency_cells(at: Row) -> list[object]:
    low, high = at["speed_interval"]
    ratio = [f"{1 / at['speed']:.3f}", f"{1 / high:.3f} to {1 / low:.3f}"]
    return [at["threads"], *(1000 * s for s in at["seconds"].values()), *ratio, at["speed_over_eager"]]


def main() -> int:
    """Measure the networks named on the command line (all by default)."""
    options = parser(__doc__)
    options.add_argument("networks", nargs="*", choices=[[], *NETWORKS, *PLAIN], help="which networks (default: all)")
    options.add_argument("--sessions", type=int, default=16, help="pairs of sessions that latency is measured with")
    args = options.parse_args()
    logging.disable(logging.WARNING)
    rows = [measure(name, args.sessions) for name in args.networks or (*NETWORKS, *PLAIN)]
    promises = bars(rows)
    show(args.json, {"networks": rows}, report(rows), promises)
    return 0 if all(bar.met for bar in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
