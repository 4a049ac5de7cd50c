"""Whether an imported network computes what its source does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compiler.errors import GraphspecError

TOLERANCE = 1e-5  # of the largest output
BATCHES = (2, 3)
FAINT = 1e-3  # what differs between images over the largest output, below which float32 may not see a difference
FAINTEST = 1e-8  # the same for float64
END: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x, "softmax": lambda x: x.softmax(1), "log_softmax": lambda x: x.log_softmax(1),
    "sigmoid": torch.sigmoid,
}  # fmt: skip


class Comparison(NamedTuple):
    """How two networks agree: the largest difference of their outputs, and how far outputs depend on the image, which
    is the smallest share of the largest output that differs between images.
    """

    difference: float
    spread: float
    kind: torch.dtype

    @property
    def blind(self) -> bool:
        """Whether outputs depend on the image by less than this arithmetic can tell."""
        return self.spread < (FAINT if self.kind is torch.float32 else FAINTEST)


def require_equal(
    source: Callable[[Tensor], Tensor], module: nn.Module, shape: tuple[int, ...], end: str = ""
) -> Comparison:
    """Compare the outputs at two batch sizes; a difference counts over the largest output.

    Where a torch module differs by more than `TOLERANCE`, both are computed again in float64, where rounding cannot be
    the reason. So they are where outputs hardly depend on the image, as those of deep networks that nobody trained:
    there a difference counts over what differs between images. GraphspecError with the first value that differs by
    more.
    """
    refused = None
    try:
        found = _compared(source, module, shape, end, torch.float32)
    except GraphspecError as error:
        refused = error
    if isinstance(source, nn.Module) and (refused or found.blind):
        exact, ours = copy.deepcopy(source).double(), copy.deepcopy(module).double()
        with suppress(RuntimeError):  # some modules compute in float32 alone
            return _compared(exact, ours, shape, end, torch.float64)
    if refused:
        raise refused
    return found


@torch.no_grad()
def _compared(
    source: Callable[[Tensor], Tensor], module: nn.Module, shape: tuple[int, ...], end: str, kind: torch.dtype
) -> Comparison:
    """Compare in this arithmetic."""
    generator, worst, least = torch.Generator().manual_seed(0), 0.0, 1.0
    for batch in BATCHES:
        images = torch.randn(batch, *shape, generator=generator).to(kind)
        wanted, found = source(images.clone()), END[end](module.eval()(images))
        wanted = wanted.reshape(found.shape) if wanted.numel() == found.numel() else wanted
        if wanted.shape != found.shape:
            raise GraphspecError(f"the source gives {list(wanted.shape)}, the spec {list(found.shape)}")
        largest, spread = wanted.abs().max(), (wanted - wanted.mean(0)).abs().max()
        least = min(least, float(spread / largest.clamp_min(torch.finfo(kind).tiny)))
        scale = largest if kind is torch.float32 or least >= FAINT else spread.maximum(FAINTEST * largest)
        error = (wanted - found).abs() / scale.clamp_min(torch.finfo(kind).tiny)
        worst = max(worst, float(error.max()))
        wrong = (~(error <= TOLERANCE)).nonzero().tolist()
        if wrong:
            place = tuple(wrong[0])
            raise GraphspecError(
                f"the imported network is another one than its source: output {list(place)} of {batch} images is "
                f"{found[place]:.6g} instead of {wanted[place]:.6g}\n  try: report it with the model"
            )
    return Comparison(worst, least, kind)
