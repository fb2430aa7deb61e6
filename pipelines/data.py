"""Which shards a run reads: those it names, or rendered faces that are made on first use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.config import DataConfig
from pipelines.processes import Processes
from shards.build import BuildConfig, build
from shards.files import clear_disk_errors, locked
from shards.manifest import NAME
from shards.render import RenderedFaces
from shards.shardset import ShardSet, find_split, open_shards

DEFAULT_FACES = Path("data/rendered-faces")


@dataclass(frozen=True)
class Splits:
    """The opened splits of a run.

    Attributes:
        train: what is learned from.
        val: what is held out; None if the shards have no such split.
    """

    train: ShardSet
    val: ShardSet | None


def open_splits(config: DataConfig, processes: Processes) -> Splits:
    """Opens the shards of a run; makes the default faces if none are named.

    Raises:
        DataError: see `shards.shardset.open_shards`.
    """
    names = config.shards
    if not names:
        if processes.is_main:
            make_default_faces()
        processes.barrier()
        names = str(DEFAULT_FACES)
    folders = [Path(name) for name in names.split(",") if name.strip()]
    with_val = [str(folder) for folder in folders if find_split(folder, "val") is not None]
    return Splits(open_shards(names, "train"), open_shards(with_val, "val") if with_val else None)


def make_default_faces() -> Path:
    """Renders the default faces under data/ unless they are there; two processes do not do it at once.

    Raises:
        DataError: the disk is full, or the folder holds something else.
    """
    source = RenderedFaces()
    if all((DEFAULT_FACES / split / NAME).is_file() for split in source.splits()):
        return DEFAULT_FACES
    with clear_disk_errors(DEFAULT_FACES):
        DEFAULT_FACES.mkdir(parents=True, exist_ok=True)
    with locked(DEFAULT_FACES / ".lock", wait=True):
        print(f"no shards named: rendering the default faces (people who do not exist) into {DEFAULT_FACES}")
        build(source, DEFAULT_FACES, BuildConfig(shard_size=500))
    return DEFAULT_FACES
