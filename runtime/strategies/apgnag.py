"""APG-NAG: the optimizer that drives gates to exactly zero; `runtime.strategies.penalties` says how hard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

REMEMBERS = 0.98  # share of `use` that a step keeps: it averages about 50 steps


class APGNAG(torch.optim.Optimizer):
    """Accelerated proximal gradient in the form of Nesterov's method, for `min G(gates) + sum_i gamma_i * |gates_i|`.

    With learning rate eta, momentum mu and the gradient clipped element by element to [-clip, clip], step t is

        z(t) = gates(t-1) - eta * clipped grad G(gates(t-1))                    (equation 6)
        v(t) = S_{eta*gamma}(z(t)) - gates(t-1) + mu * v(t-1)                   (equation 7)
        gates(t) = S_{eta*gamma}(z(t)) + mu * v(t)                              (equation 8)
        S_a(z)_i = sign(z_i) * max(|z_i| - a, 0)

    followed, with `nonnegative`, by the projection gates(t) <- max(gates(t), 0). S(z(t)) is the *proximal point*. The
    projection is what makes gates exactly zero: without it a gate whose proximal point is 0 still moves by mu * v, so
    there a gate counts as zero when its proximal point is (`is_zero`). The momentum is neither projected nor reset, so
    a gate at zero may come back while its edge is still computed.

    State per parameter, all tensors of the parameter's shape: `v` (momentum), `prox` (the last proximal point; before
    the first step the parameter's value), `gamma` (sparsity weight of each gate, see `set_gamma`) and `use` (what the
    loss owes to each gate: the moving average of (gates * grad G)^2, Molchanov et al. 2019, "Importance estimation").
    Parameters are float32 (or float64); the update runs in that type under autocast too. There is no weight decay.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 0.1,
        gamma: float = 1e-3,
        momentum: float = 0.9,
        clip: float | None = 2.0,
        nonnegative: bool = True,
    ) -> None:
        if lr < 0 or gamma < 0 or not 0 <= momentum < 1 or (clip is not None and clip <= 0):
            raise ValueError(
                f"needs lr >= 0, gamma >= 0, 0 <= momentum < 1 and clip > 0; found {lr}, {gamma}, {momentum}, {clip}"
            )
        defaults = {"lr": lr, "gamma": gamma, "momentum": momentum, "clip": clip, "nonnegative": nonnegative}
        super().__init__([{"params": [*params]}], defaults)  # torch takes a group without parameters, but no empty list

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, whose state is made at once; ValueError if one is narrower than float32."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            if param.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"gates are float32 or float64, found {param.dtype}")
            value = param.detach()
            self.state[param] = {
                "v": torch.zeros_like(value),
                "prox": value.clone(),
                "gamma": torch.full_like(value, group["gamma"]),
                "use": torch.zeros_like(value),
            }

    @torch.no_grad()
    def set_gamma(self, param: Parameter, gamma: Tensor) -> None:
        """Give every element its sparsity weight, best from the CPU; ValueError if one is negative or shapes differ."""
        if gamma.shape != param.shape:
            raise ValueError(f"gamma has shape {tuple(gamma.shape)}, its parameter {tuple(param.shape)}")
        if not bool((gamma >= 0).all()):
            raise ValueError("a sparsity weight is negative or not a number")
        self.state[param]["gamma"].copy_(gamma, non_blocking=True)

    def proximal_point(self, param: Parameter) -> Tensor:
        """S(z) of the last step, of the parameter's shape; before the first step the value the parameter had."""
        prox: Tensor = self.state[param]["prox"]
        return prox

    def use(self, param: Parameter) -> Tensor:
        """How much of the loss depends on each element, of the parameter's shape; before the first step 0."""
        use: Tensor = self.state[param]["use"]
        return use

    def is_zero(self, param: Parameter) -> Tensor:
        """Which elements count as zero (bool, the parameter's shape): exact zeros, see the class for which number."""
        nonnegative = next(g["nonnegative"] for g in self.param_groups if any(p is param for p in g["params"]))
        return param.detach() == 0 if nonnegative else self.proximal_point(param) == 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # overloads
        """One update of every parameter that has a gradient; gives what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        return loss

    def _update(self, param: Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        state, mu = self.state[param], group["momentum"]
        state["use"].lerp_((param * grad).square(), 1 - REMEMBERS)
        if group["clip"] is not None:
            grad = grad.clamp(-group["clip"], group["clip"])
        z = param - group["lr"] * grad
        prox = soft_threshold(z, group["lr"] * state["gamma"])
        state["v"].mul_(mu).add_(prox - param)
        state["prox"].copy_(prox)
        param.copy_(prox + mu * state["v"])
        if group["nonnegative"]:
            param.clamp_(min=0)


def soft_threshold(z: Tensor, threshold: Tensor) -> Tensor:
    """`sign(z) * max(|z| - threshold, 0)`, element by element: the proximal operator of the weighted L1 norm."""
    return z.sign() * (z.abs() - threshold).clamp(min=0)
