"""The clock of steps: what is not a step's time is left out."""

from __future__ import annotations

import time

import pytest

from pipelines.progress import Clock


def test_pauses_are_no_time_of_steps_and_waiting_is_a_share_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock()
    now += 3
    with clock.waiting():
        now += 1
    with clock.pause():
        now += 100
    assert clock.read() == (4, 0.25)
    now += 2
    assert clock.read() == (2, 0)
