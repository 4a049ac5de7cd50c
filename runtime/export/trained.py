"""The trained network of a run: its graph and weights as a model, and as a torch network to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from torch import nn

from compiler.errors import RunError
from compiler.ir.graph import Model
from compiler.language.overrides import changes
from compiler.lowering.torch.fx import lower_model, weights_of
from compiler.passes.pipeline import TO_INHERIT
from runtime.data.dataset import Dataset, load_dataset
from runtime.data.facts import facts_of, recorded_dataset, write_facts
from runtime.data.layouts import data_root
from runtime.rundir.directory import JobDir, Opened
from runtime.rundir.facts import read_facts
from runtime.rundir.files import read_json
from runtime.rundir.given import read_settings
from runtime.rundir.network import read_model
from runtime.rundir.records import Result
from runtime.tasks.table import task_of
from runtime.training.step import recalibrate

Source = Literal["retrain", "search"]
MOVABLE = ("data.root", "data.download", "data.workers", "data.in_memory", "data.skip_corrupt")  # how images are read
ANEW = "graphspec compile SPEC, for a run that is trained on what is there now"


@dataclass(frozen=True)
class Trained:
    """What a job left: the network as it was trained, and the compact model that computes the same."""

    module: nn.Module  # with its gates where the search trained it; in evaluation mode, on the CPU
    model: Model  # gates folded into the weights
    score: float | None  # the deciding metric on the test set, as the job measured it


def finished_job(opened: Opened, source: Source) -> JobDir:
    """The folder of a job; RunError if it is not finished, has no weights, or had other settings of the data."""
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
    _check_settings(opened, folder, ("seed", "task", "data", *["retrain"] * (source == "retrain")))
    return folder


def _check_settings(opened: Opened, folder: JobDir, used: Sequence[str]) -> None:
    """RunError naming settings that differ from the job's: normalisation would be wrong, or they would do nothing."""
    changed = changes(read_settings(folder.config), opened.spec.config.model_dump(mode="json"))
    relevant = [each.key for each in changed if each.path[0] in used and each.key not in MOVABLE]
    if relevant:
        raise RunError(
            f"{folder.path}: the network was trained with other settings: {', '.join(relevant)}\n"
            f"  try: without these options; the run knows what it was trained with ({folder.config})"
        )


def training_data(
    opened: Opened, job: JobDir, warn: Callable[[str], None], *, needs: str = "", trust_code: bool = False
) -> tuple[Dataset, bool]:
    """The data that a job was trained on, with its labels and normalisation of then, and whether it is still there.

    A set that is gone, or has other classes now, is replaced by the test images that the job has kept. RunError where
    an option `needs` training images, or the set does not lie where this command says.
    """
    spec, config, known = opened.spec, opened.spec.config, read_facts(job)
    task, data = task_of(spec, opened.graph), config.data
    moved = known is None or (data.root is not None and str(data_root(data)) != known.root)
    try:
        settings = known.applied_to(data) if known else data
        dataset = load_dataset(settings, spec.input, task, seed=config.seed, trust_code=trust_code)
        now = facts_of(dataset, data)
    except RunError as error:
        if known is None or moved or (":" in data.name and not trust_code):
            raise
        reason = str(error).partition("\n  try:")[0]  # what to try is for who trains: here the spec is right
    else:
        reason = known.changes(now) if known else ""
        if known is None or known.same_classes(now):
            write_facts(job, known, now, dataset, warn)
            if reason:
                now_or_then = f"labels and normalisation are those of then\n  try: if that is not meant, {ANEW}"
                warn(f"the data has changed since the training: {reason}; {now_or_then}")
            return replace(dataset, white=dataset.white if known is None or known.white is None else known.white), True
    if needs:
        raise RunError(
            f"{needs} needs the images of the training, which are not there as they were: {reason}\n"
            f"  try: --set data.root=FOLDER, where they lie now; or without {needs}; or {ANEW}"
        )
    kept = recorded_dataset(known, job, task, spec.input, config.seed, data.validation)
    warn(
        f"the data of the training is not there as it was: {reason}\n  labels and normalisation are those of then, and "
        f"the checks take the {len(kept.test.targets)} test images of {job.samples}\n"
        f"  try: the data as it was, for checks on all of it; or {ANEW}"
    )
    return kept, False


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
