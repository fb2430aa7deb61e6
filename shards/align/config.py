"""How faces are aligned, and the recipe that says so in manifests and checkpoints."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shards.align.geometry import TEMPLATE, TEMPLATE_NAME
from shards.labels import DataError

MODES = ("auto", "detect", "given", "none")
FACES = ("largest", "all", "one")

_RECIPE_VERSION = 1


@dataclass(frozen=True)
class AlignConfig:
    """Alignment options.

    Attributes:
        mode: "detect" finds faces and their landmarks with MTCNN; "given" uses the data set's own landmarks;
            "none" takes the picture as an aligned face (its centre square, resized); "auto" is "none" where
            the data set's faces are aligned already, "given" where it has landmarks, else "detect".
        size: side of the face that comes out, pixels. With mode "none", 0 keeps the picture's own size.
        margin: room added on each side of the 112-pixel template, as a fraction of its side.
        faces: "largest" face of a picture; "all" of them, left to right, with keys KEY-1, KEY-2, … (KEY-1
            also where there is one, so that no two keys can collide); "one" refuses a picture with several.
        min_face: smallest face used, in pixels of the picture that the side of the template covers.
        min_confidence: of a detection, in [0, 1].
        detect_side: pictures are shrunk to this longer side for detection, pixels. Faces smaller than 20 of
            those pixels are not found.
        quality: of the JPEG that is written, 1 to 100.
        device: that searches for faces when shards are built: "cpu", the same to the byte on every machine;
            or "cuda" or "cuda:1", which every worker opens for itself. No part of the recipe.
    """

    mode: str = "auto"
    size: int = 112
    margin: float = 0.0
    faces: str = "largest"
    min_face: float = 20.0
    min_confidence: float = 0.9
    detect_side: int = 512
    quality: int = 95
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("faces", FACES)):
            if getattr(self, name) not in allowed:
                raise DataError(f"align.{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        for name, low, high in (
            ("size", 0 if self.mode == "none" else 16, 2048),
            ("margin", 0, 2),
            ("min_face", 0, 100_000),
            ("min_confidence", 0, 1),
            ("detect_side", 64, 8192),
            ("quality", 1, 100),
        ):
            if not low <= getattr(self, name) <= high:
                raise DataError(f"align.{name}={getattr(self, name)!r}: must be from {low} to {high}")
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", self.device):
            raise DataError(f"align.device={self.device!r}: must be cpu, cuda, cuda:N or mps")
        if self.mode == "none" and self.margin:
            raise DataError(f"align.margin={self.margin}: has no meaning with align.mode=none; leave it out")

    def resolve(self, has_landmarks: bool, is_aligned: bool = False) -> AlignConfig:
        """The same with "auto" decided.

        Args:
            has_landmarks: the data set has five points for each face.
            is_aligned: its pictures are aligned faces.

        Raises:
            DataError: mode "given" for data without landmarks.
        """
        if self.mode == "given" and not has_landmarks:
            raise DataError("align.mode=given: this data set has no landmarks; use align.mode=detect")
        if self.mode == "auto":
            return replace(self, mode="none" if is_aligned else "given" if has_landmarks else "detect")
        return self

    def recipe(self, made_by: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All that decides where a face lies in its image and how it looks, as plain JSON values.

        Two images with equal `recipe()["geometry"]` have their eyes in the same place; with mode "none" that
        rests on what the data set says of itself.

        Args:
            made_by: how the data set itself aligned its faces; with mode "none" a part of the geometry.
        """
        if self.mode == "auto":
            raise ValueError("resolve the mode before asking for the recipe")
        out: dict[str, Any] = {
            "version": _RECIPE_VERSION,
            "mode": self.mode,
            "faces": self.faces,
            "min_face": self.min_face,
            "encoding": {"format": "jpeg", "quality": self.quality},
            "geometry": {"size": self.size},
        }
        if self.mode == "none":
            out["geometry"] |= made_by or {}
        else:
            out["geometry"] |= {
                "margin": self.margin,
                "template": TEMPLATE_NAME,
                "points": TEMPLATE.tolist(),
                "transform": "similarity",
                "border": "edge",
            }
        if self.mode == "detect":
            out["detector"] = {
                "name": "MTCNN",
                "version": "facenet-pytorch " + importlib.metadata.version("facenet-pytorch"),
                "side": self.detect_side,
                "min_confidence": self.min_confidence,
            }
        return out
