"""JSON files of what was tuned for a run: written whole, and read with what to do in every error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from shards.files import clear_disk_errors, write_atomic
from shards.labels import DataError


class Kind(NamedTuple):
    """What a file holds, in words for people, and its mark for programs."""

    what: str
    format: str
    version: int


def write_tuned(path: Path, kind: Kind, values: dict[str, Any]) -> None:
    """
    Raises:
        DataError: the disk is full or cannot be written.
    """
    data = {"format": kind.format, "version": kind.version, **values}
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())


def read_tuned(path: Path, kind: Kind) -> dict[str, Any]:
    """What `write_tuned` wrote; its fields are not checked.

    Raises:
        DataError: not to be read, no JSON, or of another kind or version.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the {kind.what} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); tune again") from error
    if not isinstance(data, dict) or (data.get("format"), data.get("version")) != kind[1:]:
        raise DataError(f"{path}: not {kind.what} of {kind.format}, version {kind.version}; tune again")
    return data


def damaged(path: Path, error: Exception) -> DataError:
    """The error for fields that are missing or wrong."""
    return DataError(f"{path}: damaged ({type(error).__name__}: {error}); tune again")
