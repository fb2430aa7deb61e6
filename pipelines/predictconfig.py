"""What can be said to `faceprior predict`: its options and their command line, without what they are for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from finetune.config import LOOKS
from pipelines.config import ConfigError


@dataclass(frozen=True)
class PredictConfig:
    """Options.

    Attributes:
        batch_size: faces that the model sees at once, and frames that are held at most.
        every: of a video, faces are searched for in every n-th frame and followed through those between; a
            face that enters is found at the next search. 1 = every frame is searched.
        align: "auto" finds faces and cuts them out as the training faces were; "none" takes each picture for
            a face that was cut out so already.
        faces: "all" of a picture, or the "largest".
        min_confidence: of a detection, in [0, 1]; None = as in training.
        detect_side: pictures are shrunk to this longer side for the search; None = as in training. Faces
            smaller than 20 of those pixels are not found.
        looks: at each face, whose outputs are averaged: 1, 2 (mirrored too) or 10 (and moved a little, five
            places); None = 10 in pictures, 1 in videos.
        picture_seconds: of a video, one annotated picture for so many seconds.
        device: "cpu", "cuda", …; "" = a GPU if there is one.
        quiet: no progress bar.
    """

    batch_size: int = 32
    every: int = 10
    align: str = "auto"
    faces: str = "all"
    min_confidence: float | None = None
    detect_side: int | None = None
    looks: int | None = None
    picture_seconds: float = 1.0
    device: str = ""
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.looks not in (None, *LOOKS):
            raise ConfigError(f"looks={self.looks}: use {', '.join(map(str, LOOKS))}")
        for name, allowed in (("align", ("auto", "none")), ("faces", ("all", "largest"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: use {' or '.join(allowed)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `faceprior predict`."""
    default = PredictConfig()
    parser.add_argument("run", type=Path, metavar="RUN", help="run, checkpoint or model.safetensors")
    parser.add_argument(
        "source",
        type=Path,
        metavar="INPUT",
        help="picture, video, or a folder that is searched for both; for a video model also clip shards",
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help=".csv or .json (INPUT.predictions.csv, here)"
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="that gets annotated pictures, or the curves of a video model",
    )
    parser.add_argument(
        "--picture-seconds",
        type=float,
        default=default.picture_seconds,
        metavar="S",
        help="of a video, one annotated picture for so many seconds (1)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=default.batch_size, metavar="N", help="faces at once (32)"
    )
    parser.add_argument(
        "--every",
        type=int,
        default=default.every,
        metavar="N",
        help="of a video, search every n-th frame for faces, and follow them through those between (10); "
        "1 = search every frame",
    )
    parser.add_argument(
        "--faces", choices=("all", "largest"), default=default.faces, help="of a picture (all)"
    )
    parser.add_argument(
        "--align",
        choices=("auto", "none"),
        default=default.align,
        help="auto: find faces and cut them out as in training; none: each picture is such a cut-out face",
    )
    parser.add_argument(
        "--min-confidence", type=float, default=None, metavar="P", help="of a face (as in training)"
    )
    parser.add_argument(
        "--detect-side",
        type=int,
        default=None,
        metavar="PIXELS",
        help="longer side that pictures are shrunk to for the search (as in training: 512 if nothing else "
        "was said); more finds smaller faces: they need 20 of these pixels",
    )
    parser.add_argument(
        "--looks",
        type=int,
        choices=LOOKS,
        default=None,
        help="at each face, whose outputs are averaged: 1 = as it is, 2 = mirrored too, 10 = and moved a "
        "little, five places (10 in pictures, 1 in videos)",
    )
    parser.add_argument("--device", default="", help="cpu, cuda, … (a GPU if there is one)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
