"""Jobs in several processes: all results, whatever becomes of a process."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.workers import Died, num_cores, run_jobs


def open_square(deadly: tuple[int, ...] = ()) -> Callable[[int, Callable[[int], None]], int]:
    def square(job: int, report: Callable[[int], None]) -> int:
        for _ in range(job):
            report(1)
        if job in deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if job < 0:
            raise ValueError(f"no square of {job}")
        return job * job

    return square


def test_every_result_comes_once_and_progress_ends_at_all() -> None:
    seen: list[int] = []
    results = dict(run_jobs(open_square, [3, 1, 4, 1, 5], 2, seen.append))
    assert results == {0: 9, 1: 1, 2: 16, 3: 1, 4: 25} and seen[-1] == 14


def test_jobs_that_bring_processes_down_are_found_and_the_others_done() -> None:
    jobs = [3, 7, 4, 8, 5, 6]
    results = dict(run_jobs(functools.partial(open_square, (7, 8)), jobs, 2, alone=lambda job: job))
    assert results == {0: 9, 1: Died(7), 2: 16, 3: Died(8), 4: 25, 5: 36}


def test_what_a_job_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="no square of -1"):
        list(run_jobs(open_square, [1, -1, 2], 2))


def test_cores_are_those_granted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert num_cores() == 3
