"""Faces followed from frame to frame of a video: MTCNN's last stage alone, on the places where they were.

A search goes over the whole picture at many sizes; the last of its stages looks at one small crop for each
face and says what the search says in the end: whether it is a face, and where its landmarks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shards.align.aligner import AlignedFace, Aligner, Alignment
from shards.align.detector import LAST_STAGE_SIDE, Faces
from shards.align.geometry import apply_affine, scale_of, similarity_from_points

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]

SAME_PLACE = 0.3
"""Overlap (area of the intersection over that of the union) from which on two boxes are of one face."""
MEMORY = 25
"""Frames for which a face that is not there keeps its number."""

_ON_EACH_OTHER = 0.5  # overlap of two followed faces from which on they may have become one


@dataclass(frozen=True)
class _Track:
    """One face, with its place when a search last saw it and where it has come since.

    Attributes:
        number: of the track.
        box, landmarks: (4,) and (5, 2) of that search.
        now: (5, 2) landmarks in the newest frame. step: (2,) how far they moved since the one before it.
        absent: frames for which it has not been there.
    """

    number: int
    box: Floats
    landmarks: Floats
    now: Floats
    step: Floats
    absent: int = 0

    def box_at(self, points: Floats) -> Floats:
        """(4,) the searched box, carried along by what moves the searched landmarks to `points`.

        Boxes that the last stage itself gives grow from frame to frame; this one cannot drift.
        """
        matrix = similarity_from_points(self.landmarks, points)
        centre = apply_affine(matrix, [(self.box[:2] + self.box[2:]) / 2])[0]
        half = (self.box[2:] - self.box[:2]) / 2 * scale_of(matrix)
        return np.concatenate([centre - half, centre + half])


class FaceTracker:
    """The faces of one video. Who is who is told by place alone: a face that takes another's place in a cut
    takes its number too.

    Every frame, in order, goes to `follow` or, when that gives None or a search is due, to `take`.
    """

    def __init__(self, aligner: Aligner) -> None:
        """Args: aligner: that searches; of mode "detect"."""
        assert aligner.detector is not None
        self._aligner, self._detector = aligner, aligner.detector
        self._given = 0
        self._live: list[_Track] = []
        self._gone: list[_Track] = []

    def __len__(self) -> int:
        """How many faces are followed."""
        return len(self._live)

    def begin(self) -> None:
        """Forgets all: another video."""
        self._given, self._live, self._gone = 0, [], []

    def take(self, found: Alignment) -> Alignment:
        """Takes over what a search found in a frame.

        Returns:
            The same, with the numbers of the tracks: those of the faces that were there before, or new ones.
        """
        boxes = np.array([face.box for face in found.faces], np.float64).reshape(-1, 4)
        known = [*self._live, *self._gone]
        before = _matched(boxes, np.array([track.box_at(track.now) for track in known]).reshape(-1, 4))
        live = []
        for face, box, match in zip(found.faces, boxes, before):
            assert face.landmarks is not None
            points = face.landmarks
            if match is None:
                self._given += 1
                live.append(_Track(self._given, box, points, points, np.zeros(2)))
            else:
                live.append(replace(known[match], box=box, landmarks=points, now=points, absent=0))
        self._gone = [
            replace(track, absent=track.absent + 1)
            for number, track in enumerate(known)
            if number not in before and track.absent < MEMORY
        ]
        self._live = live
        return replace(found, faces=_numbered(found.faces, live))

    def follow(self, picture: Picture) -> Alignment | None:
        """Looks where the faces should be by now.

        Args:
            picture: (H, W, 3) uint8, the frame after the last one.

        Returns:
            The faces, cut out as those of a search; without any if there was none to follow. None if one of
            them is less surely a face than the recipe asks for, has jumped, or lies on another one: then
            the frame must be searched.
        """
        live = self._moved(picture) if self._live else []
        if live is None:
            return None
        # Largest first, as a search has them; then from left to right, as an alignment has them.
        tracks, confidences = [track for track, _ in live], [confidence for _, confidence in live]
        faces = Faces(
            np.array([track.box_at(track.now) for track in tracks], np.float32).reshape(-1, 4),
            np.array(confidences, np.float32),
            np.array([track.now for track in tracks], np.float32).reshape(-1, 5, 2),
        )
        found = self._aligner.cut(picture, faces) if live else Alignment(())
        if len(found.faces) < len(live):
            return None
        self._live = tracks
        self._gone = [replace(one, absent=one.absent + 1) for one in self._gone if one.absent < MEMORY]
        return replace(found, faces=_numbered(found.faces, tracks))

    def _moved(self, picture: Picture) -> list[tuple[_Track, float]] | None:
        """The followed faces in this frame with their confidences, left to right; None as of `follow`."""
        expected = np.array([track.box_at(track.now + track.step) for track in self._live])
        confidences, points = self._look(picture, _squares(expected))
        if (confidences < self._detector.min_confidence).any() or not np.isfinite(points).all():
            return None
        moved: list[tuple[_Track, float]] = []
        try:
            for track, confidence, now in zip(self._live, confidences.tolist(), points):
                step = now.mean(0) - track.now.mean(0)
                moved.append((replace(track, now=now, step=step), confidence))
            boxes = np.array([track.box_at(track.now) for track, _ in moved])
        except ValueError:  # landmarks that coincide
            return None
        among = overlaps(boxes, boxes) - np.eye(len(boxes))
        if (among > _ON_EACH_OTHER).any() or (np.diag(overlaps(boxes, expected)) < SAME_PLACE).any():
            return None
        return [moved[number] for number in sorted(range(len(moved)), key=lambda n: boxes[n].tolist())]

    def _look(self, picture: Picture, squares: Floats) -> tuple[Floats, Floats]:
        """What the last stage says of squares (N, 4): (N,) probabilities, (N, 5, 2) landmarks.

        A search reckons its landmarks from the corner of a crop that it has cut half a pixel off on average,
        and as if a pixel's centre were its corner: they lie one pixel of its canvas to the right and below.
        So do these, as do those of the training faces.
        """
        crops = np.stack([_crop(picture, square) for square in squares])
        probabilities, points = self._detector.last_stage(crops)
        corner, side = squares[:, None, :2], (squares[:, 2] - squares[:, 0])[:, None, None]
        offset = self._detector.canvas_pixel(picture) - 0.5
        return probabilities, self._detector.rounded(corner + side * points + offset)


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """(N, 4) and (M, 4) boxes -> (N, M) area of the intersection over that of the union."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod((high - low).clip(0), axis=2)
    one, other = (np.prod(part[:, 2:] - part[:, :2], axis=1) for part in (boxes, others))
    return np.asarray(shared / np.maximum(one[:, None] + other[None] - shared, 1e-9))


def _matched(boxes: Floats, known: Floats) -> list[int | None]:
    """For each box the known one that is of the same face; those that overlap most find each other first."""
    shared = overlaps(boxes, known)
    out: list[int | None] = [None] * len(boxes)
    for flat in np.argsort(-shared, axis=None, kind="stable").tolist():
        box, other = divmod(flat, max(1, shared.shape[1]))
        if shared[box, other] >= SAME_PLACE and out[box] is None and other not in out:
            out[box] = other
    return out


def _numbered(faces: Sequence[AlignedFace], tracks: Sequence[_Track]) -> tuple[AlignedFace, ...]:
    return tuple(replace(face, track=track.number) for face, track in zip(faces, tracks, strict=True))


def _squares(boxes: Floats) -> Floats:
    """(N, 4) squares around the same centres, as wide as the boxes' longer sides."""
    centres, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(1)[:, None] / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def _crop(picture: Picture, square: Floats) -> Picture:
    """A square of the picture, by its corners, at the last stage's size; black outside the picture."""
    height, width = picture.shape[:2]
    left, top = np.floor(square[:2]).astype(int).tolist()
    right, bottom = np.maximum(np.ceil(square[2:]), np.floor(square[:2]) + 1).astype(int).tolist()
    part = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    pads: Any = [(max(-top, 0), 0), (max(-left, 0), 0), (0, 0)]
    pads[0] = (min(pads[0][0], bottom - top), bottom - top - part.shape[0] - min(pads[0][0], bottom - top))
    pads[1] = (min(pads[1][0], right - left), right - left - part.shape[1] - min(pads[1][0], right - left))
    part = np.pad(part, pads) if any(map(sum, pads)) else np.ascontiguousarray(part)
    inside = (square[0] - left, square[1] - top, square[2] - left, square[3] - top)
    size = (LAST_STAGE_SIDE, LAST_STAGE_SIDE)
    return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX, box=inside))
