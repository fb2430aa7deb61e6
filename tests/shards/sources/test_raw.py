"""The one way from raw faces to samples, whatever the layout."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from shards.align import AlignConfig, FaceDetector, Faces
from shards.align.geometry import TEMPLATE
from shards.labels import DataError, FaceLabels
from shards.records import Encoded, Item, Rejected, SourceInfo
from shards.sources import AlignedFaces, RawFace, Reader, raw
from tests.shards.sources.layouts import drawn, labels

LABELS = FaceLabels(expr="fear", valence=0.5, identity="p", group="g", extra={"light": "dim"})


@dataclass
class InMemory:
    """A raw source of pictures by key; None cannot be read."""

    pictures: dict[str, bytes | None]
    has_landmarks: bool = False
    info: SourceInfo = field(default_factory=lambda: SourceInfo("memory", "CC0"))

    def splits(self) -> Sequence[str]:
        return ["train"]

    def items(self, split: str) -> Sequence[Item]:
        return [Item(key) for key in self.pictures]

    def open_reader(self) -> Reader:
        def read(item: Item) -> RawFace:
            data = self.pictures[item.key]
            if data is None:
                raise PermissionError(13, "Permission denied", "/some/where")
            return RawFace(data, LABELS, TEMPLATE if self.has_landmarks else None)

        return read


class FakeDetector(FaceDetector):
    """As many faces as the picture is hundreds of pixels wide, from right to left."""

    def __init__(self) -> None:
        pass

    def detect(self, pictures: Sequence[Any]) -> list[Faces]:
        out = []
        for picture in pictures:
            lefts = [100 * number for number in reversed(range(picture.shape[1] // 100))]
            points = np.array([TEMPLATE * 0.8 + (left, 0) for left in lefts], np.float32)
            boxes = np.array([(left, 0, left + 90, 90) for left in lefts], np.float32).reshape(-1, 4)
            out.append(Faces(boxes, np.ones(len(lefts), np.float32), points.reshape(-1, 5, 2)))
        return out


def detected(pictures: dict[str, bytes | None], faces: str) -> list[Encoded | Rejected]:
    source = AlignedFaces(InMemory(pictures), AlignConfig(mode="detect", faces=faces))
    maker: Any = source.open_maker()
    maker.aligner.detector = FakeDetector()
    return list(maker(source.items("train")))


def test_several_faces_share_no_label() -> None:
    records = detected({"one": drawn(0, (100, 100)), "two": drawn(1, (200, 100))}, "all")
    assert [record.key for record in records] == ["one-1", "two-1", "two-2"]
    assert labels(records[0])["expr"] == "fear" and labels(records[0])["identity"] == "p"
    for record, left in zip(records[1:], (0, 100)):
        assert isinstance(record, Encoded) and record.expr == -1
        detection = {"box": [left, 0, left + 90, 90], "confidence": 1.0}
        assert labels(record) == {"group": "g", "extra": {"light": "dim", "detection": detection}}


def test_one_face_keeps_the_key() -> None:
    records = detected({"two": drawn(1, (200, 100)), "none": drawn(2, (50, 50))}, "largest")
    assert [record.key for record in records] == ["two", "none"]
    assert labels(records[0])["expr"] == "fear"
    assert records[1] == Rejected("none", "no face")
    assert detected({"two": drawn(1, (200, 100))}, "one") == [Rejected("two", "several faces: 2")]


@pytest.mark.parametrize("budget", [1, 30_000, 10**9])
def test_order_and_bytes_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    pictures: dict[str, bytes | None] = {f"k{n}": drawn(n, (112, 112)) for n in range(7)}
    pictures |= {"k3": None, "k5": b"junk"}
    source = AlignedFaces(InMemory(pictures, has_landmarks=True))
    expected = [record for item in source.items("train") for record in source.open_maker()([item])]
    monkeypatch.setattr(raw, "_BATCH_PIXELS", budget)
    records = list(source.open_maker()(source.items("train")))
    assert [record.key for record in records] == list(pictures)
    assert records == expected
    assert records[3] == Rejected("k3", "cannot read: Permission denied")


def test_an_unknown_expression_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.LABELS", FaceLabels(expr="bored"))
    source = AlignedFaces(InMemory({"a": drawn(0)}), AlignConfig(mode="none"))
    assert list(source.open_maker()([Item("a")])) == [Rejected("a", "unknown expression 'bored'")]


def test_auto_takes_landmarks_where_there_are_any() -> None:
    source = AlignedFaces(InMemory({"a": drawn(0, (112, 112))}, has_landmarks=True))
    assert source.info.alignment["mode"] == "given"
    [record] = source.open_maker()(source.items("train"))
    assert isinstance(record, Encoded) and json.loads(record.members["json"]) == LABELS.to_json()
    assert pickle.loads(pickle.dumps(source)).info == source.info
    with pytest.raises(DataError, match="no landmarks"):
        AlignedFaces(InMemory({}), AlignConfig(mode="given"))


def test_faces_that_are_aligned_already_stay_as_they_are() -> None:
    """The data set's own word on its alignment becomes part of the recipe, and only where it is used."""
    data = drawn(0, (112, 112))
    memory = InMemory({"a": data}, has_landmarks=True)
    memory.info = SourceInfo("memory", "CC0", alignment={"made_by": "its authors", "margin": 0.0})
    source = AlignedFaces(memory)
    assert source.info.alignment["mode"] == "none"
    assert source.info.alignment["geometry"] == {"size": 112, "made_by": "its authors", "margin": 0.0}
    [record] = source.open_maker()(source.items("train"))
    assert isinstance(record, Encoded) and record.members["jpg"] == data
    again = AlignedFaces(memory, AlignConfig(mode="given")).info.alignment
    assert again == AlignConfig(mode="given").recipe()
    with pytest.raises(DataError, match=r"align\.margin=0\.1: has no meaning"):
        AlignedFaces(memory, AlignConfig(margin=0.1))
