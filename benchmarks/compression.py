"""A trained ResNet-20 made two and three times smaller: channel gates beside Torch-Pruning and uniform widths.

    python -m benchmarks.compression base --data FOLDER --work WORK [--epochs N] [--weights FILE]
    python -m benchmarks.compression compare --work WORK [--sizes 2 3] [--seeds 0 1 2] [--rows NAME ...]

`base` trains ResNet-20 on images of 10 classes in FOLDER (`train/<class>/`, `test/<class>/`) and keeps it in WORK; with
FILE it starts from the state dict of a published one, whose shortcuts have no weights.
`compare` prunes it to the same multiply-adds in several ways and fine-tunes each for as many epochs by the same
`graphspec retrain`; accuracy is that of the last epoch on the test images, latency that of the exported model in
onnxruntime, one thread, batch 1, measured for all rows at the end; seconds are those of the CPU. The row "distilled"
fine-tunes what channel gates found with the base as its teacher; the rows "from scratch" train the shapes found for as
many seconds as pruning and fine-tuning by channel gates took. Seeds come in turn; rows that WORK has already are not
computed again. Torch-Pruning is installed into WORK.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import ROOT, in_child, parser, show, table
from compiler.analysis.costs import total_cost
from compiler.analysis.weights import weight_shapes
from compiler.importing.equal import require_equal
from compiler.lowering.torch.fx import lower_model
from graphspec import api
from runtime.data.dataset import Loader, load_dataset
from runtime.export.bench import onnx_latency
from runtime.importing import import_model
from runtime.jobs.run_retrain import RetrainResult
from runtime.rundir.network import read_model
from runtime.tasks.table import task_of

SHAPE = (3, 32, 32)
CLASSES = 10
OURS = {"channel gates": "channels", "channel and block gates": "channels,blocks"}
PEERS = ("TP magnitude", "TP group norm", "TP batch-norm scale", "uniform width")
DISTILLED = "channel gates, distilled"
AGAIN = {  # rows that train what another row has made
    DISTILLED: "channel gates", "channel gates, from scratch": "channel gates",
    "uniform width, from scratch": "uniform width",
}  # fmt: skip
AUGMENTED = {"crop_padding": 4, "flip": True}
PUBLISHED = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # of the images that its weights know
TRAINED = ("batch_size=128", "weight_decay=0.0005")
RECIPE = (*(f"retrain.{setting}" for setting in TRAINED), "retrain.schedule.kind=cosine")
PACKAGE = "torch-pruning==1.6.1"
MEANS = ("accuracy", "params", "flops", "ms", "pruning_s", "training_s")


class Block(nn.Module):
    """Two convolutions and what is added to them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut = project if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet20() -> nn.Module:
    """ResNet-20 for images of 32x32 pixels (He et al. 2015), with projections where the width changes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for width in (16, 32, 64):
        for _ in range(3):
            layers.append(Block(inputs, width, 1 if inputs == width else 2))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def tensor_names(module: nn.Module) -> list[str]:
    """The parameters and statistics of a module, in the order of its layers."""
    return [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]


def published(weights: Path) -> nn.Module:
    """ResNet-20 with the weights of one whose shortcuts skip pixels and add channels of zeros (He et al. 2015).

    A projection that does this copies its channels to those in the middle.
    """
    module = resnet20()
    names, state = tensor_names(module), module.state_dict()
    theirs = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    state |= zip((name for name in names if "shortcut" not in name), theirs.values(), strict=True)
    for name in names:
        if "shortcut" in name:
            outputs, inputs = state[name].shape[:2]
            state[name] = nn.init.dirac_(torch.empty_like(state[name])).roll((outputs - inputs) // 2, 0)
    module.load_state_dict(state)
    return module


def base_run(work: Path) -> Path:
    """Where `base` leaves its run."""
    return work / "base" / "run"


def trained_base(work: Path) -> nn.Module:
    """The trained network as a torch module: the run keeps its tensors in the order of its layers."""
    module, found = resnet20(), read_model(api.open_run(base_run(work)).run.retrain)
    tensors = (torch.from_numpy(found.weights[name]) for name in weight_shapes(found.graph))
    module.load_state_dict(dict(zip(tensor_names(module), tensors, strict=True)), strict=False)
    require_equal(module.eval(), lower_model(found).eval(), SHAPE)
    return module


def data_section(work: Path) -> dict[str, Any]:
    """The section `data` of the base's spec."""
    return api.open_run(base_run(work)).spec.config.data.model_dump(exclude_defaults=True)


def data_of(work: Path, seed: int) -> Loader:
    """Batches of training images, as `base` has them."""
    opened = api.open_run(base_run(work))
    config = opened.spec.config
    data = load_dataset(config.data, opened.spec.input, task_of(opened.spec, opened.graph), seed=seed)
    return data.training_loader(data.split(0.5).training, config.retrain.batch_size, "sparse")


def train_base(args: argparse.Namespace) -> None:
    """Train ResNet-20 and keep its run; from the weights that are given, or else of the run that WORK has already."""
    torch.manual_seed(0)
    again, folder = base_run(args.work).exists(), args.work / "base-next"
    data = {"name": "folder", "root": args.data, **AUGMENTED}
    if args.weights:
        module, data = published(args.weights), data | PUBLISHED
    elif again:
        module, data = trained_base(args.work), data_section(args.work)
    else:
        module = resnet20()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = import_model(module, torch.zeros(2, *SHAPE), folder / "base.yaml", data=data)
    api.compile(made.spec, out=folder / "run", root=folder)
    start = [] if again or args.weights else ["retrain.from=scratch"]
    settings = [f"retrain.epochs={args.epochs}", f"retrain.lr={args.lr}", "retrain.schedule.warmup=1"]
    api.retrain(folder / "run", overrides=[*RECIPE, *settings, *start, *args.set])
    shutil.rmtree(args.work / "base", ignore_errors=True)
    folder.rename(args.work / "base")


def pruned(name: str, size: float, seed: int, args: argparse.Namespace, folder: Path) -> tuple[Path, float]:
    """A run with the smaller network, ready to be fine-tuned, and the CPU seconds that making it took."""
    spec, run, started = folder / "small.yaml", folder / "run", time.process_time()
    if name in OURS:
        data = data_section(args.work)
        import_model(trained_base(args.work), torch.zeros(2, *SHAPE), spec, gates=OURS[name], data=data)
        most = int(total_cost(api.open_run(base_run(args.work)).graph).flops / size)
        settings = [
            *(f"search.{setting}" for setting in TRAINED), "search.pretrain_epochs=0",
            f"search.epochs={args.search_epochs}", f"search.lr={args.lr}",
            "search.gates={gamma: auto, adaptive: flops}", "search.prune={every: 0.25, patience: 1}",
            f"budget={{flops: {most}, round_to: {args.round_to}}}",
        ]  # fmt: skip
        api.compile(spec, overrides=settings, out=run, root=folder)
        api.search(run, overrides=[f"seed={seed}"], quiet=True)
        return run, time.process_time() - started
    words = {
        "name": name, "work": args.work, "out": spec, "size": size, "seed": seed,
        "epochs": args.search_epochs, "lr": args.lr, "round-to": args.round_to,
    }  # fmt: skip
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(installed(args.work))])}
    seconds = in_child("benchmarks.peer_torch_pruning", [f"--{key}={value}" for key, value in words.items()], path)
    api.compile(spec, out=run, root=folder)
    return run, float(seconds["seconds"])


def installed(work: Path) -> Path:
    """The folder that Torch-Pruning alone is installed into: it takes the torch that runs here."""
    folder = work / "packages"
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, PACKAGE]
        subprocess.run(command, check=True)
    return folder


def row_folder(name: str, size: float, seed: int, args: argparse.Namespace) -> Path:
    """Where a row's run and spec are."""
    return Path(args.work) / "rows" / f"{name.replace(' ', '_')}-{size:g}x-{seed}"


def outcome(name: str, size: float, seed: int, args: argparse.Namespace, known: list[dict[str, Any]]) -> dict[str, Any]:
    """A row: prune, fine-tune, export, measure; or train what another row found in another way."""
    folder = row_folder(name, size, seed, args)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = [f"retrain.epochs={args.epochs}", f"retrain.lr={args.lr}", "retrain.distil.weight=0"]
    if name in AGAIN:
        run, pruning, more = found_again(name, size, seed, args, known)
        settings += more
    else:
        run, pruning = pruned(name, size, seed, args, folder)
    started = time.process_time()
    done = api.retrain(run, overrides=[*RECIPE, *settings, f"seed={seed}"], quiet=True)
    return {"row": name, "size": size, "seed": seed, "pruning_s": pruning, **figures(run, done, started)}


def found_again(
    name: str, size: float, seed: int, args: argparse.Namespace, known: list[dict[str, Any]]
) -> tuple[Path, float, list[str]]:
    """What another row made, to be trained with the base as its teacher, or from scratch for the seconds that pruning
    and fine-tuning by channel gates took.
    """
    mine = {one["row"]: one for one in known if (one["size"], one["seed"]) == (size, seed)}
    gates, made = mine["channel gates"], mine[AGAIN[name]]
    run = row_folder(name, size, seed, args) / "run"
    shutil.copytree(row_folder(AGAIN[name], size, seed, args) / "run", run)
    shutil.rmtree(run / "retrain")
    if name == DISTILLED:
        return run, made["pruning_s"], ["retrain.distil.weight=0.5"]
    epochs = round(args.epochs * (gates["pruning_s"] + gates["training_s"]) / made["training_s"])
    return run, 0.0, ["retrain.from=scratch", "retrain.lr=0.2", "retrain.schedule.warmup=1", f"retrain.epochs={epochs}"]


def figures(run: Path, done: RetrainResult, started: float) -> dict[str, Any]:
    """What a trained network costs and is good for; its latency is measured beside that of the others."""
    seconds = time.process_time() - started
    api.export(run, overrides=["export.with_preprocessing=none"], quiet=True)
    return {
        "accuracy": done.accuracy, "params": done.found.params, "flops": done.found.flops, "training_s": seconds,
    }  # fmt: skip


def latency(name: str, size: float, seed: int, args: argparse.Namespace) -> float:
    """Milliseconds of a row's exported model."""
    exported = row_folder(name, size, seed, args) / "run" / "export" / "model.onnx"
    return onnx_latency(exported, np.ones((1, *SHAPE), np.float32), threads=1, budget=1.0).median_ms


def rows_of(results: list[dict[str, Any]]) -> list[list[object]]:
    """The lines of the table: means over the seeds, and the deviation of the accuracy."""
    lines: list[list[object]] = []
    for name, size in dict.fromkeys((one["row"], one["size"]) for one in results):
        some = [one for one in results if (one["row"], one["size"]) == (name, size)]
        mean = {key: statistics.mean(one[key] for one in some) for key in MEANS}
        spread = 100 * statistics.stdev(one["accuracy"] for one in some) if len(some) > 1 else None
        lines.append([name, size, len(some), 100 * mean["accuracy"], spread, *(mean[key] for key in MEANS[1:])])
    return lines


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row that is not known yet, kept as soon as it is; then all of them, with their latencies."""
    kept = args.work / "rows.jsonl"
    results = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(one["row"], one["size"], one["seed"]) for one in results}
    for seed, size, name in itertools.product(args.seeds, args.sizes, args.rows):
        if (name, size, seed) not in known:
            results.append(outcome(name, size, seed, args, results))
            with kept.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    return [one | {"ms": latency(one["row"], one["size"], one["seed"], args)} for one in results]


def main() -> None:
    """Train the base, or compare."""
    options = parser(__doc__)
    options.add_argument("part", choices=("base", "compare"))
    options.add_argument("--data", help="base: folder of images")
    options.add_argument("--weights", type=Path, help="base: state dict of a published ResNet-20 to start from")
    options.add_argument("--set", action="append", default=[], help="base: further settings, e.g. retrain.ema=0.999")
    options.add_argument("--work", required=True, type=Path, help="folder to keep all in")
    options.add_argument("--epochs", type=int, help="base: 18; compare: of fine-tuning, 6")
    options.add_argument("--search-epochs", type=int, default=4, help="of searching, and of learning sparsely")
    options.add_argument(
        "--lr", type=float, help="learning rate; base: 0.2; compare, of searching and fine-tuning: 0.05"
    )
    options.add_argument("--round-to", type=int, default=4, help="channels are a multiple of it")
    options.add_argument("--sizes", type=float, nargs="*", default=[2, 3], help="times fewer multiply-adds")
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    every = (*OURS, *PEERS, *AGAIN)
    options.add_argument("--rows", nargs="*", choices=every, default=every)
    args = options.parse_args()
    args.work = args.work.absolute()
    epochs, lr = (18, 0.2) if args.part == "base" else (6, 0.05)
    args.epochs, args.lr = args.epochs or epochs, args.lr or lr
    if args.part == "base":
        if not args.data:
            options.error("base: --data is missing")
        args.data = str(Path(args.data).absolute())
        train_base(args)
        return
    results = compare(args)
    header = ["row", "times smaller", "seeds", "accuracy %", "+-", "params", "FLOPs", "ms", "pruning s", "training s"]
    show(args.json, {"rows": results}, [table(header, rows_of(results))])


if __name__ == "__main__":
    main()
