"""The trained network of a run: its graph and weights as a model, and as a torch network to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from torch import nn

from compiler.errors import RunError
from compiler.ir.graph import Model
from compiler.language.overrides import changes
from compiler.lowering.torch.fx import lower_model, weights_of
from compiler.passes.pipeline import TO_INHERIT
from runtime.data.dataset import Dataset
from runtime.jobs.runner import read_settings
from runtime.rundir.directory import JobDir, Opened
from runtime.rundir.files import read_json
from runtime.rundir.network import read_model
from runtime.rundir.records import Result
from runtime.training.step import recalibrate

Source = Literal["retrain", "search"]
MOVABLE = ("data.root", "data.download", "data.workers", "data.in_memory")  # say how images are read, not which


@dataclass(frozen=True)
class Trained:
    """What a job left: the network as it was trained, and the compact model that computes the same."""

    module: nn.Module  # with its gates where the search trained it; in evaluation mode, on the CPU
    model: Model  # gates folded into the weights
    score: float | None  # the deciding metric on the test set, as the job measured it


def finished_job(opened: Opened, source: Source) -> JobDir:
    """The folder of the job whose network is asked for.

    RunError if the job is not finished, has no weights, or was trained on other data than the configuration names.
    """
    folder, run = JobDir(opened.run.path / source), opened.run.path
    if not folder.is_finished:
        state = "is not finished" if folder.is_started else "has not run"
        command = f"graphspec {source} {run}" + (" --resume" if folder.is_started else "")
        other = ", or --from search for the network as the search left it"
        raise RunError(f"{run}: {source} {state}\n  try: {command} first{other if source == 'retrain' else ''}")
    if not folder.weights.is_file():
        raise RunError(
            f"{folder.path}: the network was drawn at random and has no weights\n  try: graphspec retrain {run} first"
        )
    _check_data(opened, folder)
    return folder


def _check_data(opened: Opened, folder: JobDir) -> None:
    """RunError naming settings of the data that differ from the job's: normalisation would be wrong."""
    changed = changes(read_settings(folder.config), opened.spec.config.model_dump(mode="json"))
    relevant = [each.key for each in changed if each.path[0] in ("seed", "task", "data") and each.key not in MOVABLE]
    if relevant:
        raise RunError(
            f"{folder.path}: the network was trained with other settings: {', '.join(relevant)}\n"
            f"  try: the same --set and --seed as then ({folder.config} has them)"
        )


def load_trained(opened: Opened, source: Source, dataset: Dataset, tell: Callable[[str], None]) -> Trained:
    """The network that a finished job left; RunError or GraphspecError if its files are missing or damaged.

    For `search`, batch norm's statistics are re-estimated on training images, because they lag behind gates that moved
    to the last step; `tell` is told so.
    """
    folder = finished_job(opened, source)
    model = read_model(folder)
    module = lower_model(model)
    if source == "retrain":
        score = read_json(folder.result, Result).get(dataset.task.decides.name)
        return Trained(module.eval(), model, score)
    _recalibrate(module, opened, dataset, tell)
    gated = replace(model, weights=weights_of(module))
    return Trained(module.eval(), TO_INHERIT.run(gated), None)


def _recalibrate(module: nn.Module, opened: Opened, dataset: Dataset, tell: Callable[[str], None]) -> None:
    config = opened.spec.config.search
    loader = dataset.training_loader(dataset.split(config.weight_part).training, config.batch_size, "recalibration")
    batches = list(islice(loader.batches(0), config.recalibrate_batches))
    recalibrate(module, batches)
    images = sum(len(labels) for _, labels in batches)
    tell(f"exporting what the search left; batch norm's statistics re-estimated on {images} training images")
