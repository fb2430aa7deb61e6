"""Which shards a run reads: those it names, or rendered faces or clips that are made on first use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.config import DataConfig
from pipelines.processes import Processes
from shards.build import BuildConfig, build
from shards.files import clear_disk_errors, locked
from shards.manifest import NAME
from shards.records import fingerprint, info_to_json
from shards.render import RenderedClips, RenderedFaces
from shards.shardset import ShardSet, find_split, open_shards, set_folders

DATA = Path("data")
_DEFAULTS: dict[str, type[RenderedFaces] | type[RenderedClips]] = {
    "faces": RenderedFaces,
    "clips": RenderedClips,
}
_SHARD_SIZES = {"faces": 500, "clips": 16}


@dataclass(frozen=True)
class Splits:
    """The opened splits of a run.

    Attributes:
        train: what is learned from.
        val: what is held out; None if the shards have no such split.
    """

    train: ShardSet
    val: ShardSet | None


def open_splits(config: DataConfig, processes: Processes, kind: str = "faces") -> Splits:
    """Opens the shards of a run; makes the default faces or clips if none are named.

    Raises:
        DataError: see `shards.shardset.open_shards`.
    """
    names = named_shards(config.shards, processes, kind)
    with_val = [folder for folder in set_folders(names) if find_split(folder, "val") is not None]
    return Splits(open_shards(names, "train"), open_shards(with_val, "val") if with_val else None)


def named_shards(names: str, processes: Processes, kind: str = "faces") -> str:
    """`names`, or where there are none the default set of this kind, made by the main process on first use.

    Args:
        names: folders, comma-separated.
        processes: all of them call this.
        kind: "faces" or "clips".
    """
    if names:
        return names
    if processes.is_main:
        make_default(kind)
    processes.barrier()
    return str(default_set(kind))


def default_set(kind: str = "faces") -> Path:
    """Where the default faces or clips are or will be; named after all that decides them."""
    info = _DEFAULTS[kind]().info
    return DATA / f"{info.name}-{fingerprint(info_to_json(info))[:8]}"


def default_size(kind: str = "faces") -> int:
    """How many samples the default set has to learn from."""
    return _DEFAULTS[kind]().num_train


def make_default(kind: str = "faces") -> Path:
    """Renders the default faces or clips unless they are there; two processes do not do it at once.

    Raises:
        DataError: the disk is full, or the folder holds something else.
    """
    source, folder = _DEFAULTS[kind](), default_set(kind)
    if all((folder / split / NAME).is_file() for split in source.splits()):
        return folder
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", wait=True):
        print(f"no shards named: rendering the default {kind} (people who do not exist) into {folder}")
        build(source, folder, BuildConfig(shard_size=_SHARD_SIZES[kind]))
    return folder
