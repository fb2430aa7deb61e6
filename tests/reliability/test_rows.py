"""Every row of the scorecard in its short form, and that it can fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipelines.launched import environment
from tests.reliability import damage, draws
from tests.reliability.__main__ import MEASURES
from tests.reliability.forge import Forge
from tests.reliability.row import Scale
from tests.reliability.sabotage import ROWS, apply


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as made:
        yield made


@pytest.fixture
def scale(forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scale:
    monkeypatch.chdir(tmp_path)
    return Scale(tmp_path, forge, kills=5, draws=5000, fuzz=5000, short=True)


@pytest.mark.parametrize("rows", MEASURES, ids=lambda rows: "+".join(map(str, rows)))
def test_row_reaches_its_goal(rows: tuple[int, ...], scale: Scale) -> None:
    found = MEASURES[rows](scale)
    assert tuple(row.number for row in found) == rows
    assert [row.text for row in found if not row.reached] == []


@pytest.mark.slow
def test_more_kills(scale: Scale) -> None:
    found = MEASURES[1, 2, 3](replace(scale, kills=25, short=False))
    assert [row.text for row in found if not row.reached] == []


def test_an_order_seeded_per_rank_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    apply("seed_per_rank", monkeypatch.setattr)
    assert len(draws.disagreements()) > 20


def test_unchecked_reading_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert damage.silent(tmp_path / "checked") == []
    apply("no_crc", monkeypatch.setattr)
    assert damage.silent(tmp_path / "unchecked")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_each_sabotage_turns_its_rows_red(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.reliability", "--sabotage", name]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    red = {int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("NOT")}
    assert red >= set(ROWS[name])
