"""Measurements: read in time and all together, a line where one is asked for, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines import measurements
from pipelines.measurements import Measurements
from pipelines.processes import Processes
from pipelines.progress import Plan, ProgressLine
from pipelines.rundir import RunDir, read_metrics
from shards.stream import Batch, plan_layout


def batch(key: str) -> Batch:
    nothing = torch.zeros(1)
    return Batch([key], nothing, nothing, None, 1)  # type: ignore[arg-type]


def measure(path: Path, log_every: int) -> Measurements:
    plan = Plan(1000, 64, plan_layout(16, 0, 0, 1))
    return Measurements(plan, log_every, Processes(), RunDir(path), ProgressLine(1000, shown=False))


def add(measured: Measurements, step: int, nonfinite: float = 0.0, device: str = "cpu") -> None:
    logs = {"loss": torch.full((), float(step), device=device)}
    logs["nonfinite"] = torch.full((), nonfinite, device=device)
    measured.add(step, logs, 0.1, [batch(f"key-{step}")])


def test_a_line_is_the_mean_of_its_steps_however_often_they_are_read(tmp_path: Path) -> None:
    for name, saves in (("plain", ()), ("saved", (3, 10, 11, 20, 21))):
        (tmp_path / name).mkdir()
        measured = measure(tmp_path / name, log_every=10)
        for step in range(1, 26):
            add(measured, step)
            measured.read_all() if step in saves else measured.read_due()
        measured.read_all()
        measured.write_line()
        rows = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / name)]
        assert rows == [(10, 5.5), (20, 15.5), (25, 23.0)]


def test_few_lines_do_not_keep_measurements_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "_MAX_LAG", 5)
    measured = measure(tmp_path, log_every=200)
    for step in range(1, 302):
        add(measured, step)
        measured.read_due()
        assert len(measured._pending) <= 5
    assert [row["step"] for row in read_metrics(tmp_path)] == [200]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_newest_step_is_not_waited_for(tmp_path: Path) -> None:
    """A copy asked for now would come behind everything that the device was asked for before."""
    measured = measure(tmp_path, log_every=1)
    add(measured, 1, device="cuda")
    assert measured.read_due() == 0 and not read_metrics(tmp_path)
    torch.cuda._sleep(2_000_000_000)  # a second of the device, or about
    add(measured, 2, device="cuda")
    measured.read_due()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert not torch.cuda.current_stream().query()  # it is still busy with the second step
    measured.read_all()
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1, 2]


def test_masked_steps_are_counted_named_and_left_out_of_the_mean(tmp_path: Path) -> None:
    measured = measure(tmp_path, log_every=4)
    masked = 0
    for step in range(1, 5):
        add(measured, step, nonfinite=float(step == 3))
        masked += measured.read_due()
    masked += measured.read_all()
    (row,) = read_metrics(tmp_path)
    assert masked == 1 and row["nonfinite"] == 1 and row["loss"] == pytest.approx((1 + 2 + 4) / 3)
    assert json.loads((tmp_path / "nonfinite-step-00000003-rank-0.json").read_text())["keys"] == ["key-3"]
