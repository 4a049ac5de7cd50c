"""How a job is run. It imports no torch, so that wrong options are refused before anything is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobOptions:
    """How to run a job; nothing here changes its result."""

    resume: bool = False
    overwrite: bool = False
    device: str = "auto"
    trust_code: bool = False
    quiet: bool = False
    silent: bool = False  # no warnings either
    fit_threads: bool = False  # choose how many threads torch computes with; otherwise they stay as they are
    recalled: str = ""  # what the job was given by the run and not by this command, for people
