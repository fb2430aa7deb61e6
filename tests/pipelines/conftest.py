"""Shards and one reference run, made once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.metrics import bootstrap
from tests.pipelines.tiny import train
from tests.shards.faces import build_smooth


@pytest.fixture(scope="session")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 90 training and 30 held-out pictures."""
    return build_smooth(tmp_path_factory.mktemp("smooth"))


@pytest.fixture(scope="session")
def finished(smooth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted: 23 steps."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parent)
        assert train(smooth, run) == 0
    return run


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of figures that do not look at their intervals, which take most of the time."""
    monkeypatch.setattr(
        "pipelines.scores.bootstrap", lambda figure, groups, _, seed: bootstrap(figure, groups, 5, seed)
    )


@pytest.fixture(autouse=True)
def no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report takes longer than the trainings of most tests; one that looks at it is marked `reports`."""
    if request.node.get_closest_marker("reports") is None:
        monkeypatch.setattr("pipelines.report.write_report", lambda runs: runs[0] / "report.html")


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write runs/<task>/latest below the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
