"""What a run reads: a group of its settings; `pipelines.config` composes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def free(default: Any) -> Any:
    """A field that cannot change results, so that a resumed run may change it."""
    return field(default=default, metadata={"free": True})


def fold_of(text: str) -> tuple[int, int]:
    """ "2/5" as (2, 5): number of the fold from 1, and how many there are.

    Raises:
        ValueError: not of this form, or no such fold.
    """
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) != 1:
        return int(number), int(count)
    raise ValueError(f"data.fold={text!r}: write 1/5 to 5/5 for five folds")


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how.

    Attributes:
        shards: folders of shard sets, comma-separated; "" = the embedded default of rendered faces. A run
            that goes on may find the same data elsewhere: it is known by its hash (`RunDir.check_data`).
        window_shards: shards shuffled together.
        order: "epoch" (each sample once in an epoch) or "weighted" (drawn with replacement, each expression
            as often as every other; samples without one never).
        num_workers: loader processes for each process; −1 = chosen by the number of cores.
        fold: cross-validation by person: "2/5" holds out the second of five folds of train and val together,
            and learns from the others; "" = the splits as they are. See `pipelines.folds`.
        damaged: what to do about samples that cannot be read: "stop" at the first; or "quarantine": before a
            run begins read all, leave those out, and list them in its damaged.json.
        max_damaged: share of a split that may be left out so.

    Raises:
        ValueError: a value that cannot be used.
    """

    shards: str = free("")
    order: str = "epoch"
    window_shards: int = 16
    num_workers: int = free(-1)
    fold: str = ""
    damaged: str = free("stop")
    max_damaged: float = free(0.01)

    def __post_init__(self) -> None:
        if self.fold:
            fold_of(self.fold)
        if self.damaged not in ("stop", "quarantine"):
            raise ValueError(f"data.damaged={self.damaged!r}: use stop or quarantine")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"data.max_damaged={self.max_damaged}: a share, from 0 to 1")
