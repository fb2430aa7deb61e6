"""How far a run goes and has come, where its time goes, and what a person sees of that."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from shards.stream import Layout

_WAIT_ADVICE = 0.10


@dataclass(frozen=True)
class Plan:
    """How far a run goes.

    Attributes:
        total_steps: of the whole run.
        epoch_size: samples to an epoch.
        layout: this process's share of a step.
    """

    total_steps: int
    epoch_size: int
    layout: Layout

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps."""
        return step * self.layout.global_batch_size / self.epoch_size


@dataclass
class Progress:
    """How far a run has come: this is all that resuming needs, with the tensors.

    Attributes:
        step: optimiser steps done.
        position: samples of those steps.
        skipped: updates that were masked because something was not finite.
        stopped_by: the signal that ended it before its last step, −1 for `train.stop_at_step`, else 0.
    """

    step: int = 0
    position: int = 0
    skipped: int = 0
    stopped_by: int = 0


@dataclass
class Clock:
    """Time that steps took since it was last read, and how much of it was spent waiting for data."""

    started: float = field(default_factory=lambda: time.perf_counter())
    waited: float = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the block as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the block out: saving and evaluating are no time of steps."""
        start = time.perf_counter()
        yield
        self.started += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """(seconds since the last reading, share of them spent waiting for data); starts anew."""
        now = time.perf_counter()
        seconds = max(now - self.started, 1e-9)
        share = min(self.waited / seconds, 1.0)
        self.started, self.waited = now, 0.0
        return seconds, share


class ProgressLine:
    """One line on a terminal that is written over; on a log file, a line at each report."""

    def __init__(self, total_steps: int, shown: bool) -> None:
        """`total_steps`: of the whole run; `shown`: False in all processes but one."""
        self._total = total_steps
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        self._hungry = 0
        self._seconds_per_step: float | None = None

    def report(
        self, step: int, epoch: float, values: dict[str, float], steps: int, seconds: float, data_wait: float
    ) -> None:
        """Shows where the run is.

        Args:
            step, epoch: reached.
            values: loss, lr, images_per_s, in this order.
            steps, seconds: how many steps took how long since the last report.
            data_wait: share of that time spent waiting for data.
        """
        if not self._shown:
            return
        pace = seconds / max(steps, 1)
        smooth = self._seconds_per_step
        self._seconds_per_step = pace if smooth is None else 0.7 * smooth + 0.3 * pace
        left = (self._total - step) * self._seconds_per_step
        shown = "  ".join(f"{name} {_number(value)}" for name, value in values.items())
        line = (
            f"step {step}/{self._total}  epoch {epoch:.2f}  {shown}  "
            f"data wait {data_wait:.0%}  ETA {duration(left)}"
        )
        self._write(line, over=True)
        self._hungry = self._hungry + 1 if data_wait > _WAIT_ADVICE else 0
        if self._hungry == 3:
            self.say(
                f"{data_wait:.0%} of the time goes into waiting for data: raise data.num_workers, or put the "
                "shards on a faster disk"
            )

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._shown:
            self._write(text, over=False)

    def _write(self, text: str, over: bool) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K" + text + ("" if over else "\n"))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """ "3:07", "2:05:00", "4d 02:11"."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
