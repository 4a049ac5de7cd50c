"""Faults on purpose: file calls that fail or kill, damaged and hostile runs, and every command afterwards."""
