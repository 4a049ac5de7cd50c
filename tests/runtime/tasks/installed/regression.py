"""Regression as another package offers it, with a data set: how bright an image is, and where its light lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from compiler.language.config import DataConfig, TrainingConfig
from runtime.tasks.base import Metric, Task


class Regression(Task):
    """The mean squared error of outputs (N, outputs), or (N, outputs, 1, 1), and targets (N, outputs) float32."""

    metrics = (
        Metric("mean_error", "mean absolute error", "{:.3f}", higher_is_better=False),
        Metric("close", "share within a tenth", "{:.1%}"),
    )
    same = "close answer"
    output_name = "estimate"

    def targets(self, given: Tensor) -> Tensor:
        if given.shape[1:] != (self.outputs,):
            raise ValueError(f"targets are {tuple(given.shape)}, not {self.outputs} numbers an image")
        return given.float()

    def fake(self, numbers: Tensor) -> Tensor:
        return numbers.sin()[:, None].expand(-1, self.outputs).contiguous()

    def loss(
        self, output: Tensor, targets: Tensor, training: TrainingConfig | None = None, reduction: str = "mean"
    ) -> Tensor:
        each = F.mse_loss(output.flatten(1), targets, reduction="none").mean(1)
        return each.mean() if reduction == "mean" else each.sum()

    def answers(self, output: Tensor, *, probabilities: bool = False) -> Tensor:
        return output.flatten(1)

    def measure(self, answers: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        errors = (answers - targets).abs().mean(1)
        return {"mean_error": errors.sum(), "close": (errors < 0.1).sum()}

    def agree(self, answers: Tensor, others: Tensor) -> Tensor:
        return (answers - others).abs().amax(1) < 1e-3


def lights(config: DataConfig) -> Any:
    """Images with one bright square on a dark ground: its brightness and its row, both in 0..1."""
    random = np.random.default_rng(0)

    def half(count: int) -> tuple[Any, Any]:
        images = random.integers(0, 30, (count, 1, 8, 8), dtype=np.uint8)
        brightness, rows = random.integers(60, 256, count), random.integers(0, 6, count)
        for image, value, row in zip(images, brightness, rows, strict=True):
            image[0, row : row + 3, 2:6] = value
        return images, np.stack([brightness / 255, rows / 5], axis=1)

    return half(400), half(100)
