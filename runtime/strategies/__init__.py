"""How an architecture is searched."""
