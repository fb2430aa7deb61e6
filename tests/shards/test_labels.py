"""Labels are checked where they are read."""

from __future__ import annotations

import pytest

from shards.labels import DataError, FaceLabels


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
