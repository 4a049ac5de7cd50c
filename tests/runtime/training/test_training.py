"""Single steps and evaluations, on networks small enough to check by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.language.config import RetrainConfig, SearchConfig
from compiler.lowering.torch.batch_parts import BatchNorm
from compiler.lowering.torch.fx import lower
from runtime.training.step import (
    backward,
    choose_device,
    clip_gradients,
    evaluate,
    recalibrate,
    require_statistics,
    training_loss,
    training_only,
)
from tests.graphs import graph_of
from tests.tasks import class_task

CPU = torch.device("cpu")
GRAPH = Graph("one output")  # of which further outputs would be looked up


def classifier() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=random), torch.randint(0, 3, (size,), generator=random)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts: int, smoothing: float) -> None:
    module, (x, y) = classifier(), batch(7)
    config = SearchConfig(accumulate=parts, label_smoothing=smoothing)
    loss = backward(training_loss(class_task(), GRAPH, module, config, CPU), (x, y), list(module.parameters()), config)
    expected = nn.functional.cross_entropy(module(x), y, label_smoothing=smoothing)
    grads = torch.autograd.grad(expected, list(module.parameters()))
    assert torch.allclose(loss, expected)
    for parameter, grad in zip(module.parameters(), grads, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, grad, atol=1e-7)


NETWORKS: dict[str, dict[str, tuple[str, dict[str, object], list[str | tuple[str, str]]]]] = {
    "vectors": {"pool": ("global_avg_pool", {}, ["input"]), "norm": ("batch_norm", {}, ["pool"])},
    "one pixel": {"last": ("conv", {"kernel": 3, "stride": 6, "channels": 4}, ["input"])},
    "two pixels": {
        "last": ("conv", {"kernel": 3, "stride": 4, "channels": 4}, ["input"]),
        "flat": ("flatten", {}, ["last"]),
    },
    "no norm": {"pool": ("global_avg_pool", {}, ["input"])},
    "layer norm": {"pool": ("global_avg_pool", {}, ["input"]), "norm": ("layer_norm", {}, ["pool"])},
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_batch_norm_over_one_value_is_refused_exactly_where_torch_fails(kind: str) -> None:
    graph = graph_of({**NETWORKS[kind], "logits": ("linear", {"channels": 3}, [[*NETWORKS[kind]][-1]])})
    module, failures = lower(graph), 0
    for images, accumulate in itertools.product(range(1, 13), range(1, 13)):
        x, config = torch.zeros(images, 4, 6, 6), SearchConfig(batch_size=images, accumulate=accumulate)
        try:
            backward(lambda x, y: module(x).sum(), (x, torch.zeros(images)), list(module.parameters()), config)
        except ValueError:
            failures += 1
            with pytest.raises(RunError, match=r"search\.(accumulate=1|batch_size=\d+)$") as refused:
                require_statistics(graph, "search", config, 1)
            key, _, value = str(refused.value).rpartition("search.")[2].partition("=")
            require_statistics(graph, "search", config.model_copy(update={key: int(value)}), 1)
        else:
            require_statistics(graph, "search", config, 1)
    assert failures == (0 if kind in ("two pixels", "no norm", "layer norm") else 95)


def test_processes_that_share_statistics_may_have_one_image_each() -> None:
    graph = graph_of({**NETWORKS["vectors"], "logits": ("linear", {"channels": 3}, ["norm"])})
    require_statistics(graph, "retrain", RetrainConfig(batch_size=2), 2)
    with pytest.raises(RunError, match=r"retrain\.batch_size=4"):
        require_statistics(graph, "retrain", RetrainConfig(batch_size=2, sync_batch_norm=False), 2)


def test_only_the_chosen_parameters_get_gradients_and_all_can_again_afterwards() -> None:
    module, config = classifier(), SearchConfig()
    chosen, frozen = list(module.parameters())
    with training_only([chosen], [frozen]):
        backward(training_loss(class_task(), GRAPH, module, config, CPU), batch(5), [chosen], config)
        assert not module.bias.requires_grad
    assert module.weight.grad is not None
    assert module.bias.grad is None
    assert module.bias.requires_grad


def test_clipping_is_element_by_element() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([-3.0, 0.5, 9.0])
    clip_gradients([parameter], None)
    assert parameter.grad.tolist() == [-3.0, 0.5, 9.0]
    clip_gradients([parameter], 2.0)
    assert parameter.grad.tolist() == [-2.0, 0.5, 2.0]


def test_evaluation_counts_every_image_once() -> None:
    module, (x, y) = classifier(), batch(11)
    scores = evaluate(class_task(), module, [(x[:8], y[:8]), (x[8:], y[8:])])
    assert scores.count == 11
    logits = module(x).detach()
    assert scores.loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)))
    assert scores.metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
    assert module.training


def test_recalibrated_statistics_are_plain_means() -> None:
    norm = BatchNorm(4, 1e-5, 0.1)
    with torch.no_grad():
        norm.running_mean.fill_(9.0)
    batches = [batch(16, seed) for seed in range(3)]
    recalibrate(norm, batches)
    assert torch.allclose(norm.running_mean, torch.stack([x.mean(0) for x, _ in batches]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([x.var(0) for x, _ in batches]).mean(0), atol=1e-6)
    assert norm.momentum == 0.1


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:-1", "cuda:99", ""])
def test_a_device_that_is_not_there_is_an_error_that_says_what_to_try(name: str) -> None:
    with pytest.raises(RunError, match=rf"--device {name}: .*cpu"):
        choose_device(name)


def test_processes_of_a_machine_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RunError, match="--device cuda:0: 2 processes run on this machine; cuda gives each one its own"):
        choose_device("cuda:0")


def test_auto_takes_a_device_that_works() -> None:
    assert torch.ones(1, device=choose_device("auto")).item() == 1.0
    assert choose_device("cpu") == CPU
