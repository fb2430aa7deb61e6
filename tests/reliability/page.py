"""docs/reliability.md: the rows, and by what and on what they were measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from tests.reliability.row import Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

_HEAD = """# What a run and its samples survive

Written by `{command}` on {date}, in {minutes:.0f} minutes, on {machine}.
All on a CPU: a ViT of 32 pixels and one block on {samples} tiny pictures, trained by the product's own
command in processes of their own, which are killed by real signals and whose files are real. `make test` runs
a short form of each row; a row that misses its goal fails both.

| # | figure | goal | reached | |
|---|---|---|---|---|
"""

_TAIL = """
How it is done: `tests/reliability/`. A server process imports everything once and forks the processes that
train; a kill in a step of a save is a SIGKILL that the process sends to itself right before that system call
(before a write: in the middle of it). What the rows lean on can be broken on purpose, and then they fail:
`python -m tests.reliability --sabotage plain_write` (files written without fsync and rename: row 1), `no_crc`
(no checksum when a shard is read: row 6), `rotate_first` (old checkpoints removed before the new one is
written: row 7), `seed_per_rank` (each process shuffles by itself: rows 3 and 4).

What is trusted and what is not: [security.md](security.md).
"""


def write_page(rows: Sequence[Row], command: str, seconds: float) -> None:
    """Writes the page, whole."""
    date = datetime.now(UTC).date().isoformat()
    head = _HEAD.format(command=command, date=date, minutes=seconds / 60, machine=machine(), samples=160)
    lines = []
    for row in rows:
        reached = "yes" if row.reached else "**no**"
        lines.append(f"| {row.number} | {row.figure} | {row.goal} | {reached} | {_cell(row.text)} |")
    PAGE.write_text(head + "\n".join(lines) + "\n" + _TAIL)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def machine() -> str:
    """In words: cores, memory, versions."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{cores} core{'s' * (cores > 1)} ({platform.machine()}) and {memory:.0f} GiB of memory, "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    )
