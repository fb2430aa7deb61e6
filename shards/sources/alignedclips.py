"""Recordings as finished clips: every frame cut out by its own face, the other cameras along with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.align import AlignConfig, AlignedFace, Aligner, Alignment, encode_jpeg, warp_plane
from shards.align.decode import Picture, finished_jpeg
from shards.config import MODALITIES
from shards.frames import UInt16, encode_plane, frame_extension
from shards.labels import ClipLabels, DataError
from shards.records import Encoded, Item, Maker, Rejected, canonical_json
from shards.sources.recordings import ClipRef, RecordingSource
from shards.sources.tracks import Track, TrackReader

_BATCH_PIXELS = 16_000_000  # of colour pictures held at once: 48 MB, or a single larger one
_PLANES = tuple(modality for modality in MODALITIES if modality != "color")


class AlignedClips:
    """A data set of video as a `Source` of aligned clips.

    Each frame is aligned by its own landmarks, as the faces are that the encoder learned from: it lies on the
    same template, its bytes do not depend on where recordings are cut, and a model may be given a live
    picture. One similarity for a whole clip would keep the head's motion and lose the template when it moves.

    Depth and thermal planes go through the same similarity, behind their own way to the colour picture, to
    the nearest pixel. A frame without a usable face has no picture of any camera: it is counted in its clip
    (`extra.lost`) and in the manifest (`build.frames`). A clip in which none is left, or less than the source
    asks for, is left out.
    """

    def __init__(self, raw: RecordingSource, align: AlignConfig | None = None) -> None:
        """
        Raises:
            DataError: the data set cannot be listed, has no landmarks though `align` asks for them, or
                `align.faces` is "all".
        """
        self.raw, info = raw, raw.info
        self.align = (align or AlignConfig()).resolve(raw.has_landmarks, bool(info.alignment))
        if self.align.faces == "all":
            raise DataError("align.faces=all: a clip is of one person; use largest, or one to refuse several")
        recipe = self.align.recipe(info.alignment)
        recipe["clips"] = {"frames": "each by its own landmarks", "planes": "nearest pixel"}
        self.info = replace(info, kind="clips", alignment=recipe)

    def splits(self) -> Sequence[str]:
        return self.raw.splits()

    def items(self, split: str) -> Sequence[Item]:
        return self.raw.items(split)

    def open_maker(self) -> Maker:
        return _ClipMaker(self.align, self.raw.max_missing)


class _Frame(NamedTuple):
    """A frame on its way: its number in the clip, its colour picture, and what is known of the face."""

    number: int
    picture: Picture
    landmarks: NDArray[np.float64] | None


class _ClipMaker:
    """Clips, in order; videos stay open from one clip to the next."""

    def __init__(self, config: AlignConfig, max_missing: float) -> None:
        self.config, self.max_missing = config, max_missing
        self.reader = TrackReader()
        self._aligners: dict[str, Aligner] = {}

    def __call__(self, items: Sequence[Item]) -> Iterator[Encoded | Rejected]:
        for item in items:
            yield self._make(item.key, item.ref)

    def _make(self, key: str, ref: ClipRef) -> Encoded | Rejected:
        self.reader.keep({track.path for track in ref.tracks.values()})
        labels = ClipLabels.from_json(json.loads(ref.labels))
        lost: Counter[str] = Counter()
        members: dict[str, bytes] = {}
        for batch in self._batches(ref, lost):
            for frame, alignment in zip(batch, self._align(batch, ref.side)):
                face = _chosen(alignment, ref.side)
                if isinstance(face, str):
                    lost[face] += 1
                    continue
                members |= self._members(ref.tracks, frame, face, lost)
        kept = Counter(name.partition(".")[0] for name in members)
        num_lost = labels.num_frames - kept["color"]
        if not kept["color"] or num_lost > self.max_missing * labels.num_frames:
            reasons = ", ".join(
                f"{count} {reason}" for reason, count in lost.most_common() if ":" not in reason
            )
            return Rejected(
                key,
                f"{num_lost} of {labels.num_frames} frames without a face ({reasons})",
                {"in clips left out": labels.num_frames},
            )
        if lost:
            labels = replace(labels, extra={**labels.extra, "lost": dict(sorted(lost.items()))})
        counts = Counter({f"with {modality}": count for modality, count in kept.items()})
        return Encoded(key, members | {"json": canonical_json(labels.to_json())}, counts=counts + lost)

    def _batches(self, ref: ClipRef, lost: Counter[str]) -> Iterator[list[_Frame]]:
        """The frames that have a colour picture, up to a number of pixels at once."""
        batch: list[_Frame] = []
        pixels, track = 0, ref.tracks["color"]
        points = np.frombuffer(ref.landmarks, np.float32).reshape(-1, 5, 2).astype(np.float64)
        for number in range(len(track.frames)):
            picture = self.reader.picture(track, number, lost)
            if picture is None:
                continue
            found = points[number] if len(points) and np.isfinite(points[number]).all() else None
            size = picture.shape[0] * picture.shape[1]
            if batch and pixels + size > _BATCH_PIXELS:
                yield batch
                batch, pixels = [], 0
            batch.append(_Frame(number, picture, found))
            pixels += size
        if batch:
            yield batch

    def _align(self, batch: Sequence[_Frame], side: str) -> list[Alignment]:
        """
        Raises:
            DataError: the device that searches for faces fails: it says nothing of the frames.
        """
        faces = "all" if side and self.config.mode == "detect" else self.config.faces
        if faces not in self._aligners:
            self._aligners[faces] = Aligner(replace(self.config, faces=faces), self.config.device)
        try:
            return self._aligners[faces].align([f.picture for f in batch], [f.landmarks for f in batch])
        except RuntimeError as error:
            raise DataError(
                f"the search for faces failed ({type(error).__name__}: {error!s:.200}): run the same command "
                "again (finished work is kept), with align.device=cpu if it was on a GPU"
            ) from error

    def _members(
        self, tracks: Mapping[str, Track], frame: _Frame, face: AlignedFace, lost: Counter[str]
    ) -> dict[str, bytes]:
        """The pictures of one frame, colour first."""
        members = {frame_extension("color", frame.number): self._jpeg(tracks["color"], frame.number, face)}
        to_face = _to_face(frame.picture, face)
        for modality in (name for name in _PLANES if name in tracks):
            track = tracks[modality]
            plane = self.reader.plane(track, frame.number, modality, lost)
            if plane is None:
                continue
            to_color = np.vstack([track.calibration.to_color(plane.shape, frame.picture.shape), (0, 0, 1)])
            cut: UInt16 = warp_plane(plane, to_face @ to_color, face.image.shape[:2])
            if not cut.any():
                lost[f"{modality}: nothing where the face is"] += 1
                continue
            members[frame_extension(modality, frame.number)] = encode_plane(cut)
        return members

    def _jpeg(self, track: Track, number: int, face: AlignedFace) -> bytes:
        """A JPEG that is an aligned face already stays as it is, to the pixel."""
        name = track.frames[number]
        if self.config.mode == "none" and isinstance(name, str) and name.lower().endswith((".jpg", ".jpeg")):
            kept = finished_jpeg(self.reader.read(track, name), self.config.size)
            if kept is not None:
                return kept
        return encode_jpeg(face.image, self.config.quality)


def _chosen(alignment: Alignment, side: str) -> AlignedFace | str:
    """The face of the person that a recording is about, or why there is none."""
    if not alignment.faces:
        return alignment.reason.partition(":")[0]
    if side and alignment.faces[0].box is not None:
        if len(alignment.faces) < 2:
            return "one face where two people are"
        return alignment.faces[0 if side == "left" else -1]
    return alignment.faces[0]


def _to_face(picture: Picture, face: AlignedFace) -> NDArray[np.float64]:
    """(2, 3), from pixels of the colour picture to those of the aligned face."""
    if face.matrix is not None:
        return face.matrix
    # The centre square, resized: see the aligner's mode "none".
    side = face.image.shape[0]
    if face.image.shape[:2] == picture.shape[:2]:
        return np.array([[1.0, 0, 0], [0, 1, 0]])
    short = min(picture.shape[:2])
    top, left = ((length - short) // 2 for length in picture.shape[:2])
    scale = side / short
    return np.array([[scale, 0, (0.5 - left) * scale - 0.5], [0, scale, (0.5 - top) * scale - 0.5]])
