"""The whole scorecard: python -m tests.reliability [--rows 1,7] [--kills N] [--draws N] [--fuzz N] [--short].

Writes docs/reliability.md when all rows were run in full; exits with 1 where one misses its goal.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.reliability import damage, draws, faults, fuzz, hostile, kills, page, together, versions
from tests.reliability.forge import Forge
from tests.reliability.row import Measure, Row, Scale
from tests.reliability.sabotage import ROWS, apply

MEASURES: dict[tuple[int, ...], Measure] = {
    (1, 2, 3): kills.measure,
    (4,): draws.layouts,
    (5,): draws.resumes,
    (6,): damage.shards,
    (7,): damage.checkpoints,
    (8,): faults.measure,
    (9,): hostile.measure,
    (10,): fuzz.measure,
    (11,): together.evaluations,
    (12,): together.conflicts,
    (13,): versions.measure,
}


def main(words: Sequence[str]) -> int:
    """Runs the rows that are asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--rows", default="", help="numbers, comma-separated; all if not given")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="as in make test")
    parser.add_argument("--sabotage", default="", choices=("", *ROWS), help="break it: the rows must fail")
    asked = parser.parse_args(words)
    short = asked.short or bool(asked.sabotage)
    numbers = [int(number) for number in asked.rows.split(",") if number]
    wanted = set(numbers or ROWS.get(asked.sabotage, [n for group in MEASURES for n in group]))
    torch.set_num_threads(1)
    if asked.sabotage:
        apply(asked.sabotage)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reliability-") as name, Forge(asked.sabotage) as forge:
        os.chdir(name)
        sizes = {"kills": (5, 200), "draws": (5000, 1_000_000), "fuzz": (10_000, 1_000_000)}
        chosen = {size: getattr(asked, size) or defaults[not short] for size, defaults in sizes.items()}
        rows: list[Row] = []
        for group, measure in MEASURES.items():
            if not wanted & set(group):
                continue
            place = Path(name) / f"rows-{group[0]}"
            place.mkdir()
            began = time.monotonic()
            rows += measure(Scale(place, forge, **chosen, short=short))
            for row in rows[-len(group) :]:
                print(f"{'ok ' if row.reached else 'NOT'} {row.number:2} {row.figure}: {row.text}")
            print(f"       {time.monotonic() - began:.0f} s", flush=True)
        os.chdir("/")
    if not (words or short):
        page.write_page(rows, "make reliability", time.monotonic() - started)
    return 0 if all(row.reached for row in rows if row.number in wanted) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
