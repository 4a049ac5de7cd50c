"""graphspec beside NNI's one-shot DARTS: time per image and supernet FLOP, and peak memory, on the DARTS space.

    python -m benchmarks.peers [--env DIR] [--rounds N] [--json]

NNI 3.0 with pytorch-lightning is installed, with the torch that runs here, into a throw-away environment (about 6 GB;
`--env DIR` keeps it in DIR and uses it again). Each side is a process of its own with the supernet of the DARTS space
at equal width, cells and batch, and they take turns step by step. A step is what a search repeats: one step of the
weights and one of the gates (NNI: architecture), each on a batch of its own. The spaces are not the same to the last
op, so times are given per FLOP of each supernet's forward pass, which torch's counter counts (2 for a multiply-add).
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import ROOT, Bar, Timing, as_json, interleave, parser, show, table
from benchmarks.jobs import search_job
from benchmarks.turns import Turns, Worker
from compiler.lowering.torch.fx import lower
from runtime.jobs.logs import Console
from runtime.training.heap import freed_memory_kept
from runtime.training.stages import Position

SPEC = ROOT / "specs" / "darts_cell.yaml"
CELLS = 8  # of the spec
PACKAGES = ("nni==3.0", "pytorch-lightning", "torchvision")
OURS, NNI, NNI_LAST = "graphspec", "NNI", "NNI, channels-last"
PEERS = {NNI: [], NNI_LAST: ["--channels-last"]}


def environment(folder: Path) -> str:
    """The interpreter of an environment with NNI, made in `folder` unless it is there; CalledProcessError from pip."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        wanted = [*PACKAGES, f"torch=={torch.__version__.partition('+')[0]}"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return str(python)


def forward_flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """FLOPs of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *shape))
    return int(counter.get_total_flops())


@freed_memory_kept()  # as in every search
def work(args: argparse.Namespace) -> None:
    """Our side: search steps of the spec on random images, turn by turn."""
    settings = [
        "data.name=fake",
        f"data.fake_size={8 * args.batch}",
        f"symbols.width={args.width}",
        f"search.batch_size={args.batch}",
    ]
    with tempfile.TemporaryDirectory(prefix="graphspec-bench-") as folder:
        job, _ = search_job(SPEC, settings, Path(folder), torch.device("cpu"), Console(quiet=True))
    net, stage = job.net, job.stages[-1]
    turns = Turns(
        flops=forward_flops(lower(net.graph, lowering="reference"), net.graph.node("input").shape),
        params=sum(p.numel() for p in net.weight_params.values()),
        gates=len(net.graph.gates()),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    for index in itertools.count():
        turns.wait()
        job.step(stage, Position(1, 0, index))
        turns.answer(peak_mib=turns.growth.peak_mib)


def duel(python: str, peer: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides in turns: a row of each."""
    sizes = [f"--width={args.width}", f"--batch={args.batch}"]
    workers = {
        OURS: Worker("benchmarks.peers", ["--worker", *sizes]),
        peer: Worker("benchmarks.peer_nni", [*sizes, f"--cells={CELLS}", *PEERS[peer]], python),
    }
    try:
        timings = interleave({name: worker.turn for name, worker in workers.items()}, args.rounds, warmup=1)
        return [row(name, timings[name], worker, args.batch) for name, worker in workers.items()]
    finally:
        for worker in workers.values():
            worker.end()


def row(name: str, timing: Timing, worker: Worker, batch: int) -> dict[str, Any]:
    """What one side took; a step sees two batches."""
    per_image = timing.median / (2 * batch)
    return {
        "side": name,
        **as_json(timing),
        **worker.about,
        "seconds_per_image": per_image,
        "seconds_per_image_and_gflop": per_image / (worker.about["flops"] / 1e9),
        "peak_mib": worker.last["peak_mib"],
    }


def bars(pairs: list[list[dict[str, Any]]]) -> list[Bar]:
    """Ours against each peer of the same run."""
    found = []
    for ours, other in pairs:
        speed = other["seconds_per_image_and_gflop"] / ours["seconds_per_image_and_gflop"]
        found += [
            Bar(f"speed per FLOP against {other['side']}", speed, 1.0, at_least=True),
            Bar(f"peak memory against {other['side']}", ours["peak_mib"] / other["peak_mib"], 1.0),
        ]
    return found


def report(pairs: list[list[dict[str, Any]]]) -> str:
    """One table, a pair of rows for each peer."""
    header = ["side", "weights", "gates", "forward MFLOP", "median s", "min", "max", "ms/image", "ms/(image GFLOP)"]
    rows = [
        [
            r["side"], r["params"], r["gates"], r["flops"] / 1e6, r["median"], r["min"], r["max"],
            1000 * r["seconds_per_image"], 1000 * r["seconds_per_image_and_gflop"], r["peak_mib"],
        ]
        for pair in pairs for r in pair
    ]  # fmt: skip
    return table([*header, "peak MiB"], rows)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--env", type=Path, help="folder of the environment with NNI, made if it is not there")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--peer", choices=PEERS, help="only this one")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # child: our side
    args = options.parse_args()
    if args.worker:
        work(args)
        return
    with tempfile.TemporaryDirectory(prefix="graphspec-nni-") as folder:
        python = environment((args.env or Path(folder)).absolute())
        pairs = [duel(python, peer, args) for peer in PEERS if args.peer in (None, peer)]
    show(args.json, {"pairs": pairs}, [report(pairs)], bars(pairs))


if __name__ == "__main__":
    main()
