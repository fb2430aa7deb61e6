"""What a row of the scorecard says, and how much of it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.forge import Forge


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        number: of the row.
        figure: what is counted.
        goal: what it should be.
        reached: whether it is.
        text: the figures, and the reason where the goal is not reached.
    """

    number: int
    figure: str
    goal: str
    reached: bool
    text: str


@dataclass(frozen=True)
class Scale:
    """How much is done: these are the figures of `make reliability`.

    Attributes:
        folder: to work in; everything in it may be overwritten.
        forge: makes processes; what is sabotaged is sabotaged in them.
        kills: of training processes, all layouts together.
        draws: of samples.
        fuzz: runs of parsers.
        short: a small choice of the cases that cost seconds each, for `make test`.
    """

    folder: Path
    forge: Forge
    kills: int = 200
    draws: int = 1_000_000
    fuzz: int = 1_000_000
    short: bool = False


Measure = Callable[[Scale], list[Row]]


def verdict(problems: list[str], text: str) -> str:
    """The text of a row: its figures, and behind them what went wrong."""
    if not problems:
        return text
    shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    return f"{text}. Not reached: {shown}"
