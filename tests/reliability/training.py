"""One tiny training in several lives: started, ended in some way, started again by the same command."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.checkpoint import CheckpointError, CheckpointStore, read_checkpoint
from tests.pipelines.launched import workplace
from tests.pipelines.tiny import weights
from tests.reliability.forge import Child, end_together
from tests.reliability.row import Scale

SHARDS = "smooth"
"""Folder of the training's shards."""

EPOCH = 160
"""Samples in them."""

COMMAND = "tests.reliability.victims:command"


@dataclass
class Training:
    """A run directory and the command that fills it.

    What it drew is known of lives that were ended by `Life.end`.

    Attributes:
        scale: where and by what processes are made.
        name: of the run directory.
        world_size: processes.
        settings: beyond those of tiny.yaml.
        drawn: step -> rank -> keys of the micro-batches, of the life that made that step last.
    """

    scale: Scale
    name: str
    world_size: int = 1
    settings: Sequence[str] = ()
    drawn: dict[int, dict[int, list[list[str]]]] = field(default_factory=dict)
    _lives: int = 0

    @property
    def folder(self) -> Path:
        return workplace(self.scale.folder)

    @property
    def run(self) -> Path:
        return self.folder / self.name

    def start(
        self, *more: str, trap: Mapping[str, Any] | None = None, call: str = COMMAND, world_size: int = 0
    ) -> Life:
        """Begins, or goes on.

        Args:
            more: settings of this life alone.
            trap: for the first process; see `traps.set_trap`, whose folder is the run directory.
            call: what the processes do with the words of the command, a ledger and a trap.
            world_size: processes of this life, if not as many as else.
        """
        self._lives += 1
        world = world_size or self.world_size
        log = self.folder / f"{Path(self.name).name}.{self._lives}"
        words = ["pretrain", "tiny.yaml", f"run={self.name}", *self.settings, *more]
        ledgers = [f"{log}.ledger.{rank}" for rank in range(world)]
        set_ = {"folder": str(self.run), "at": 0, "log": f"{log}.steps"} | dict(trap or {})
        arguments = [[words, ledgers[rank], set_ if rank == 0 else None] for rank in range(world)]
        if world == 1:
            children = [self.scale.forge.start(call, arguments[0], self.folder, log)]
        else:
            children = self.scale.forge.start_all(call, arguments, self.folder, log)
        return Life(self, children, [Path(ledger) for ledger in ledgers], Path(f"{log}.steps"))

    def good(self) -> list[int]:
        """Steps of the checkpoints on disk that are whole."""
        found = []
        for folder in CheckpointStore(self.run / "checkpoints").folders():
            try:
                found.append(read_checkpoint(folder).step)
            except CheckpointError:
                continue
        return found

    def weights(self) -> bytes:
        return weights(self.run)

    def keys(self) -> list[str]:
        """The keys that the weights were made of, by position: micro-batches in turn of ranks."""
        ordered = []
        for step in sorted(self.drawn):
            ranks = [keys for _, keys in sorted(self.drawn[step].items())]
            ordered += [key for micro in zip(*ranks, strict=True) for batch in micro for key in batch]
        return ordered


@dataclass
class Life:
    """One start of a training."""

    training: Training
    children: list[Child]
    ledgers: list[Path]
    steps_log: Path

    def end(self, seconds: float = 120.0) -> int:
        """Waits until all processes have ended, and reads what they drew.

        Returns:
            −9 if a process was killed, else the first exit status that is not 0.
        """
        statuses = end_together(self.children, seconds)
        for rank, ledger in enumerate(self.ledgers):
            lines = ledger.read_text().splitlines() if ledger.exists() else []
            for number, line in enumerate(lines):
                step = self.began + number + 1
                if rank == 0:
                    self.training.drawn[step] = {}
                self.training.drawn.setdefault(step, {})[rank] = json.loads(line)
        failed = [status for status in statuses if status]
        return -signal.SIGKILL if -signal.SIGKILL in failed else (failed or [0])[0]

    @property
    def began(self) -> int:
        """The step that it went on from."""
        found = re.search(r"going on from step (\d+)", self.said())
        return int(found[1]) if found else 0

    @property
    def reached(self) -> int:
        """The last step that it made."""
        return self.began + self.steps_made()

    def steps_made(self) -> int:
        """How many, so far."""
        return self.ledgers[0].read_text().count("\n") if self.ledgers[0].exists() else 0

    def said(self) -> str:
        """By its first process."""
        return self.children[0].said()

    def steps(self) -> list[str]:
        """The steps that the first process took on the disk; see `traps`."""
        return self.steps_log.read_text().splitlines() if self.steps_log.exists() else []


def miscounted(keys: Sequence[str], epoch_size: int = EPOCH) -> tuple[int, int]:
    """(lost, repeated) samples of the whole epochs among `keys`, by position."""
    lost = repeated = 0
    for start in range(0, len(keys) - epoch_size + 1, epoch_size):
        distinct = len(set(keys[start : start + epoch_size]))
        lost += epoch_size - distinct
        repeated += epoch_size - distinct
    return lost, repeated
