"""Our ONNX files beside torch.onnx.export's: latency in onnxruntime, nodes, bytes, export time, torch eager, minimum.

    python -m benchmarks.export [--json] [--sessions N] [NETWORK ...]

Both files hold the same network with the same weights, and run in sessions with default optimisation, in turns, for
one and two threads. A session's speed depends on where its memory happens to lie, so there are many of each: a ratio of
latencies is the median over pairs of sessions, each pair's the median over its rounds; beside it stands where the true
median lies with 95 % confidence. Before every turn there is a pause: for a while after a run, a session's threads wait
in a loop, which takes cores from the other. Needs the `bench` extra. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks.common import Bar, parser, show, table
from compiler.analysis.costs import total_cost
from compiler.elaborate.builder import load
from compiler.errors import PassError
from compiler.ir.graph import INPUT, OUTPUT, Graph, Model, Node
from compiler.lowering.onnx.model import check, emit
from compiler.lowering.torch.fx import load_weights, lower, weights_of
from compiler.lowering.torch.modules import Conv
from compiler.ops import Reads, op, steps
from compiler.passes.pipeline import TO_COMPACT
from compiler.passes.prune_zero_edges import prune

SPECS = Path(__file__).parents[1] / "specs"
NETWORKS = {  # name -> spec and parameters to prune to
    "digits": ("digits.yaml", 28_000),
    "cifar10_small": ("cifar10_small.yaml", 160_000),
    "dso_nas_24_blocks": ("dso_nas_cifar10_full.yaml", 3_000_000),
}
ROUNDS = 5  # of a pair of sessions
SECONDS_PER_TURN = 0.03
PAUSE = 0.05  # seconds, in which the threads of another session come to rest
Runner = Callable[[], Any]
Row = dict[str, Any]


# -- the networks ---------------------------------------------------------------------------------------------------


def randomly_pruned(spec: Path, params: int, seed: int = 0) -> Model:
    """The compact model left when random gates go until at most `params` parameters stay; reductions keep theirs."""
    graph = load(spec)[1]
    rng = random.Random(seed)
    rank = {gate: 2.0 if "reduce" in gate else rng.random() for gate in graph.gates()}
    order = sorted(graph.gates(), key=rank.__getitem__)
    low, high = 0, len(order)  # closing `high` gates is enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _params_without(graph, order[:middle]) <= params else (middle, high)
    compact = TO_COMPACT.run(Model(prune(graph, order[:high]))).graph
    return Model(compact, {}, _lively_weights(compact, seed))


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


# -- the least number of nodes --------------------------------------------------------------------------------------


def analytic_minimum(graph: Graph) -> Counter[str]:
    """The fewest operations that a compact graph can be written in, by kind, counted without running a pass.

    Every convolution, linear layer, pool, activation and mean is one; batch norm is one unless the step before it in
    its node is a convolution or linear layer; a sum or join of several values is one, equal ones counted once, as are
    equal pools of equal values.
    """
    count: Counter[str] = Counter()
    seen: set[object] = set()
    for node in graph.nodes():
        if node.op in (INPUT, OUTPUT):
            continue
        sources = tuple(edge.src for edge in graph.inputs(node.id))
        if len(sources) > 1:
            _count_once(count, seen, "join" if op(node.op).reads is Reads.APART else "sum", sources)
        _count_steps(count, seen, node, sources)
    return count


def _count_once(count: Counter[str], seen: set[object], kind: str, sources: tuple[str, ...], *how: object) -> None:
    key = (kind, how, sources if kind == "join" else tuple(sorted(sources)))
    if key not in seen:
        seen.add(key)
        count[kind] += 1


def _count_steps(count: Counter[str], seen: set[object], node: Node, sources: tuple[str, ...]) -> None:
    before = ""
    for step in steps(node.op, node.attrs):
        if step.op in ("max_pool", "avg_pool"):
            _count_once(count, seen, step.op, sources, step.attrs)
        elif step.op == "batch_norm" and before in ("conv", "depthwise_conv", "linear"):
            pass
        elif step.op not in ("add", "concat", "identity", "dropout"):
            count[step.op] += 1
        before = step.op


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


def duel(make: dict[str, Callable[[], Runner]], pairs: int) -> Duel:
    """The first of two networks against the second, each made anew for every pair."""
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
                turns[name].append(_turn(runners[name], runs))
        speeds.append(statistics.median(b / a for a, b in zip(turns[first], turns[second], strict=True)))
        for name in make:
            found[name] += turns[name]
    return Duel(
        statistics.median(found[first]), statistics.median(found[second]), statistics.median(speeds), _interval(speeds)
    )


def _turn(run: Runner, runs: int) -> float:
    """Seconds a run, after a pause and one that does not count."""
    time.sleep(PAUSE)
    run()
    start = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - start) / runs


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
        rival = duel(make, pairs)
        slow = duel({"ours": make["ours"], "eager": partial(eager_runner, module, image)}, max(1, pairs // 4))
        seconds = {"ours": rival.ours, "dynamo": rival.other, "eager": slow.other}
        speeds = {"speed": rival.speed, "speed_interval": rival.interval, "speed_over_eager": slow.speed}
        rows.append({"threads": threads, "seconds": seconds, **speeds})
    return rows


def measure(name: str, pairs: int) -> Row:
    """Everything about one network."""
    spec, params = NETWORKS[name]
    model = randomly_pruned(SPECS / spec, params)
    module = lower(model.graph).eval()
    load_weights(module, model.weights)
    shape = model.graph.node(INPUT).shape
    ours, our_seconds = timed(lambda: emit(model).SerializeToString(), 3)
    theirs, their_seconds = timed(lambda: dynamo_bytes(module, shape))
    proto, other = onnx.load_from_string(ours), onnx.load_from_string(theirs)
    check(proto)
    least = analytic_minimum(model.graph)
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    return {
        "network": name,
        **{key: getattr(total_cost(model.graph), key) for key in ("params", "flops")},
        "nodes": {"ours": len(proto.graph.node), "dynamo": len(other.graph.node), "least": least.total()},
        "least": dict(least),
        "bytes": {"ours": len(ours), "dynamo": len(theirs)},
        "export_seconds": {"ours": our_seconds, "dynamo": their_seconds},
        "latency": latencies({"ours": ours, "dynamo": theirs}, module, image, pairs),
    }


def bars(rows: Sequence[Row]) -> list[Bar]:
    """What our files are held to."""
    found = []
    for row in rows:
        name, nodes, seconds = row["network"], row["nodes"], row["export_seconds"]
        for at in row["latency"]:
            threads = f"{at['threads']} thread(s)"
            found.append(Bar(f"{name}: latency / dynamo's, {threads}", 1 / at["speed"], 1.0))
            found.append(Bar(f"{name}: torch eager / ours, {threads}", at["speed_over_eager"], 1.5, at_least=True))
        found += [
            Bar(f"{name}: nodes / dynamo's", nodes["ours"] / nodes["dynamo"], 1.0),
            Bar(f"{name}: nodes / analytic minimum", nodes["ours"] / nodes["least"], 1.05),
            Bar(f"{name}: bytes / dynamo's", row["bytes"]["ours"] / row["bytes"]["dynamo"], 1.0),
            Bar(f"{name}: dynamo's export time / ours", seconds["dynamo"] / seconds["ours"], 5.0, at_least=True),
        ]
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
    header = ["network", "params", "multiply-adds", "nodes", "dynamo's", "least", "bytes", "dynamo's", "export s"]
    speeds = ["our time by dynamo's", "95 % interval", "our speed by torch eager's"]
    return [
        table([*header, "dynamo's"], files),
        table(["network", "threads", "ours ms", "dynamo ms", "torch eager ms", *speeds], times),
    ]


def _latency_cells(at: Row) -> list[object]:
    low, high = at["speed_interval"]
    ratio = [f"{1 / at['speed']:.3f}", f"{1 / high:.3f} to {1 / low:.3f}"]
    return [at["threads"], *(1000 * s for s in at["seconds"].values()), *ratio, at["speed_over_eager"]]


def main() -> int:
    """Measure the networks named on the command line (all by default)."""
    options = parser(__doc__)
    options.add_argument("networks", nargs="*", choices=[[], *NETWORKS], help="which networks (default: all)")
    options.add_argument("--sessions", type=int, default=16, help="pairs of sessions that latency is measured with")
    args = options.parse_args()
    logging.disable(logging.WARNING)
    rows = [measure(name, args.sessions) for name in args.networks or NETWORKS]
    promises = bars(rows)
    show(args.json, {"networks": rows}, report(rows), promises)
    return 0 if all(bar.met for bar in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
