"""NNI's one-shot DARTS as a worker of `benchmarks.peers`: runs in an environment that has nni and no graphspec.

The space, the strategy's Lightning module and Lightning's own loop are used as they are; a callback makes the loop wait
for its turn before every batch. A step of it is NNI's: an architecture step, then a weight step, each on its own batch.
"""

from __future__ import annotations

import argparse
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas import strategy as strategies
from nni.nas.evaluator.pytorch import ClassificationModule
from nni.nas.hub import pytorch as spaces
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.turns import Turns
from runtime.training.heap import freed_memory_kept

BATCHES = 4  # of images, taken again and again


class TakeTurns(pl.Callback):
    """Waits before every batch."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_start(self, *_: Any) -> None:
        """The step begins when it may."""
        self.turns.wait()

    def on_train_batch_end(self, *_: Any) -> None:
        """The step is done."""
        self.turns.answer(peak_mib=self.turns.growth.peak_mib)


def images(batch: int, layout: torch.memory_format) -> DataLoader[Any]:
    """Random normalised images with labels, whole batches at a time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCHES * batch, 3, 32, 32, generator=generator).to(memory_format=layout)
    return DataLoader(TensorDataset(x, torch.randint(0, 10, (len(x),), generator=generator)), batch_size=batch)


def main() -> None:
    """Build the supernet, say what it costs and train it turn by turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    strategy = strategies.DARTS()
    supernet = strategy.mutate_model(spaces.DARTS(width=args.width, num_cells=args.cells, dataset="cifar"))
    supernet = supernet.to(memory_format=layout)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        supernet(torch.zeros(1, 3, 32, 32))
    training = ClassificationModule(learning_rate=0.025, weight_decay=3e-4, optimizer=torch.optim.SGD, num_classes=10)
    training.set_model(supernet)
    module = strategy.configure_oneshot_module(training)
    loaders = strategy.train_dataloader(lambda: images(args.batch, layout), lambda: images(args.batch, layout))
    turns = Turns(
        flops=counter.get_total_flops(),
        params=sum(p.numel() for p in supernet.parameters()),
        gates=sum(p.numel() for p in module.arch_parameters()),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    trainer = pl.Trainer(
        max_epochs=-1, accelerator="cpu", callbacks=[TakeTurns(turns)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with freed_memory_kept():  # as on our side
        trainer.fit(module, loaders)


if __name__ == "__main__":
    main()
