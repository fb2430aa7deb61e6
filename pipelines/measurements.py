"""What steps measure: copied from the device behind each, read later, averaged into lines of metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipelines.processes import Processes
from pipelines.progress import Clock, Plan, ProgressLine
from pipelines.rundir import RunDir
from shards.files import write_atomic
from shards.stream import Batch

_MAX_LAG = 50  # steps after which it is noticed at the latest that one was not finite


@dataclass
class _Measured:
    """One step's measurements, on their way to the CPU, and its keys."""

    step: int
    names: list[str]
    values: torch.Tensor
    arrived: torch.Event | None
    lr: float
    keys: list[str]


class Measurements:
    """Measurements of the steps since the last line of metrics, and the clock of these steps."""

    def __init__(
        self, plan: Plan, log_every: int, processes: Processes, run: RunDir, line: ProgressLine
    ) -> None:
        """`log_every`: steps to a line of metrics.jsonl, however often they are read."""
        self.clock = Clock()
        self._plan, self._log_every = plan, log_every
        self._processes, self._run, self._line = processes, run, line
        self._pending: list[_Measured] = []
        self._read: list[_Measured] = []

    def add(self, step: int, logs: Mapping[str, torch.Tensor], lr: float, batches: Sequence[Batch]) -> None:
        """Takes the measurements of a step, which the device may still be computing.

        They are copied behind that step and before the next: who reads them does not wait for the next one.
        """
        values = torch.stack([value.float() for value in logs.values()])
        copied = values.to("cpu", non_blocking=True)
        arrived = None if values.device.type == "cpu" else torch.Event(values.device)
        if arrived is not None:
            arrived.record()
        keys = [key for batch in batches for key in batch.keys]
        self._pending.append(_Measured(step, list(logs), copied, arrived, lr, keys))

    def read_due(self) -> int:
        """Reads the steps that end a line, or are many, while the device is at the newest one.

        Returns:
            How many updates were masked in the steps that were read.
        """
        under_way = sum(measured.arrived is not None for measured in self._pending[-1:])
        done = self._pending[: len(self._pending) - under_way]
        if done and (done[-1].step % self._log_every == 0 or len(done) >= _MAX_LAG):
            return self._read_first(len(done))
        return 0

    def read_all(self) -> int:
        """Reads every step, for which it waits; returns how many updates were masked in them."""
        return self.read_due() + self._read_first(len(self._pending))

    def write_line(self) -> None:
        """The mean of what was read since the last line, if anything was, to file and terminal."""
        if not self._read:
            return
        newest = self._read[-1]
        names, step = newest.names, newest.step
        values = torch.stack([measured.values for measured in self._read]).double()
        self._read = []
        masked = values[:, names.index("nonfinite")] > 0
        kept = values[~masked] if bool((~masked).any()) else values
        row = dict(zip(names, self._processes.mean(kept.mean(0)).tolist(), strict=True))
        row["nonfinite"] = int(masked.sum())
        seconds, data_wait = self.clock.read()
        global_batch_size = self._plan.layout.global_batch_size
        images_per_s = len(values) * global_batch_size / seconds
        facts = {"lr": newest.lr, "images_per_s": round(images_per_s, 2), "data_wait": round(data_wait, 4)}
        epoch, position = self._plan.epoch(step), step * global_batch_size
        self._run.log("train", step, {"epoch": round(epoch, 6), "position": position, **row, **facts})
        shown = {"loss": row["loss"], "lr": newest.lr, "samples/s": images_per_s}
        self._line.report(step, epoch, shown, len(values), seconds, data_wait)

    def _read_first(self, count: int) -> int:
        """Reads the first `count` pending steps; they become a line if they end one."""
        taken, self._pending = self._pending[:count], self._pending[count:]
        if not taken:
            return 0
        if taken[-1].arrived is not None:
            taken[-1].arrived.synchronize()
        self._read += taken
        masked = [measured for measured in taken if measured.values[measured.names.index("nonfinite")] > 0]
        for measured in masked:
            self._save_keys(measured)
        if taken[-1].step % self._log_every == 0:
            self.write_line()
        return len(masked)

    def _save_keys(self, measured: _Measured) -> None:
        """Keys of a batch that was not finite, for a look at its images: each process writes its own."""
        name = f"nonfinite-step-{measured.step:08d}-rank-{self._processes.rank}.json"
        data = {"step": measured.step, "keys": measured.keys}
        write_atomic(self._run.path / name, json.dumps(data).encode())
