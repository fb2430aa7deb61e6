"""Which shards a run reads: those it names, or rendered faces that are made on first use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.config import DataConfig
from pipelines.processes import Processes
from shards.build import BuildConfig, build
from shards.files import clear_disk_errors, locked
from shards.manifest import NAME
from shards.records import fingerprint, info_to_json
from shards.render import RenderedFaces
from shards.shardset import ShardSet, find_split, open_shards, set_folders

DATA = Path("data")


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
        names = str(default_faces())
    with_val = [folder for folder in set_folders(names) if find_split(folder, "val") is not None]
    return Splits(open_shards(names, "train"), open_shards(with_val, "val") if with_val else None)


def default_faces() -> Path:
    """Where the default faces are or will be; named after all that decides them, so never out of date."""
    return DATA / f"rendered-faces-{fingerprint(info_to_json(RenderedFaces().info))[:8]}"


def make_default_faces() -> Path:
    """Renders the default faces unless they are there; two processes do not do it at once.

    Raises:
        DataError: the disk is full, or the folder holds something else.
    """
    source, folder = RenderedFaces(), default_faces()
    if all((folder / split / NAME).is_file() for split in source.splits()):
        return folder
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", wait=True):
        print(f"no shards named: rendering the default faces (people who do not exist) into {folder}")
        build(source, folder, BuildConfig(shard_size=500))
    return folder
