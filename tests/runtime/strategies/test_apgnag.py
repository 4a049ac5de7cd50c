"""APG-NAG against a table worked by hand, a scalar reference and an exact lasso solution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from torch import Tensor
from torch.nn import Parameter

from runtime.strategies.apgnag import APGNAG, soft_threshold

# gradient, S(z), v, gate: start 1, v 0, lr 0.1, gamma 0.01, momentum 0.9, clip 2
GOLDEN = (
    (0.5, 0.949000, -0.051000, 0.903100),
    (-0.2, 0.922100, -0.026900, 0.897890),
    (25.0, 0.696890, -0.225210, 0.494201),
    (1.0, 0.393201, -0.303689, 0.119881),
    (0.0, 0.118881, -0.274320, 0.0),
    (-1.5, 0.149000, -0.097888, 0.060901),
    (-3.0, 0.259901, 0.110901, 0.359711),
    (0.0, 0.358711, 0.098811, 0.447641),
)


def ones(count: int, dtype: torch.dtype = torch.float32) -> Parameter:
    return Parameter(torch.ones(count, dtype=dtype))


def test_golden_table() -> None:
    gate = ones(1)
    optimizer = APGNAG([gate], lr=0.1, gamma=0.01, momentum=0.9, clip=2.0)
    for gradient, prox, v, value in GOLDEN:
        gate.grad = torch.tensor([gradient])
        optimizer.step()
        state = optimizer.state[gate]
        found = (optimizer.proximal_point(gate).item(), state["v"].item(), gate.item())
        assert found == pytest.approx((prox, v, value), abs=1e-6)
        assert optimizer.is_zero(gate).item() is (value == 0)


def scalar_step(
    gate: float, v: float, gradient: float, lr: float, gamma: float, mu: float, clip: float | None, nonnegative: bool
) -> tuple[float, float, float]:
    """One step on one number in plain Python: gate, v, proximal point."""
    if clip is not None:
        gradient = max(-clip, min(clip, gradient))
    z = gate - lr * gradient
    prox = math.copysign(max(abs(z) - lr * gamma, 0.0), z)
    v = prox - gate + mu * v
    gate = prox + mu * v
    return (max(gate, 0.0) if nonnegative else gate), v, prox


finite = st.floats(-5, 5, allow_subnormal=False)


@given(
    start=st.lists(finite, min_size=3, max_size=3),
    gamma=st.lists(st.floats(0, 2), min_size=3, max_size=3),
    gradients=st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=12),
    lr=st.floats(1e-3, 0.5),
    mu=st.floats(0, 0.99),
    clip=st.none() | st.floats(0.1, 3),
    nonnegative=st.booleans(),
)
@settings(max_examples=100)
def test_agrees_with_scalar_python(
    start: list[float],
    gamma: list[float],
    gradients: list[list[float]],
    lr: float,
    mu: float,
    clip: float | None,
    nonnegative: bool,
) -> None:
    gates = Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = APGNAG([gates], lr=lr, momentum=mu, clip=clip, nonnegative=nonnegative)
    optimizer.set_gamma(gates, torch.tensor(gamma, dtype=torch.float64))
    expected = [(value, 0.0, value) for value in start]
    for gradient in gradients:
        gates.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        expected = [
            scalar_step(value, v, g, lr, a, mu, clip, nonnegative)
            for (value, v, _), g, a in zip(expected, gradient, gamma, strict=True)
        ]
    state = optimizer.state[gates]
    found = torch.stack([gates.detach(), state["v"], state["prox"]], dim=1)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def lasso_problem() -> tuple[Tensor, Tensor]:
    """X: (60, 12), y: (60,), float64, from six true coefficients of both signs."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(60, 12))
    truth = np.array([1.5, -2.0, 0.7, 0.0, 0.0, -0.4, 0.0, 0.9, 0.0, 0.0, 0.3, 0.0])
    return torch.from_numpy(x), torch.from_numpy(x @ truth + 0.1 * rng.normal(size=60))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_converges_to_the_exact_lasso_solution(nonnegative: bool) -> None:
    x, y = lasso_problem()
    exact = Lasso(alpha=0.2, fit_intercept=False, positive=nonnegative, tol=1e-14, max_iter=100_000)
    exact.fit(x.numpy(), y.numpy())
    weights = ones(12, torch.float64)
    optimizer = APGNAG([weights], lr=0.1, gamma=0.2, momentum=0.5, clip=None, nonnegative=nonnegative)
    for _ in range(2000):
        weights.grad = x.T @ (x @ weights.detach() - y) / len(y)
        optimizer.step()
    np.testing.assert_allclose(weights.detach().numpy(), exact.coef_, rtol=1e-9, atol=1e-10)
    zero = optimizer.is_zero(weights).numpy()
    np.testing.assert_array_equal(zero, exact.coef_ == 0)
    assert 0 < zero.sum() < 12


def test_without_projection_zero_is_the_proximal_point() -> None:
    gates = Parameter(torch.tensor([0.05, -0.05, 0.5]))
    optimizer = APGNAG([gates], lr=0.1, gamma=1.0, momentum=0.9, nonnegative=False)
    gates.grad = torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(gates.detach(), torch.tensor([-0.045, 0.045, 0.31]))  # carried on by momentum
    assert optimizer.proximal_point(gates).tolist()[:2] == [0, 0]
    assert optimizer.is_zero(gates).tolist() == [True, True, False]


def share_of_zeros(nonnegative: bool) -> float:
    """How often a gate is exactly 0 while its gradient is noise."""
    generator = torch.Generator().manual_seed(0)
    gates = ones(50)
    optimizer = APGNAG([gates], lr=0.1, gamma=0.01, nonnegative=nonnegative)
    zeros = 0.0
    for _ in range(400):
        gates.grad = torch.randn(50, generator=generator)
        optimizer.step()
        zeros += (gates == 0).float().mean().item() / 400
    return zeros


def test_only_the_projection_makes_exact_zeros_under_noise() -> None:
    assert share_of_zeros(nonnegative=True) > 0.1
    assert share_of_zeros(nonnegative=False) < 0.001


def test_projection_keeps_gates_nonnegative() -> None:
    gates = ones(2)
    optimizer = APGNAG([gates], clip=None)
    gates.grad = torch.tensor([100.0, 0.0])
    optimizer.step()
    assert gates[0].item() == 0
    assert gates[1].item() > 0


def test_each_gate_has_its_own_gamma() -> None:
    gates, other = ones(3), ones(2)
    optimizer = APGNAG([gates, other], lr=0.1, gamma=0.5, momentum=0.0)
    optimizer.set_gamma(gates, torch.tensor([0.0, 1.0, 20.0]))
    gates.grad, other.grad = torch.zeros(3), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(gates.detach(), torch.tensor([1.0, 0.9, 0.0]))
    torch.testing.assert_close(other.detach(), torch.tensor([0.95, 0.95]))


def test_gate_without_gradient_dies_after_the_rule_of_thumb() -> None:
    gate = ones(1)
    optimizer = APGNAG([gate], lr=0.1, gamma=1e-2, momentum=0.9)
    steps = 0
    while not optimizer.is_zero(gate):
        gate.grad = torch.zeros(1)
        optimizer.step()
        steps += 1
    assert steps == pytest.approx(109, abs=1)  # (1 - 0.9) / (0.1 * 0.01) = 100, and the momentum's start


def test_parameters_without_gradient_stay() -> None:
    gate = ones(1)
    APGNAG([gate]).step()
    assert gate.item() == 1


def test_updates_stay_in_float32_under_autocast() -> None:
    twins = ones(4), ones(4)
    for gates, enabled in zip(twins, (True, False), strict=True):
        optimizer = APGNAG([gates], gamma=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            for step in range(20):
                gates.grad = torch.full((4,), 1e-3 * step)
                optimizer.step()
        assert {t.dtype for t in (gates, *optimizer.state[gates].values())} == {torch.float32}
    assert torch.equal(*twins)


def test_state_resumes_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(20, 5, generator=generator)
    whole, first, second = ones(5), ones(5), ones(5)

    def run(gates: Parameter, optimizer: APGNAG, rows: Tensor) -> APGNAG:
        for row in rows:
            gates.grad = row.clone()
            optimizer.step()
        return optimizer

    run(whole, APGNAG([whole]), gradients)
    saved = run(first, APGNAG([first]), gradients[:9]).state_dict()
    with torch.no_grad():
        second.copy_(first)
    resumed = APGNAG([second])
    resumed.load_state_dict(saved)
    run(second, resumed, gradients[9:])
    assert torch.equal(whole, second)


def test_closure_is_called_with_gradients_on() -> None:
    gate = ones(1)
    optimizer = APGNAG([gate])

    def closure() -> float:
        loss = (3 * gate).sum()
        (gate.grad,) = torch.autograd.grad(loss, [gate])
        return loss.item()

    assert optimizer.step(closure) == 3.0
    assert gate.item() < 1


def test_soft_threshold_is_two_sided() -> None:
    z = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    torch.testing.assert_close(soft_threshold(z, torch.full((5,), 0.5)), torch.tensor([-1.5, 0.0, 0.0, 0.0, 1.5]))


def test_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="momentum"):
        APGNAG([ones(1)], momentum=1.0)
    with pytest.raises(ValueError, match="float32"):
        APGNAG([Parameter(torch.ones(2, dtype=torch.bfloat16))])
    gates = ones(2)
    optimizer = APGNAG([gates])
    with pytest.raises(ValueError, match="shape"):
        optimizer.set_gamma(gates, torch.ones(3))
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="negative or not a number"):
            optimizer.set_gamma(gates, torch.tensor([0.1, wrong]))


@settings(deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_use_is_the_average_of_what_the_loss_owes_to_a_gate(steps: list[tuple[float, float]]) -> None:
    gate = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = APGNAG([gate], lr=0.1, gamma=0.01, momentum=0.0)
    assert optimizer.use(gate).item() == 0.0
    expected = 0.0
    for value, gradient in steps:
        with torch.no_grad():
            gate.fill_(value)
        gate.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        expected = 0.98 * expected + 0.02 * (value * gradient) ** 2  # before clipping
    assert optimizer.use(gate).item() == pytest.approx(expected, rel=1e-12, abs=1e-300)
