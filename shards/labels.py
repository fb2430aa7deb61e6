"""The one home of label names and orders, and of what a label is before it becomes a tensor.

Orders are those of Aff-Wild2's multi-task challenge (ABAW); other data sets name their own classes in the
manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXPR8 = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")
AU12 = ("AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26")


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
        extra = data.get("extra", {})
        if not isinstance(extra, dict):
            raise DataError(f"{where}: extra must be a JSON object, got {extra!r:.80}")
        extra = {**{k: v for k, v in data.items() if k not in known}, **extra}
        return FaceLabels(
            expr=_optional_text(data, "expr", where),
            au=_units(data.get("au"), where),
            valence=_affect(data, "valence", where),
            arousal=_affect(data, "arousal", where),
            identity=_optional_text(data, "identity", where),
            group=_optional_text(data, "group", where),
            extra=extra,
        )


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
