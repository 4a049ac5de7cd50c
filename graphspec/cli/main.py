"""The entry point `graphspec`."""

from __future__ import annotations

from graphspec.shadowing import refuse_shadowed


def main() -> None:
    """Run the command line; SystemExit with the exit code at the end."""
    refuse_shadowed()
    from graphspec.cli.app import run  # not before: it imports from `compiler`

    run()
