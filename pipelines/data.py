"""Which shards a run reads: those it names, or rendered faces or clips that are made on first use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipelines.dataconfig import DataConfig
from pipelines.folds import cut_fold
from pipelines.processes import Processes
from shards.build import BuildConfig, build
from shards.damage import check_limit, find_damaged, from_json, to_json
from shards.files import clear_disk_errors, locked, write_atomic
from shards.labels import DataError
from shards.manifest import NAME
from shards.records import fingerprint, info_to_json
from shards.render import RenderedClips, RenderedFaces
from shards.shardset import LeftOut, ShardSet, find_split, open_shards, set_folders, split_folders

DATA = Path("data")
DAMAGED = "damaged.json"
"""In a run's directory: the damaged samples that it left out."""

_DEFAULTS: dict[str, type[RenderedFaces] | type[RenderedClips]] = {
    "faces": RenderedFaces,
    "clips": RenderedClips,
}
_DAMAGED = ("faceprior-damaged", 1)
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


def open_splits(
    config: DataConfig, processes: Processes, kind: str = "faces", listed: Path | None = None
) -> Splits:
    """Opens the shards of a run; makes the default faces or clips if none are named.

    Args:
        config: what is read.
        processes: all of them call this.
        kind: "faces" or "clips".
        listed: file that holds which samples are left out because they are damaged: written where it is not
            there yet and `config.damaged` is "quarantine".

    Raises:
        DataError: see `shards.shardset.open_shards` and `folds.cut_fold`; or more damaged samples than
            allowed.
    """
    splits = _open_splits(config, processes, kind, listed)
    return Splits(*cut_fold(splits.train, splits.val, config.fold)) if config.fold else splits


def open_split(config: DataConfig, names: str, split: str, listed: Path) -> ShardSet:
    """One split of the shards of a finished run; of one of a cross-validation, its fold.

    Args:
        config: of the run.
        names: folders of its shards, comma-separated.
        split: "train", "val" or "test"; the last is the same for all folds.
        listed: where the run's list of damaged samples is, if it has one; they stay left out.

    Raises:
        DataError: see `open_splits`.
    """
    known = _read_list(listed) if config.damaged != "stop" and split != "test" and listed.exists() else {}
    if not config.fold or split == "test":
        return _without(names, split, known)
    val = _with_val(names)
    held_out = _without(val, "val", known) if val else None
    fold = cut_fold(_without(names, "train", known), held_out, config.fold)
    return fold.train if split == "train" else fold.val


def _without(names: str | Sequence[Path], split: str, known: Mapping[str, Sequence[LeftOut]]) -> ShardSet:
    """A split without its damaged samples."""
    return (
        ShardSet(split_folders(names, split), known[split]) if split in known else open_shards(names, split)
    )


def _read_list(listed: Path) -> dict[str, list[LeftOut]]:
    """Split -> its damaged samples, from a run's list."""
    try:
        lists = json.loads(listed.read_bytes())
    except (ValueError, RecursionError):
        lists = None
    if not isinstance(lists, dict) or (lists.get("format"), lists.get("version")) != _DAMAGED:
        raise DataError(
            f"{listed}: no list of damaged samples of version {_DAMAGED[1]}; remove it to have them looked "
            "for again"
        )
    return {split: from_json(lists.get(split), str(listed)) for split in ("train", "val")}


def _with_val(names: str) -> list[Path]:
    """The sets that have a val split."""
    return [folder for folder in set_folders(names) if find_split(folder, "val") is not None]


def _open_splits(config: DataConfig, processes: Processes, kind: str, listed: Path | None) -> Splits:
    """The same without regard to folds."""
    names = named_shards(config.shards, processes, kind)
    with_val = _with_val(names)
    if config.damaged == "stop" or listed is None:
        return Splits(open_shards(names, "train"), open_shards(with_val, "val") if with_val else None)
    folders = {"train": split_folders(names, "train"), "val": split_folders(with_val, "val")}

    def look() -> None:
        if processes.is_main and not listed.exists():
            write_atomic(listed, _damage_list(folders, config.max_damaged))

    processes.together(look)
    known = _read_list(listed)
    val = _without(with_val, "val", known) if with_val else None
    return Splits(_without(names, "train", known), val)


def _damage_list(folders: Mapping[str, Sequence[Path]], limit: float) -> bytes:
    """What is damaged in each split, as JSON; it is said."""
    found = {split: find_damaged(parts) if parts else [] for split, parts in folders.items()}
    for split, left_out in found.items():
        if left_out:
            check_limit(left_out, folders[split], limit)
            count = sum(part.count for part in left_out)
            print(
                f"{split}: {count} damaged samples are left out (the first: {left_out[0].reason})", flush=True
            )
    marks = dict(zip(("format", "version"), _DAMAGED, strict=True))
    return json.dumps(marks | {split: to_json(parts) for split, parts in found.items()}, indent=1).encode()


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
    with ExitStack() as lock:
        try:
            lock.enter_context(locked(folder / ".lock"))
        except DataError as busy:
            print(f"{busy}; waiting for what it makes", flush=True)
            lock.enter_context(locked(folder / ".lock", wait=True))
        print(f"no shards named: rendering the default {kind} (people who do not exist) into {folder}")
        build(source, folder, BuildConfig(shard_size=_SHARD_SIZES[kind]))
    return folder
