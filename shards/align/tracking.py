"""Faces followed from frame to frame of a video: MTCNN's later stages alone, on the places where they were.

The first stage of a search goes over the whole picture at many sizes, and takes nearly all of its time. The
others look at a small crop for each face: the second puts its box right, the last says what the search says
in the end, whether it is a face and where its landmarks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.align.aligner import AlignedFace, Aligner, Alignment
from shards.align.detector import LAST_STAGE_SIDE, SECOND_STAGE_SIDE, Faces, Looks, on_grain
from shards.align.geometry import apply_affine, scale_of, similarity_from_points

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]

SAME_PLACE = 0.3
"""Overlap (area of the intersection over that of the union) from which on two boxes are of one face."""
MEMORY = 25
"""Frames for which a face that is not there keeps its number."""

_ON_EACH_OTHER = 0.5  # overlap of two followed faces from which on they may have become one
_ASTRAY = 0.6  # overlap of a followed box and that of the last stage below which the face was left behind


@dataclass(frozen=True)
class _Track:
    """One face, with its place when a search last saw it and where it has come since.

    Attributes:
        number: of the track.
        box, landmarks: (4,) and (5, 2) of that search.
        now: (5, 2) landmarks in the newest frame.
        absent: frames for which it has not been there.
    """

    number: int
    box: Floats
    landmarks: Floats
    now: Floats
    absent: int = 0

    def place(self) -> Floats:
        """(4,) the searched box, carried along with the landmarks.

        Boxes that the last stage gives grow from frame to frame if each is looked for in the one before; this
        one cannot.

        Raises:
            ValueError: the landmarks coincide.
        """
        matrix = similarity_from_points(self.landmarks, self.now)
        centre = apply_affine(matrix, [(self.box[:2] + self.box[2:]) / 2])[0]
        half = (self.box[2:] - self.box[:2]) / 2 * scale_of(matrix)
        return np.concatenate([centre - half, centre + half])


@dataclass(frozen=True)
class _Moved:
    """Tracks and their faces in a new frame, from left to right."""

    tracks: list[_Track]
    faces: Faces


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

    @property
    def num_followed(self) -> int:
        """How many faces there were in the newest frame."""
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
        before = _matched(boxes, _places(known))
        live = []
        for face, box, match in zip(found.faces, boxes, before):
            assert face.landmarks is not None
            points = face.landmarks
            if match is None:
                self._given += 1
                live.append(_Track(self._given, box, points, points))
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
            them is less surely a face than the recipe asks for, was left behind, or lies on another one:
            then the frame must be searched.
        """
        if not self._live:
            return Alignment(())
        moved = self._moved(picture)
        if moved is None:
            return None
        found = self._aligner.cut(picture, moved.faces)
        if len(found.faces) < len(moved.tracks):
            return None
        self._live = moved.tracks
        self._gone = [replace(one, absent=one.absent + 1) for one in self._gone if one.absent < MEMORY]
        return replace(found, faces=_numbered(found.faces, moved.tracks))

    def _moved(self, picture: Picture) -> _Moved | None:
        """The followed faces in this frame; None as of `follow`."""
        found = self._look(picture, _squares(_places(self._live)))
        if (found.confidences < self._detector.min_confidence).any() or not np.isfinite(
            found.landmarks
        ).all():
            return None
        tracks = [replace(track, now=now) for track, now in zip(self._live, found.landmarks)]
        try:
            boxes = _places(tracks)
        except ValueError:
            return None
        shared = overlaps(boxes, boxes) - np.eye(len(boxes))
        if (shared > _ON_EACH_OTHER).any() or (np.diag(overlaps(boxes, found.boxes)) < _ASTRAY).any():
            return None
        height, width = picture.shape[:2]
        shown = boxes.clip(0, (width, height, width, height)).astype(np.float32)
        order = sorted(range(len(shown)), key=lambda number: shown[number].tolist())
        sure, points = (part[order].astype(np.float32) for part in (found.confidences, found.landmarks))
        faces = Faces(shown[order], sure, points)
        return _Moved([tracks[number] for number in order], faces)

    def _look(self, picture: Picture, squares: Floats) -> Looks:
        """What the later stages say of squares (N, 4), in pixels of the picture.

        A search reckons from the corner of a crop that it has cut half a pixel off on average, and takes the
        centre of a pixel for its corner: its landmarks lie one pixel of its canvas to the right and below. So
        do these, as do those of the training faces.
        """
        boxes = _within(squares, self._detector.second_stage(_crops(picture, squares, SECOND_STAGE_SIDE)))
        squares = _squares(boxes)
        looks = self._detector.last_stage(_crops(picture, squares, LAST_STAGE_SIDE))
        offset = self._detector.canvas_pixel(picture) - 0.5
        points = _within(squares, looks.landmarks.reshape(-1, 10)).reshape(-1, 5, 2)
        return Looks(looks.confidences, _within(squares, looks.boxes) + offset, on_grain(points + offset))


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


def _places(tracks: Sequence[_Track]) -> Floats:
    return np.array([track.place() for track in tracks], np.float64).reshape(-1, 4)


def _within(squares: Floats, fractions: Floats) -> Floats:
    """(N, 2 K) pairs of fractions of squares (N, 4) -> (N, 2 K) x and y in the picture."""
    side = squares[:, 2:3] - squares[:, :1]
    return np.asarray(np.tile(squares[:, :2], fractions.shape[1] // 2) + side * fractions)


def _crops(picture: Picture, squares: Floats, size: int) -> Picture:
    """(N, size, size, 3) these squares of the picture."""
    return np.stack([_crop(picture, square, size) for square in squares])


def _crop(picture: Picture, square: Floats, size: int) -> Picture:
    """A square of the picture, by its corners; black outside the picture."""
    height, width = picture.shape[:2]
    left, top = np.floor(square[:2]).astype(int).tolist()
    right, bottom = np.maximum(np.ceil(square[2:]).astype(int), (left + 1, top + 1)).tolist()
    x, y = np.clip((left, right), 0, width), np.clip((top, bottom), 0, height)
    part = np.zeros((bottom - top, right - left, 3), np.uint8)
    part[y[0] - top : y[1] - top, x[0] - left : x[1] - left] = picture[y[0] : y[1], x[0] : x[1]]
    inside = (square[0] - left, square[1] - top, square[2] - left, square[3] - top)
    return np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BOX, box=inside))
