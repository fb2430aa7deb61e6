"""Ways to break the product on purpose: each must turn rows of the scorecard red, or they show nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import shards.files
import shards.reading
from pipelines.checkpoint import Checkpoint, CheckpointStore
from shards.order import EpochOrder

Set = Callable[[Any, str, Any], None]
"""`setattr`, or one that is undone."""

ROWS = {"plain_write": (1,), "no_crc": (6,), "rotate_first": (7,), "seed_per_rank": (3, 4)}
"""Which rows each of them must turn red."""


def apply(name: str, set_: Set = setattr) -> None:
    """Breaks the product in this process.

    Raises:
        ValueError: no such sabotage.
    """
    acts = {
        "plain_write": _plain_write,
        "no_crc": _no_crc,
        "rotate_first": _rotate_first,
        "seed_per_rank": _seed_per_rank,
    }
    if name not in acts:
        raise ValueError(f"--sabotage {name}: one of {', '.join(acts)}")
    acts[name](set_)


def _plain_write(set_: Set) -> None:
    """Files are written where they lie, without fsync and rename."""

    @contextlib.contextmanager
    def write(path: Path) -> Iterator[BinaryIO]:
        with path.open("wb") as file:
            yield file

    @contextlib.contextmanager
    def in_place(path: Path) -> Iterator[Path]:
        yield path

    def save(self: CheckpointStore, checkpoint: Checkpoint) -> Path:
        final = self.folder / checkpoint.name
        final.mkdir(parents=True, exist_ok=True)
        self._write(final, checkpoint)
        shards.files.write_atomic(self.folder / "latest", final.name.encode() + b"\n")
        self._rotate()
        return final

    for name, torn in (("atomic_write", write), ("atomic_path", in_place)):
        whole = getattr(shards.files, name)
        for module in list(sys.modules.values()):
            if getattr(module, name, None) is whole:
                set_(module, name, torn)
    set_(CheckpointStore, "save", save)


class _Equal:
    """Equal to everything."""

    def __ne__(self, other: object) -> bool:
        return False


def _no_crc(set_: Set) -> None:
    """What is read of a shard is not compared with its checksum."""
    set_(shards.reading, "zlib", SimpleNamespace(crc32=lambda data: _Equal()))


def _rotate_first(set_: Set) -> None:
    """Room is made for a checkpoint before it is written."""
    save = CheckpointStore.save

    def pruning(self: CheckpointStore, checkpoint: Checkpoint) -> Path:
        for folder in self.folders()[: 1 - self._keep]:
            shutil.rmtree(folder)
        return save(self, checkpoint)

    set_(CheckpointStore, "save", pruning)


def _seed_per_rank(set_: Set) -> None:
    """Each process shuffles by a seed of its own."""
    begin = EpochOrder.__init__

    def begun(self: EpochOrder, sizes: Any, seed: int, *rest: Any, **more: Any) -> None:
        begin(self, sizes, seed + int(os.environ.get("RANK", "0")), *rest, **more)

    set_(EpochOrder, "__init__", begun)
