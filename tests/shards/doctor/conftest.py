"""A healthy set, and copies of it to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.shards.doctor.sets import made_set


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_set(tmp_path_factory.mktemp("healthy") / "set", rejected=("train-0003",))


@pytest.fixture
def broken(healthy: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(healthy, tmp_path / "set"))
