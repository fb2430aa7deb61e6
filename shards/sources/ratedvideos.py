"""Videos that were rated while they ran: found by name, their ratings brought to their frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shards.labels import DataError
from shards.sources.listing import Ledger
from shards.sources.recordings import Recording, check_length, plain_track
from shards.sources.series import Floats, Series, to_frames
from shards.sources.video import is_video, video_facts

DIMENSIONS = ("valence", "arousal")


def find_videos(path: Path) -> dict[str, Path]:
    """Name without its suffix -> video, of all videos below a folder.

    Raises:
        DataError: two of one name.
    """
    found: dict[str, Path] = {}
    for file in sorted(file for file in path.rglob("*") if is_video(file.name) and file.is_file()):
        if file.stem in found:
            raise DataError(f"{found[file.stem]} and {file} have one name; remove one of them")
        found[file.stem] = file
    return found


def rated_video(
    name: str,
    video: Path,
    series: Mapping[str, Series],
    how: str,
    ledger: Ledger,
    identity: str,
    extra: Mapping[str, str] | None = None,
) -> Recording:
    """A video and its ratings, brought to its frames: frame n is at n / rate seconds.

    Args:
        name: of the recording.
        video: its file.
        series: of "valence" and "arousal"; one that is absent is missing throughout.
        how: see `series.resample`.
        ledger: of labels.
        identity: who it is.
        extra: for its clips.

    Raises:
        DataError: the video cannot be read, or PyAV is not installed.
    """
    facts = video_facts(video)
    at: Floats = np.arange(check_length(facts.num_frames, str(video))) / facts.fps
    rated = {
        dimension: to_frames(series[dimension], at, how, dimension, ledger)
        if dimension in series
        else np.full(len(at), np.nan)
        for dimension in DIMENSIONS
    }
    return Recording(
        name=name,
        fps=facts.fps,
        tracks=plain_track(video, range(facts.num_frames)),
        valence=rated["valence"],
        arousal=rated["arousal"],
        identity=identity,
        extra=dict(extra or {}),
    )
