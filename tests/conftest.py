"""Shared fixtures. `SHARED_DATA` is the one setting that says where the small real face sets lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(
    os.environ.get("FACEPRIOR_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real face sets; a test that needs it is skipped where it is not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real faces at {SHARED_DATA}: set FACEPRIOR_SHARED_DATA")
    return SHARED_DATA
