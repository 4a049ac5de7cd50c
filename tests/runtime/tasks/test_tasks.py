"""What a task says of itself, and that nothing else says it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from compiler.errors import RunError, SpecError
from compiler.language.config import Configuration, RetrainConfig
from graphspec import api
from runtime.tasks.base import Metric, Task
from runtime.tasks.classification import Classification
from runtime.tasks.results import Measured, as_record
from tests.tasks import class_task
from tests.tiny import TINY, write_spec

RUNTIME = Path(__file__).parents[3] / "runtime"
SHARE, ERROR = Metric("share", "share", "{:.2%}"), Metric("error", "error", higher_is_better=False)


def test_no_module_but_a_task_and_the_figures_of_classifiers_name_a_metric() -> None:
    naming = [path for path in RUNTIME.rglob("*.*") if path.suffix != ".pyc" and "accurac" in path.read_text().lower()]
    others = {path.relative_to(RUNTIME) for path in naming if path.parent.name != "tasks"}
    assert others == {Path("inference/figures.py"), Path("reporting/evaluation.py")}


def test_a_metric_knows_by_how_much_a_value_is_worse() -> None:
    assert (SHARE.lost(0.9, 0.88), SHARE.unit) == (pytest.approx(2), "points")
    assert (ERROR.lost(0.5, 0.6), ERROR.unit) == (pytest.approx(20), "%")
    assert (ERROR.lost(0.5, 0.4), ERROR.lost(0.0, 0.1)) == (pytest.approx(-20), pytest.approx(10))
    assert (SHARE.text(0.98765), SHARE.short(0.5), ERROR.text(0.98765)) == ("98.77%", "50%", "0.9877")


@pytest.mark.parametrize("name", ["loss", "top 5", ""])
def test_a_metric_needs_a_name_that_records_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a metric"):
        Metric(name, "it")


def test_classification_is_cross_entropy_smoothed_in_training_only() -> None:
    task, logits, y = class_task(4), torch.randn(6, 4, 1, 1), torch.arange(6) % 4
    flat = logits.flatten(1)
    assert torch.equal(task.loss(logits, y), F.cross_entropy(flat, y))
    assert torch.equal(task.loss(logits, y, reduction="sum"), F.cross_entropy(flat, y, reduction="sum"))
    training = RetrainConfig(label_smoothing=0.2)
    assert torch.equal(task.loss(logits, y, training), F.cross_entropy(flat, y, label_smoothing=0.2))
    answers = task.answers(logits)
    assert torch.equal(answers, flat.softmax(1).argmax(1))
    assert task.figures({"accuracy": float(task.measure(answers, y)["accuracy"])}, 6) == {
        "accuracy": float((answers == y).double().mean())
    }
    assert int(task.agree(answers, y).sum()) == int((answers == y).sum())


def test_weights_of_classes_count_in_training_only() -> None:
    torch.manual_seed(0)
    output, targets = torch.randn(12, 3), torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    names, smooth = ("cat", "dog", "owl"), RetrainConfig(label_smoothing=0.1)
    plain = class_task(3)
    assert plain.fitted(targets, names) is plain

    def weighted(wanted: object) -> Task:
        config = Configuration.model_validate({"data": {"class_weights": wanted}})
        return Classification(3, config).fitted(targets, names)

    balanced, losses = weighted("balanced"), F.cross_entropy(output, targets, label_smoothing=0.1, reduction="none")
    by_class = torch.stack([losses[targets == number].mean() for number in range(3)])
    assert balanced.loss(output, targets, smooth) == pytest.approx(float(by_class.mean()))
    halves = [balanced.loss(output[part], targets[part], smooth) for part in (slice(0, 6), slice(6, 12))]
    assert sum(halves) / 2 == pytest.approx(float(balanced.loss(output, targets, smooth)))  # two processes, one batch
    assert balanced.loss(output, targets) == plain.loss(output, targets)
    twice = weighted({"owl": 2.0}).loss(output, targets, smooth)
    assert twice == pytest.approx(float((losses.sum() + losses[-2:].sum()) / 12))
    with pytest.raises(RunError, match=r"data.class_weights: there is no class 'owls'; did you mean 'owl'\?"):
        weighted({"owls": 2.0})


def test_a_figure_within_the_noise_of_chance_is_told() -> None:
    """Always the most frequent of uneven classes is right in half of 100 cases, and two deviations are a tenth."""
    task, targets = class_task(3), torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    said = task.chance_warning(0.6, targets)
    assert said.startswith("accuracy 60.00% on 100 images is within the noise of chance (50.00% +- 10.00%): ")
    assert task.chance_warning(0.2, targets)
    assert not task.chance_warning(0.61, targets)
    assert not task.chance_warning(0.52, targets.repeat(100))


def test_an_output_that_the_task_does_not_take_is_refused_where_it_stands(tmp_path: Path) -> None:
    head = "pool: {op: global_avg_pool, from: in}\n      out: {op: linear, from: pool}"
    text = TINY.replace("[classes]", "[classes, H, W]").replace(head, "out: {op: conv, kernel: 1, from: in}")
    message = "the network gives 10x2x2, but the task classification asks for 10 values"
    with pytest.raises(SpecError, match=message) as caught:
        api.compile(write_spec(tmp_path, text), dry_run=True)
    (found,) = caught.value.diagnostics
    assert "network: [stem" in text.splitlines()[found.place.line - 1]


def test_results_have_metrics_as_attributes_and_beside_the_other_fields_of_their_record() -> None:
    from runtime.jobs.run_retrain import RetrainResult

    cost = {"params": 1, "flops": 2, "mac_bytes": 3, "activation_bytes": 4}
    record = {
        "run": "r", "weights": "0f", "accuracy": 0.5, "loss": 1.0, "test_images": 4, "validation_accuracy": 0.25,
        "supernet_accuracy": None, "pruned_accuracy": 0.75, "width": 1.0, "full": cost, "found": cost,
        "epochs": 40, "best_epoch": 31,
    }  # fmt: skip
    result = RetrainResult.of(record)
    assert (result.accuracy, result.validation_accuracy, result.supernet_accuracy) == (0.5, 0.25, None)
    assert result.metrics["accuracy"] == 0.5
    assert as_record(result) == record
    with pytest.raises(AttributeError, match="RetrainResult has no 'acuracy'; its metrics: accuracy, "):
        result.acuracy  # noqa: B018  asking for it is what fails
    assert isinstance(result, Measured)


def test_a_task_is_checked_and_reported_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom graphspec import api\n"
        f"api.compile({str(write_spec(tmp_path))!r}, dry_run=True)\n"
        "import runtime.reporting.page, runtime.tasks.classification\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=RUNTIME.parent)
