"""The `shards` commands: settings as text -> source, alignment and build settings -> shards."""

from __future__ import annotations

import contextlib
import logging
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.config import ConfigError, read_value
from shards.align import AlignConfig
from shards.build import BuildConfig, build, merge
from shards.indexing import index_tars
from shards.manifest import NAME, Manifest, load_manifest
from shards.sources import build_source, source_options

_OF_CLIPS: Mapping[str, Any] = {"shard_size": 4, "chunk_size": 1}  # a clip is hundreds of pictures


def build_shards(source: str, src: str, out: Path, settings: Sequence[str]) -> list[Manifest]:
    """Builds every split of a data set.

    Args:
        source: name of its layout (see `shards.sources.source_names`).
        src: where it is.
        out: gets a folder per split.
        settings: `align.<option>=…`, `build.<option>=…`, `<option of the source>=…`.

    Returns:
        The manifests; none for splits of which this was one part.

    Raises:
        ConfigError: an unknown setting or a value of the wrong type.
        DataError: see `shards.build.build` and the sources.
    """
    kinds: dict[str, Any] = {
        f"align.{name}": kind for name, kind in typing.get_type_hints(AlignConfig).items()
    }
    kinds |= {f"build.{name}": kind for name, kind in typing.get_type_hints(BuildConfig).items()}
    kinds |= source_options(source)
    values = _read_settings(settings, kinds)
    align = AlignConfig(**_group(values, "align."))
    building = _group(values, "build.")
    BuildConfig(**building)  # refuses what is none, before a data set is listed
    if align.device != "cpu":
        building.setdefault("workers", 1)  # each would open the GPU for itself
    options = {name: value for name, value in values.items() if "." not in name}
    with _aloud():
        found = build_source(source, src, align, **options)
        defaults = _OF_CLIPS if found.info.kind == "clips" else {}
        folders = build(found, out, BuildConfig(**{**defaults, **building}))
    return [load_manifest(folder) for folder in folders if (folder / NAME).exists()]


def merge_shards(out: Path, settings: Sequence[str] = ()) -> list[Manifest]:
    """Joins the parts of every split under `out`.

    Args:
        out: has a folder per split.
        settings: `build.max_quarantined=…`, in place of what the parts were given.

    Raises:
        ConfigError: no part there, or an unknown setting.
        DataError: see `shards.build.merge`.
    """
    folders = sorted(folder.parent for folder in out.glob("*/.parts")) or sorted(
        folder.parent for folder in out.glob(f"*/{NAME}")
    )
    if not folders:
        raise ConfigError(f"{out}: no parts of a build there; run `shards build … build.part=i/n` first")
    limit = "build.max_quarantined"
    values = _read_settings(settings, {limit: typing.get_type_hints(BuildConfig)["max_quarantined"]})
    if limit in values:
        BuildConfig(max_quarantined=values[limit])  # refuses what is none
    return [merge(folder, values.get(limit)) for folder in folders]


def index_shards(folder: Path, split: str, name: str, licence: str) -> Manifest:
    """Makes a shard set of the WebDataset tars in `folder`, where they lie.

    Raises:
        DataError: see `shards.build.index_tars`.
    """
    with _aloud():
        return index_tars(sorted(folder.glob("*.tar")), folder, split, name or folder.name, licence)


def describe(manifest: Manifest) -> str:
    """One line on a finished split."""
    left_out = f", {manifest.num_quarantined} left out (quarantine.csv)" if manifest.num_quarantined else ""
    what, of = ("clips", "pieces of video") if manifest.kind == "clips" else ("faces", "pictures")
    counts = f"{manifest.num_samples} {what} of {manifest.num_items} {of} in {len(manifest.shards)} shards"
    return f"{manifest.split}: {counts}{left_out}"


@contextlib.contextmanager
def _aloud() -> Iterator[None]:
    """What the sources find, count and pass over is told to the user, on stderr."""
    log, handler = logging.getLogger("shards"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _read_settings(settings: Sequence[str], kinds: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or key not in kinds:
            raise ConfigError(f"unknown setting {text!r}; there are {', '.join(sorted(kinds))}")
        values[key] = read_value(value, kinds[key], key, "command line")
    return values


def _group(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
