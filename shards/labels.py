"""The one home of label names and orders, and of what a label is before it becomes a tensor.

Orders are those of Aff-Wild2's multi-task challenge (ABAW); other data sets name their own classes in the
manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EXPR8 = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")
AU12 = ("AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26")

MAX_CLIP = 60_000
"""Frames that a clip may have; a sample of more members cannot be indexed."""


class DataError(Exception):
    """The data at hand cannot be used; the message names the thing and the remedy."""


class ReadError(DataError):
    """A file could not be read, which says nothing of what is in it: it may go better the next time."""


@dataclass(frozen=True)
class FaceLabels:
    """What is known about one face. Absent is None (or not in `au`): missing is decided here, once.

    Attributes:
        expr: name of the expression class.
        au: unit name -> 0 or 1, only for the units that were labelled.
        valence, arousal: in [-1, 1].
        identity: who it is, in the data set's own words.
        group: video or subject, for splits and confidence intervals.
        extra: anything else worth carrying (light, attributes, intensities): plain JSON values.
    """

    expr: str | None = None
    au: Mapping[str, int] = field(default_factory=dict)
    valence: float | None = None
    arousal: float | None = None
    identity: str | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Only what is present, in a fixed order; read back by `from_json`."""
        out: dict[str, Any] = {}
        for name in ("expr", "valence", "arousal", "identity", "group"):
            value = getattr(self, name)
            if value is not None:
                out[name] = value
        if self.au:
            out["au"] = dict(self.au)
        if self.extra:
            out["extra"] = dict(self.extra)
        return out

    @staticmethod
    def from_json(data: Any, where: str = "labels") -> FaceLabels:
        """Checks types and ranges; unknown keys are kept in `extra`.

        Raises:
            DataError: a value of the wrong type or out of range, naming `where`, the field and the value.
        """
        if not isinstance(data, dict):
            raise DataError(f"{where}: labels must be a JSON object, got {type(data).__name__}")
        known = {"expr", "au", "valence", "arousal", "identity", "group", "extra"}
        return FaceLabels(
            expr=_optional_text(data, "expr", where),
            au=_units(data.get("au"), where),
            valence=_affect(data, "valence", where),
            arousal=_affect(data, "arousal", where),
            identity=_optional_text(data, "identity", where),
            group=_optional_text(data, "group", where),
            extra=_extra(data, known, where),
        )


@dataclass(frozen=True)
class ClipLabels:
    """What is known about one clip: valence and arousal of each of its frames.

    Attributes:
        num_frames: frames of the clip, at least 1; also those of which no picture is stored.
        fps: frames a second.
        valence, arousal: (num_frames,) in [-1, 1], None where missing; () = all missing.
        start_frame: number of the clip's first frame in its recording.
        identity: who it is. group: the recording, for scores by recording. Both in the data set's own words.
        extra: anything else worth carrying: plain JSON values.
    """

    num_frames: int
    fps: float
    valence: Sequence[float | None] = ()
    arousal: Sequence[float | None] = ()
    start_frame: int = 0
    identity: str | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Only what is present, in a fixed order; read back by `from_json`."""
        out: dict[str, Any] = {"num_frames": self.num_frames, "fps": self.fps}
        if self.start_frame:
            out["start_frame"] = self.start_frame
        for name in ("valence", "arousal"):
            if getattr(self, name):
                out[name] = list(getattr(self, name))
        for name in ("identity", "group"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        if self.extra:
            out["extra"] = dict(self.extra)
        return out

    @staticmethod
    def from_json(data: Any, where: str = "labels") -> ClipLabels:
        """Checks types, ranges and lengths; unknown keys are kept in `extra`.

        Raises:
            DataError: num_frames or fps missing, a value of the wrong type or out of range, or a list of
                another length; names `where`, the field and the value.
        """
        if not isinstance(data, dict):
            raise DataError(f"{where}: labels must be a JSON object, got {type(data).__name__}")
        num_frames, fps = data.get("num_frames"), data.get("fps")
        if type(num_frames) is not int or not 1 <= num_frames <= MAX_CLIP:
            raise DataError(f"{where}: num_frames must be from 1 to {MAX_CLIP}, got {num_frames!r:.80}")
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= 10_000:
            raise DataError(f"{where}: fps must be a number of frames a second, got {fps!r:.80}")
        start = data.get("start_frame", 0)
        if type(start) is not int or not 0 <= start < 2**62:
            raise DataError(f"{where}: start_frame must be 0 or more, got {start!r:.80}")
        known = {"num_frames", "fps", "start_frame", "valence", "arousal", "identity", "group", "extra"}
        return ClipLabels(
            num_frames=num_frames,
            fps=float(fps),
            valence=_affects(data, "valence", num_frames, where),
            arousal=_affects(data, "arousal", num_frames, where),
            start_frame=start,
            identity=_optional_text(data, "identity", where),
            group=_optional_text(data, "group", where),
            extra=_extra(data, known, where),
        )


def _extra(data: dict[str, Any], known: set[str], where: str) -> dict[str, Any]:
    """`extra`, and with it every key that is not `known`."""
    extra = data.get("extra", {})
    if not isinstance(extra, dict):
        raise DataError(f"{where}: extra must be a JSON object, got {extra!r:.80}")
    return {**{k: v for k, v in data.items() if k not in known}, **extra}


def _affects(data: dict[str, Any], name: str, count: int, where: str) -> tuple[float | None, ...]:
    """Valence or arousal of each frame."""
    values = data.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) != count:
        said = f"{len(values)} values" if isinstance(values, list) else f"{values!r:.80}"
        raise DataError(f"{where}: {name} must be a list of {count}, one for each frame, got {said}")
    return tuple(_affect({name: value}, name, f"{where}: frame {i}") for i, value in enumerate(values))


def _optional_text(data: dict[str, Any], name: str, where: str) -> str | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        if not _is_unicode(value):
            raise DataError(f"{where}: {name} must be text, got {value!r:.80}, which is not Unicode")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: {name} must be text, got {value!r:.80}")


def _is_unicode(text: str) -> bool:
    """False with half of a surrogate pair, as JSON may state: no file can hold it."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _affect(data: dict[str, Any], name: str, where: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    # Said so that neither nan nor an integer beyond any float gets through or raises.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1:
        raise DataError(
            f"{where}: {name} must be a number in [-1, 1], got {value!r:.80} (leave it out if missing)"
        )
    return float(value)


def _units(value: Any, where: str) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: au must be a JSON object of unit name -> 0 or 1, got {value!r:.80}")
    for name, state in value.items():
        if isinstance(state, bool) or state not in (0, 1):
            raise DataError(f"{where}: {name} must be 0 or 1, got {state!r:.80} (leave it out if missing)")
    return {str(name): int(state) for name, state in value.items()}
