"""The learning rate for a network: what `graphspec lr` does, as a function."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.language.overrides import Overrides
from graphspec import api
from runtime.jobs.options import JobOptions
from runtime.rundir.directory import Opened, RunDir

if TYPE_CHECKING:
    from runtime.jobs.run_rates import Rates


def find_rate(target: api.Target = None, *, overrides: Overrides = (), **options: Any) -> Rates:
    """Try growing learning rates on the network of a run or a spec file; nothing is kept.

    `options` are those of `runtime.jobs.options.JobOptions`.
    """
    from runtime.jobs.run_rates import run_rates  # and with it torch

    job = JobOptions(**options)
    if target is None or isinstance(target, RunDir) or Path(target).suffix not in api.SUFFIXES:
        return run_rates(api.open_run(target, overrides), job)
    spec, graph = api.load(target, overrides)
    with tempfile.TemporaryDirectory(prefix="graphspec-lr-") as folder:
        return run_rates(Opened(RunDir(Path(folder)), spec, graph), job)
