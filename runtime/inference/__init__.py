"""Exported models at work: what they say of image files, and how often they are right. Nothing here needs torch."""
