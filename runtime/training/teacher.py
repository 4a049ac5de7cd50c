"""Distillation: a network learns from the outputs of a trained one (Hinton et al. 2015, "Distilling the knowledge")."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.ir.graph import OUTPUT, Model
from compiler.language.config import DistilConfig
from compiler.lowering.torch.fx import lower_model, outputs_by_name
from runtime.tasks.base import Task


class Teacher:
    """The trained network, in evaluation mode, and how much it counts."""

    def __init__(self, model: Model, task: Task, config: DistilConfig, device: torch.device) -> None:
        module = lower_model(model).to(device).to(memory_format=torch.channels_last)
        self.network, self.task, self.config = module.eval(), task, config

    def mixed(self, loss: Tensor, output: Tensor, x: Tensor) -> Tensor:
        """(1 - weight) times the loss against the targets, a scalar, and weight times that against the teacher.

        `output`: what the network gives for the images `x`, of which the teacher sees the same.
        """
        with torch.no_grad():
            wanted = outputs_by_name(self.network(x))[OUTPUT].to(output.dtype)
        weight = self.config.weight
        return (1 - weight) * loss + weight * self.task.distil(output, wanted, self.config.temperature)
