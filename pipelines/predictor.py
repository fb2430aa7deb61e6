"""A model and the way to the faces it reads: frames -> detected, aligned faces -> what it says of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.outputs import averaged_outputs
from pipelines.config import ConfigError
from pipelines.facetable import NO_FACE, UNREADABLE, FaceColumns, FacePrediction
from pipelines.models import LoadedModel
from pipelines.predictconfig import PredictConfig
from shards.align import AlignConfig, AlignedFace, Aligner, Alignment, FaceTracker
from shards.labels import DataError
from shards.sources.media import MediaFrame
from shards.template import TEMPLATE, TEMPLATE_NAME
from shards.transforms import fit

_CHUNK_PIXELS = 48_000_000  # of pictures held at once: 144 MB


@dataclass(frozen=True)
class FramePrediction:
    """One frame, its rows, and its aligned faces, (S, S, 3) uint8 each, in the order of the rows.

    `recording` is the video or folder that the frame is of, where a model reads these and not single frames.
    """

    frame: MediaFrame
    rows: tuple[FacePrediction, ...]
    faces: tuple[NDArray[np.uint8], ...]
    recording: str = ""


def chunks(frames: Iterable[MediaFrame], count: int) -> Iterator[list[MediaFrame]]:
    """Up to `count` frames, and of so many pixels that memory stays bounded."""
    chunk: list[MediaFrame] = []
    pixels = 0
    for frame in frames:
        chunk.append(frame)
        pixels += 0 if frame.picture is None else frame.picture.shape[0] * frame.picture.shape[1]
        if len(chunk) == count or pixels > _CHUNK_PIXELS:
            yield chunk
            chunk, pixels = [], 0
    if chunk:
        yield chunk


class FaceFinder:
    """Finds the faces of frames and cuts them out, as a model's training faces were.

    Of a video every n-th frame is searched; in those between, the faces are followed. A frame in which one of
    them is lost is searched at once, and so are those after it, up to the next n-th, until it is there again.

    Attributes:
        align: how.
    """

    def __init__(self, align: AlignConfig, every: int, device: torch.device) -> None:
        """
        Args:
            align: see `align_config`.
            every: n; see `PredictConfig`.
            device: of the detector.
        """
        self.align = align
        self._aligner = Aligner(align, str(device))
        self._tracker = None if align.mode == "none" else FaceTracker(self._aligner)
        self._every = 1 if self._tracker is None else every
        self._video = ""
        self._sought = 0  # faces that must be there again before they are followed; 0 = none was lost

    def __call__(self, frames: Sequence[MediaFrame]) -> list[Alignment]:
        """The faces of each frame, from left to right; a video's frames must come in order."""
        due = [number for number, frame in enumerate(frames) if self._is_due(frame)]
        pictures: Any = [frames[number].picture for number in due]
        searched = dict(zip(due, self._aligner.align(pictures)))
        out = []
        for number, frame in enumerate(frames):
            if frame.picture is None:
                out.append(Alignment((), f"{UNREADABLE}: {frame.reason}"))
                continue
            found = searched.get(number)
            if self._tracker is not None and frame.frame is not None:
                found = self._in_video(self._tracker, frame, frame.picture, found)
            assert found is not None
            out.append(found if found.faces else replace(found, reason=found.reason or NO_FACE))
        return out

    def _is_due(self, frame: MediaFrame) -> bool:
        return frame.picture is not None and (frame.frame or 0) % self._every == 0

    def _in_video(
        self, tracker: FaceTracker, frame: MediaFrame, picture: NDArray[np.uint8], searched: Alignment | None
    ) -> Alignment:
        """The faces of a video's next frame, with the numbers of their tracks.

        Args:
            picture: of the frame. searched: what the search found in it, if it was due.
        """
        if frame.file != self._video or frame.frame == 0:
            self._video, self._sought = frame.file, 0
            tracker.begin()
        if searched is None and not self._sought:
            followed = tracker.follow(picture)
            if followed is not None:
                return followed
        wanted = self._sought or tracker.num_followed
        gives_up = self._sought > 0 and searched is not None
        found = tracker.take(searched or self._aligner.align([picture])[0])
        self._sought = wanted if len(found.faces) < wanted and not gives_up else 0
        return found


class FacePredictor:
    """A model and the way its faces are found and cut out."""

    def __init__(self, loaded: LoadedModel, config: PredictConfig) -> None:
        """
        Raises:
            DataError: its faces were aligned to a template that is not known.
            ConfigError: a device that is not there, or a model that reads clips.
        """
        if loaded.spec.kind == "mran":
            raise ConfigError("this run's model reads video, not single pictures: use ClipPredictor")
        self.config = config
        self.spec = loaded.spec
        self.rendered = bool(loaded.facts.get("rendered"))
        self.columns = FaceColumns(loaded.spec.expr, loaded.spec.au)
        self.align, self.note = align_config(loaded.facts.get("alignment", ()), config)
        self._device = device_of(config.device)
        self._model = loaded.model.eval().to(self._device)
        self._find = FaceFinder(self.align, config.every, self._device)

    def __call__(self, frames: Sequence[MediaFrame]) -> Iterator[FramePrediction]:
        """Yields what is said of each frame, in order; a video's frames must come in order too."""
        found_in = zip(frames, self._find(frames), strict=True)
        for in_video, some in groupby(found_in, key=lambda pair: pair[0].frame is not None):
            yield from self._predicted(list(some), self.config.looks or (1 if in_video else 10))

    def _predicted(
        self, found_in: Sequence[tuple[MediaFrame, Alignment]], looks: int
    ) -> Iterator[FramePrediction]:
        scores = self._scores([face.image for _, found in found_in for face in found.faces], looks)
        for frame, found in found_in:
            place = FacePrediction(frame.file, frame.frame, frame.seconds)
            faces = tuple(face.image for face in found.faces)
            rows = [
                replace(place, face=number, **face_place(face), **next(scores))
                for number, face in enumerate(found.faces, start=1)
            ]
            yield FramePrediction(frame, tuple(rows or [replace(place, status=found.reason)]), faces)

    @torch.inference_mode()
    def _scores(self, faces: Sequence[NDArray[np.uint8]], looks: int) -> Iterator[dict[str, Any]]:
        """The part of a row that the model makes, for each aligned face."""
        size = self.spec.image_size
        for start in range(0, len(faces), self.config.batch_size):
            part = faces[start : start + self.config.batch_size]
            images = torch.stack(
                [fit(torch.from_numpy(np.array(face)).permute(2, 0, 1), size) for face in part]
            )
            out = averaged_outputs(self._model, images.to(self._device), looks)
            expr, au, va = (None if values is None else values.double().cpu().tolist() for values in out)
            for number in range(len(part)):
                scores: dict[str, Any] = {}
                if expr is not None:
                    scores["expr_probs"] = dict(zip(self.spec.expr, expr[number]))
                    scores["expression"] = max(scores["expr_probs"], key=scores["expr_probs"].__getitem__)
                if au is not None:
                    scores["au_probs"] = dict(zip(self.spec.au, au[number]))
                if va is not None:
                    scores["valence"], scores["arousal"] = va[number]
                yield scores


def align_config(
    recipes: Mapping[str, Any] | Sequence[Mapping[str, Any]], config: PredictConfig
) -> tuple[AlignConfig, str]:
    """How faces are to be cut out for a model, from what its file says of its training faces.

    Args:
        recipes: of each of its shard sets, as manifests have them.
        config: options that go before them.

    Returns:
        The alignment, and what is to be said of it ("" = nothing).

    Raises:
        DataError: the faces lie by another template than `shards.template`.
    """
    known = [recipes] if isinstance(recipes, Mapping) else list(recipes)
    first = next((recipe for recipe in known if _geometry(recipe) is not None), known[0] if known else {})
    size, margin = _geometry(first) or (int(first.get("geometry", {}).get("size", 0)), 0.0)
    if config.align == "none":
        return AlignConfig(mode="none", size=size), ""
    detector = first.get("detector")
    detector = detector if isinstance(detector, Mapping) else {}
    default = AlignConfig()
    align = AlignConfig(
        mode="detect",
        size=size or default.size,
        margin=margin,
        faces=config.faces,
        min_face=first.get("min_face", default.min_face),
        min_confidence=_either(config.min_confidence, detector.get("min_confidence", default.min_confidence)),
        detect_side=_either(config.detect_side, detector.get("side", default.detect_side)),
    )
    note = ""
    if _geometry(first) is None:
        note = (
            "the model's file does not say where its faces lie in their images; they are cut out by the "
            f"template {TEMPLATE_NAME}, without margin. For pictures that are cut out as its own: align=none"
        )
    elif len({_geometry(recipe) for recipe in known}) > 1:
        note = f"the model learned from faces cut out in several ways; here: {size} pixels, margin {margin:g}"
    return align, note


def _geometry(recipe: Mapping[str, Any]) -> tuple[int, float] | None:
    """(size, margin) of faces that lie by our template; None where a recipe names none."""
    stated = recipe.get("geometry", recipe)  # the default faces state it without this heading
    points = stated.get("points", stated.get("template"))
    if points is None:
        return None
    if points != TEMPLATE_NAME:
        given = np.asarray(points, np.float64) if not isinstance(points, str) else np.zeros(0)
        if given.shape != TEMPLATE.shape or not np.allclose(given, TEMPLATE, atol=0.01):
            raise DataError(
                f"the model's faces lie by a template that is not {TEMPLATE_NAME}; cut faces out as its "
                "training faces were, and predict with align=none"
            )
    return int(stated.get("size", 0)), float(stated.get("margin", 0.0))


def device_of(name: str) -> torch.device:
    """The device of this name; of "" a GPU if there is one.

    Raises:
        ConfigError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ConfigError(f"device={name}: use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: there is no GPU that can be used; leave it out, or use cpu")
    return device


def _either(wanted: Any, otherwise: Any) -> Any:
    return otherwise if wanted is None else wanted


def face_place(face: AlignedFace) -> dict[str, Any]:
    """The part of a row that says where a face is."""
    marks = None if face.landmarks is None else tuple((x, y) for x, y in face.landmarks.tolist())
    return {"box": face.box, "landmarks": marks, "detection": face.confidence, "track": face.track}
