"""What every data set of video says of its recordings, and how recordings become clips.

A source of video only knows a layout: it makes `Recording`s. Cutting into clips and the account of every
frame and label happen here, decoding, alignment and encoding in `AlignedClips`; the same for all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.config import MODALITIES
from shards.labels import MAX_CLIP, ClipLabels, DataError
from shards.records import SPLITS, Item, LabelSpace, SourceInfo, canonical_json
from shards.sources.listing import Ledger, ListedSplits, Listing, check_share
from shards.sources.splits import check_keys, key_of
from shards.sources.tracks import Calibration, Track

VA_ALONE = LabelSpace((), (), True)
"""What clips may be labelled with."""

SIDES = ("", "left", "right")

# So that a clip's members can be indexed: a rest that is joined to the last makes it half as long again.
_LONGEST = MAX_CLIP * 2 // (3 * len(MODALITIES))
_LONGEST_RECORDING = (
    10_000_000  # frames, days of video: more is a number gone wrong, and would fill the memory
)


@dataclass(frozen=True)
class Recording:
    """One video of one person, whatever cameras it was taken with.

    Attributes:
        name: unique in the data set; scores by recording are by it.
        fps: frames a second.
        tracks: modality -> where each frame's picture is, all of one length N; "color" is always there.
        valence, arousal: (N,) in [−1, 1], NaN = missing.
        identity: who it is, in the data set's own words.
        landmarks: (N, 5, 2) in pixels of the colour picture (see `RawFace`), NaN where there are none; None
            where the data set has none at all.
        side: of two people in the picture, whom it is about: "left" or "right"; "" = the largest face.
        extra: plain JSON values that each clip carries.
    """

    name: str
    fps: float
    tracks: Mapping[str, Track]
    valence: NDArray[np.float64]
    arousal: NDArray[np.float64]
    identity: str | None = None
    landmarks: NDArray[np.float64] | None = None
    side: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.side in SIDES
        assert {len(self.valence), len(self.arousal)} == {len(t.frames) for t in self.tracks.values()}

    @property
    def num_frames(self) -> int:
        return len(self.tracks["color"].frames)


@dataclass(frozen=True)
class ClipRef:
    """An item's `ref`: all that the maker of one clip needs.

    Attributes:
        labels: JSON of its `ClipLabels`.
        tracks: as in `Recording`, of the clip's frames alone.
        landmarks: (T, 5, 2) float32 as bytes; empty if the data set has none.
        side: as in `Recording`.
    """

    labels: str
    tracks: Mapping[str, Track]
    landmarks: bytes = b""
    side: str = ""


class Account:
    """What became of every frame and every label of one split."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: of data set and split, for messages.
        """
        self.frames, self.labels = Ledger(f"{name}, frames"), Ledger(f"{name}, labels")
        self.num_recordings = 0
        self.pictures: Counter[str] = Counter()  # that no frame was offered, by modality and reason

    def add(self, recording: Recording) -> None:
        """The frames of a recording: which have a colour picture, and what else they have."""
        self.num_recordings += 1
        color = recording.tracks["color"].frames
        there = np.array([frame is not None for frame in color], bool)
        for number in np.flatnonzero(~there).tolist():
            self.frames.refuse("no picture", f"{recording.name}, frame {number}")
        counts = {
            modality: sum(a and b is not None for a, b in zip(there.tolist(), track.frames))
            for modality, track in recording.tracks.items()
            if modality != "color"
        }
        for name in ("valence", "arousal"):
            counts[name] = int((there & np.isfinite(getattr(recording, name))).sum())
        self.frames.use_many(int(there.sum()), counts)

    def close(self, max_unused: float) -> dict[str, Any]:
        """The counts, as plain JSON values.

        Raises:
            DataError: a larger share of the frames or of the labels than `max_unused` cannot be used.
        """
        return {
            "recordings": self.num_recordings,
            "frames": self.frames.close(max_unused),
            "labels": self.labels.close(max_unused),
            "pictures": {reason: count for reason, count in sorted(self.pictures.items()) if count},
        }


class RecordingSource(ListedSplits):
    """A data set of video: its `_listing` comes from `list_clips`.

    Attributes:
        has_landmarks: five points for the faces of its frames.
        max_missing: share of a clip's frames without a picture in the end, above which it is left out.
    """

    has_landmarks = False
    max_missing = 1.0

    @property
    def info(self) -> SourceInfo:
        raise NotImplementedError


def check_clip_options(clip_frames: int, max_missing: float, max_unused: float) -> None:
    """
    Raises:
        DataError: an option that all sources of video have is out of its range.
    """
    if not 1 <= clip_frames <= _LONGEST:
        raise DataError(f"clip_frames={clip_frames}: must be from 1 to {_LONGEST}")
    if not 0 <= max_missing <= 1:
        raise DataError(f"max_missing={max_missing}: must be from 0 to 1")
    check_share(max_unused)


def check_length(num_frames: int, where: str) -> int:
    """How many frames a recording has, before anything is made for each of them.

    Raises:
        DataError: more than any has: some number or time is wrong; names `where`.
    """
    if num_frames > _LONGEST_RECORDING:
        raise DataError(
            f"{where}: more than the {_LONGEST_RECORDING:,} frames that a recording may have: mend its "
            "numbers or times, or cut it into several"
        )
    return num_frames


def places_of(num_frames: int, clip_frames: int) -> list[tuple[int, int]]:
    """First frame, and the one after the last, of each clip of a recording.

    All have `clip_frames`, except the last: a rest shorter than half a clip is joined to it.
    """
    count = max(1, (num_frames + clip_frames // 2) // clip_frames)
    starts = [clip_frames * number for number in range(count)]
    return list(zip(starts, [*starts[1:], num_frames]))


def cut_recording(recording: Recording, clip_frames: int) -> list[Item]:
    """The clips of a recording, one after the other, without overlap or gap.

    Args:
        recording: whole.
        clip_frames: frames of a clip.
    """
    items = []
    for start, stop in places_of(recording.num_frames, clip_frames):
        labels = ClipLabels(
            num_frames=stop - start,
            fps=round(recording.fps, 6),
            valence=_values(recording.valence[start:stop]),
            arousal=_values(recording.arousal[start:stop]),
            start_frame=start,
            identity=recording.identity,
            group=recording.name,
            extra=recording.extra,
        )
        points = recording.landmarks
        ref = ClipRef(
            canonical_json(labels.to_json()).decode(),
            {name: track.cut(start, stop) for name, track in recording.tracks.items()},
            b"" if points is None else points[start:stop].astype(np.float32).tobytes(),
            recording.side,
        )
        items.append(Item(key_of(f"{recording.name}-{start:06d}"), ref))
    return items


def list_clips(
    recordings: Iterable[tuple[str, Recording]],
    accounts: Mapping[str, Account],
    clip_frames: int,
    max_unused: float,
    settings: Mapping[str, Any],
) -> Listing:
    """Recordings as a listing of clips, with the account of all of them.

    Args:
        recordings: (split, recording), in a fixed order.
        accounts: of each split; they have had the labels, and get the frames here.
        clip_frames: frames of a clip.
        max_unused: see `Account.close`.
        settings: what else the manifest is to say.

    Raises:
        DataError: two recordings of one name, or too much cannot be used.
    """
    items: dict[str, list[Item]] = {}
    for split, recording in recordings:
        accounts[split].add(recording)
        items.setdefault(split, []).extend(cut_recording(recording, clip_frames))
    counts = {}
    for split in (split for split in SPLITS if split in items):
        check_keys(items[split], (str(item.ref.tracks["color"].path) for item in items[split]), split)
        counts[split] = accounts[split].close(max_unused) | {"clips": len(items[split])}
    digests = {split: _digest(items[split]) for split in counts}
    return Listing(items, {**settings, "clip_frames": clip_frames, "content": digests, "counts": counts})


def plain_track(path: Path, frames: Sequence[str | int | None]) -> dict[str, Track]:
    """The tracks of a recording that has colour alone."""
    return {"color": Track(path, tuple(frames))}


def _values(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 6) for value in values.tolist()]


def _digest(items: Sequence[Item]) -> str:
    """A hash of labels, landmarks and names of pictures: not of where the data set lies."""
    digest = hashlib.sha256()
    for item in items:
        ref: ClipRef = item.ref
        tracks = {name: [track.frames, _plain(track.calibration)] for name, track in ref.tracks.items()}
        digest.update(canonical_json([item.key, ref.labels, tracks, ref.side]) + ref.landmarks)
    return digest.hexdigest()


def _plain(calibration: Calibration) -> list[Any]:
    return [calibration.scale, calibration.offset, calibration.affine]
