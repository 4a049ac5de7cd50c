"""Whether an imported network computes what its source does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from compiler.errors import GraphspecError

TOLERANCE = 1e-5  # of the largest output
BATCHES = (2, 3)
END: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x, "softmax": lambda x: x.softmax(1), "log_softmax": lambda x: x.log_softmax(1),
    "sigmoid": torch.sigmoid,
}  # fmt: skip


def require_equal(
    source: Callable[[Tensor], Tensor], module: nn.Module, shape: tuple[int, ...], end: str = ""
) -> float:
    """The largest difference of the outputs at two batch sizes, over the largest output.

    Where a torch module differs by more than `TOLERANCE`, both are computed again in float64, where rounding cannot be
    the reason. GraphspecError with the first value that differs by more.
    """
    try:
        return _difference(source, module, shape, end, torch.float32)
    except GraphspecError as error:
        if not isinstance(source, nn.Module):
            raise
        exact, ours = copy.deepcopy(source).double(), copy.deepcopy(module).double()
        try:
            return _difference(exact, ours, shape, end, torch.float64)
        except RuntimeError:  # some modules compute in float32 alone
            raise error from None


@torch.no_grad()
def _difference(
    source: Callable[[Tensor], Tensor], module: nn.Module, shape: tuple[int, ...], end: str, kind: torch.dtype
) -> float:
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for batch in BATCHES:
        images = torch.randn(batch, *shape, generator=generator).to(kind)
        wanted, found = source(images.clone()), END[end](module.eval()(images))
        wanted = wanted.reshape(found.shape) if wanted.numel() == found.numel() else wanted
        if wanted.shape != found.shape:
            raise GraphspecError(f"the source gives {list(wanted.shape)}, the spec {list(found.shape)}")
        error = (wanted - found).abs() / wanted.abs().max().clamp_min(torch.finfo(kind).tiny)
        worst = max(worst, float(error.max()))
        wrong = (~(error <= TOLERANCE)).nonzero().tolist()
        if wrong:
            place = tuple(wrong[0])
            raise GraphspecError(
                f"the imported network is another one than its source: output {list(place)} of {batch} images is "
                f"{found[place]:.6g} instead of {wanted[place]:.6g}\n  try: report it with the model"
            )
    return worst
