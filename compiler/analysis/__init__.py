"""Analyses: what a graph costs, what has to stay, how two graphs differ. They change nothing."""
