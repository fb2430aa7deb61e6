"""What a person sees while a run goes on, and where its time goes."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

_WAIT_ADVICE = 0.10


@dataclass
class Clock:
    """Time since it was last read, and how much of it was spent waiting for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

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
