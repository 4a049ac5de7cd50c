"""Exported models at work: what they say of image files, and how often they are right. Nothing here needs torch."""

import math
from collections.abc import Sequence

TOP = 3  # classes that are said of an image


def usual_batch(sizes: Sequence[int]) -> int:
    """How many images of these height and width are taken at a time, as in the checks of an export: sums in one order.

    256 of 32 x 32 pixels, fewer of larger ones, which would take gigabytes and up to four times as long.
    """
    return max(1, min(256, 2**18 // math.prod(sizes)))
