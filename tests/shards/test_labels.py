"""Labels are checked where they are read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shards.labels import ClipLabels, DataError, FaceLabels


def test_labels_survive_a_round_trip() -> None:
    labels = FaceLabels("fear", {"AU1": 1, "AU12": 0}, -0.5, 0.25, "p1", "video 3", {"light": 0.5})
    assert FaceLabels.from_json(labels.to_json()) == labels
    assert FaceLabels.from_json({}) == FaceLabels()


def test_unknown_fields_are_kept() -> None:
    assert FaceLabels.from_json({"url": "a", "extra": {"b": 1}}).extra == {"url": "a", "b": 1}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "JSON object"),
        ({"expr": 1.5}, "expr"),
        ({"valence": -5}, "valence"),
        ({"arousal": float("nan")}, "arousal"),
        ({"valence": 10**400}, "valence"),
        ({"valence": float("-inf")}, "valence"),
        ({"identity": "a\ud800"}, "identity must be text, .*not Unicode"),
        ({"valence": True}, "valence"),
        ({"au": {"AU1": 2}}, "AU1"),
        ({"au": {"AU1": True}}, "AU1"),
        ({"au": [1]}, "au"),
        ({"extra": 3}, "extra"),
    ],
)
def test_bad_labels_are_refused_by_name(data: object, named: str) -> None:
    with pytest.raises(DataError, match=named):
        FaceLabels.from_json(data, "here")


def test_labels_of_clips_survive_the_round_trip() -> None:
    labels = ClipLabels(
        num_frames=3,
        fps=12.5,
        valence=(0.5, None, -1.0),
        start_frame=40,
        identity="p1",
        group="recording 7",
        extra={"dark": True},
    )
    assert ClipLabels.from_json(json.loads(json.dumps(labels.to_json()))) == labels
    assert ClipLabels.from_json({"num_frames": 1, "fps": 25, "camera": 2}).extra == {"camera": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 0}, "num_frames must be from 1 to"),
        ({"num_frames": None}, "num_frames must be"),
        ({"num_frames": True}, "num_frames must be"),
        ({"fps": 0}, "fps must be"),
        ({"fps": "25"}, "fps must be"),
        ({"start_frame": -1}, "start_frame must be 0 or more"),
        ({"valence": 0.5}, "valence must be a list of 2, one for each frame, got 0.5"),
        ({"arousal": [0.5]}, "arousal must be a list of 2, one for each frame, got 1 values"),
        ({"arousal": [0.5, 2]}, "clip: frame 1: arousal must be a number in"),
        ({"extra": []}, "extra must be a JSON object"),
    ],
)
def test_labels_of_clips_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClipLabels.from_json({"num_frames": 2, "fps": 25} | change, "clip")
    with pytest.raises(DataError, match="must be a JSON object, got list"):
        ClipLabels.from_json([], "clip")
