"""Elaborate: Spec -> Graph."""
