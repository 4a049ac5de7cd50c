"""TensorBoard event files, each record written at once and in this thread, so that a full disk is an error here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import histogram

from runtime.rundir.files import append, write_bytes

_BINS = 64


class EventLog:
    """The events of one job from `first_step` on; TensorBoard drops what earlier files say of these steps."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # TensorBoard reads the files of a folder in the order of their names. A job that starts twice at one step has
        # nothing to keep from the first time.
        self.path = folder / f"events.out.tfevents.{first_step:010d}"
        write_bytes(self.path, b"")
        start = Event(step=first_step, session_log=SessionLog(status=SessionLog.START))
        self._write([Event(file_version="brain.Event:2"), start])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of each name."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write([Event(step=step, summary=Summary(value=points))])

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Add the distribution of the finite ones of `values` (any shape) to the histograms of `name`."""
        numbers = values.detach().double().cpu().numpy()
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            summary = histogram(name, numbers, _BINS)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            self._write([Event(step=step, summary=summary)])

    def _write(self, events: list[Event]) -> None:
        records = BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        append(self.path, records.getvalue())
