"""Torch-Pruning's side of `benchmarks.compression`: a trained module with fewer channels, by one of its pruners.

Run as a process of its own by `benchmarks.compression`, with the package on its path. The pruned module is written as a
spec with its weights, as `graphspec import` does it, so that all that is compared is fine-tuned and exported alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.compression import SHAPE, data_of, data_section, trained_base
from runtime.importing import import_model

STEPS = 400  # in which the share of pruned channels grows until the target is met
SPARSE = {"TP group norm": 5e-4, "TP batch-norm scale": 1e-4}  # regularisation while learning sparsely


def pruner_of(name: str, module: nn.Module, round_to: int) -> Any:
    """A pruner of all convolutions; the classifier keeps its outputs."""
    import torch_pruning as tp

    made, importance = {
        "TP magnitude": (tp.pruner.MagnitudePruner, tp.importance.GroupMagnitudeImportance(p=2)),
        "TP group norm": (tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance(p=2)),
        "TP batch-norm scale": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance()),
        "uniform width": (tp.pruner.MagnitudePruner, tp.importance.GroupMagnitudeImportance(p=2)),
    }[name]
    return made(
        module,
        torch.zeros(1, *SHAPE),
        importance=importance,
        global_pruning=name != "uniform width",
        pruning_ratio=1.0,
        max_pruning_ratio=1.0 if name == "uniform width" else 0.9,
        iterative_steps=STEPS,
        ignored_layers=[part for part in module.modules() if isinstance(part, nn.Linear)],
        round_to=1 if name == "uniform width" else round_to,  # all widths change together there
        **({"reg": SPARSE[name]} if name in SPARSE else {}),
    )


def learn_sparsely(pruner: Any, module: nn.Module, batches: Any, epochs: int, lr: float) -> None:
    """Train with the pruner's regularisation, the rate falling as a cosine."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    module.train()
    for epoch in range(epochs):
        pruner.update_regularizer()
        for x, y in batches.batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            pruner.regularize(module)
            optimizer.step()
            schedule.step()
    module.eval()


def multiply_adds(module: nn.Module) -> int:
    """Of one image."""
    import torch_pruning as tp

    found, _ = tp.utils.count_ops_and_params(module, torch.zeros(1, *SHAPE))
    return int(found)


def main() -> None:
    """Prune, write the spec, print the CPU seconds that it took."""
    options = argparse.ArgumentParser()
    for name in ("name", "work", "out"):
        options.add_argument(f"--{name}", required=True)
    for name in ("size", "lr"):
        options.add_argument(f"--{name}", type=float, required=True)
    for name in ("seed", "epochs", "round-to"):
        options.add_argument(f"--{name}", type=int, required=True)
    args = options.parse_args()
    torch.manual_seed(args.seed)
    module = trained_base(Path(args.work)).eval()
    before, started = multiply_adds(module), time.process_time()
    pruner = pruner_of(args.name, module, args.round_to)
    if args.name in SPARSE:
        learn_sparsely(pruner, module, data_of(Path(args.work), args.seed), args.epochs, args.lr)
    for _ in itertools.takewhile(lambda _: multiply_adds(module) > before / args.size, range(STEPS)):
        pruner.step()
    seconds = time.process_time() - started
    import_model(module, torch.zeros(2, *SHAPE), args.out, data=data_section(Path(args.work)))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
