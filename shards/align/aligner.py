"""Pictures -> aligned faces, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.align.config import AlignConfig
from shards.align.detector import FaceDetector, Faces
from shards.align.geometry import (
    TEMPLATE_SIDE,
    relative_residual,
    scale_of,
    similarity_from_points,
    template_points,
    warp,
)

Picture = NDArray[np.uint8]

_MAX_RESIDUAL = 0.7  # of the template's spread; a mirrored face leaves more
_MAX_OUTSIDE = 0.25  # how far landmarks may lie outside, in sides of the picture


@dataclass(frozen=True)
class AlignedFace:
    """One face, cut out.

    Attributes:
        image: (size, size, 3) uint8.
        matrix: (2, 3) float64, from the picture's pixels to the image's; None with mode "none".
        landmarks: (5, 2) float64 in the picture; None with mode "none".
        box: left, top, right, bottom in the picture, where the face was detected.
        confidence: of the detection, in [0, 1].
        track: number of the face in its video, where it is followed through one.
    """

    image: Picture
    matrix: NDArray[np.float64] | None = None
    landmarks: NDArray[np.float64] | None = None
    box: tuple[float, float, float, float] | None = None
    confidence: float | None = None
    track: int | None = None


@dataclass(frozen=True)
class Alignment:
    """What became of one picture: its faces from left to right, or, where there are none, the reason."""

    faces: tuple[AlignedFace, ...]
    reason: str = ""


class Aligner:
    """Applies one `AlignConfig`; holds the detector, if the mode needs one."""

    def __init__(self, config: AlignConfig, device: str | None = None) -> None:
        """
        Args:
            config: with its mode resolved ("auto" is for sources).
            device: of the detector; by default a GPU if there is one.
        """
        if config.mode == "auto":
            raise ValueError("resolve the mode first: an aligner does not know whether there are landmarks")
        self.config = config
        self.detector = (
            FaceDetector(config.detect_side, config.min_confidence, device)
            if config.mode == "detect"
            else None
        )

    def align(self, pictures: Sequence[Picture], landmarks: Sequence[Any] = ()) -> list[Alignment]:
        """Aligns pictures; those to be searched for faces are searched together.

        Args:
            pictures: each (H, W, 3) uint8 RGB.
            landmarks: with mode "given", for each picture (5, 2) in its pixels or None.

        Returns:
            One record per picture, in order.
        """
        if self.config.mode == "none":
            return [Alignment((AlignedFace(_centre_square(p, self.config.size)),)) for p in pictures]
        if self.config.mode == "given":
            return [self._given(picture, points) for picture, points in zip(pictures, landmarks, strict=True)]
        assert self.detector is not None
        return [self.cut(picture, faces) for picture, faces in zip(pictures, self.detector.detect(pictures))]

    def _given(self, picture: Picture, points: Any) -> Alignment:
        if points is None:
            return Alignment((), "no landmarks")
        face = self._cut(picture, np.asarray(points, np.float64))
        return Alignment((), face) if isinstance(face, str) else Alignment((face,))

    def cut(self, picture: Picture, faces: Faces) -> Alignment:
        """What the options leave of the faces of a picture (largest first), cut out; from left to right."""
        if not len(faces):
            return Alignment((), faces.error or "no face")
        if self.config.faces == "one" and len(faces) > 1:
            return Alignment((), f"several faces: {len(faces)}")
        cuts: list[AlignedFace] = []
        reason = ""
        for index in range(len(faces)):
            box = faces.boxes[index].tolist()
            face = self._cut(
                picture,
                faces.landmarks[index].astype(np.float64),
                (box[0], box[1], box[2], box[3]),
                float(faces.confidences[index]),
            )
            if isinstance(face, str):
                reason = reason or face
                continue
            cuts.append(face)
            if self.config.faces != "all":
                break
        cuts.sort(key=lambda face: face.box or (0.0,))
        return Alignment(tuple(cuts), "" if cuts else reason)

    def _cut(
        self,
        picture: Picture,
        points: NDArray[np.float64],
        box: tuple[float, float, float, float] | None = None,
        confidence: float | None = None,
    ) -> AlignedFace | str:
        """The face at these landmarks, or why it cannot be used."""
        target = template_points(self.config.size, self.config.margin)
        try:
            matrix = similarity_from_points(points, target)
        except ValueError as error:
            return f"bad landmarks: {error}"
        if relative_residual(matrix, points, target) > _MAX_RESIDUAL:
            return "bad landmarks: not those of a face"
        sides = np.array([picture.shape[1], picture.shape[0]])
        if (points < -_MAX_OUTSIDE * sides).any() or (points > (1 + _MAX_OUTSIDE) * sides).any():
            return "bad landmarks: outside the picture"
        side = TEMPLATE_SIDE / scale_of(similarity_from_points(points, template_points()))
        if side < self.config.min_face:
            return f"too small: {side:.0f} px"
        return AlignedFace(warp(picture, matrix, self.config.size), matrix, points, box, confidence)


def _centre_square(picture: Picture, size: int) -> Picture:
    """The picture itself with size 0, else its centre square at size×size."""
    if size == 0 or picture.shape[:2] == (size, size):
        return picture
    height, width = picture.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = np.ascontiguousarray(picture[top : top + side, left : left + side])
    image = Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image)
