"""Exported models at work: what they say of image files, and how often they are right. Nothing here needs torch."""

BATCH = 256  # images at a time, as in the checks of an export: the same sums in the same order
TOP = 3  # classes that are said of an image
