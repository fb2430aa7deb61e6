"""The one way from raw faces to samples, whatever the layout."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.align import AlignConfig, FaceDetector, Faces
from shards.align.decode import load_image
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
                raise DataError("cannot read: cut short")
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
    assert records[3] == Rejected("k3", "cannot read: cut short")


def test_no_more_is_held_at_once_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three small pictures fit; with the large one, held alone, they would not."""
    pictures: dict[str, bytes | None] = {f"k{n}": drawn(n, (20, 20)) for n in range(4)}
    pictures["k2"] = drawn(9, (40, 40))
    held: list[int] = []
    maker: Any = AlignedFaces(InMemory(pictures), AlignConfig(mode="none", size=16)).open_maker()
    align = maker.aligner.align

    def spy(batch: Sequence[Any], landmarks: Sequence[Any]) -> Any:
        held.append(sum(picture.shape[0] * picture.shape[1] for picture in batch))
        return align(batch, landmarks)

    maker.aligner.align = spy
    monkeypatch.setattr(raw, "_BATCH_PIXELS", 1700)
    assert len(list(maker([Item(key) for key in pictures]))) == 4
    assert held == [800, 1600, 400]


@dataclass
class Flaky(InMemory):
    """The first `failures` reads fail as a network disk does."""

    failures: int = 0

    def open_reader(self) -> Reader:
        left = [self.failures]

        def read(item: Item) -> RawFace:
            if left[0]:
                left[0] -= 1
                raise OSError(116, "Stale file handle", "/some/where/a.jpg")
            return RawFace(self.pictures[item.key] or b"")

        return read


def test_a_file_that_cannot_be_read_is_tried_again_and_never_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(raw, "_WAITS", (0.0, 0.0, 0.0))

    def records(failures: int) -> list[Encoded | Rejected]:
        source = AlignedFaces(Flaky({"a": drawn(0)}, failures=failures), AlignConfig(mode="none"))
        return list(source.open_maker()([Item("a")]))

    assert isinstance(records(3)[0], Encoded)
    with pytest.raises(DataError, match=r"/some/where/a\.jpg: cannot be read \(Stale file handle; tried 4"):
        records(4)


@pytest.mark.parametrize(
    ("labels_of_b", "reason"),
    [
        (lambda: FaceLabels(extra={"caption": "\ud800"}), "not Unicode"),
        (lambda: FaceLabels(extra={1: 0, "b": 0}), "cannot be used: TypeError"),  # type: ignore[dict-item]
        (lambda: FaceLabels(valence=float(10**400)), "cannot be used: OverflowError"),
    ],
)
def test_labels_that_cannot_be_used_cost_one_picture(labels_of_b: Any, reason: str) -> None:
    class Odd(InMemory):
        def open_reader(self) -> Reader:
            return lambda item: RawFace(drawn(0), labels_of_b() if item.key == "b" else FaceLabels())

    source = AlignedFaces(Odd({"a": b"", "b": b"", "c": b""}), AlignConfig(mode="none"))
    records = list(source.open_maker()(source.items("train")))
    assert [record.key for record in records] == ["a", "b", "c"]
    assert isinstance(records[1], Rejected) and reason in records[1].reason
    assert isinstance(records[0], Encoded) and isinstance(records[2], Encoded)


def test_a_place_in_the_metadata_does_not_reach_the_shard() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    out = io.BytesIO()
    Image.open(io.BytesIO(drawn(0, (112, 112)))).save(out, "JPEG", quality=95, exif=exif, comment=b"SECRET")
    data = out.getvalue()
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(0x8825)
    source = AlignedFaces(InMemory({"a": data}), AlignConfig(mode="none"))
    [record] = source.open_maker()([Item("a")])
    assert isinstance(record, Encoded)
    kept = Image.open(io.BytesIO(record.members["jpg"]))
    assert not kept.getexif() and b"SECRET" not in record.members["jpg"]
    assert np.array_equal(load_image(record.members["jpg"]), load_image(data))


def test_a_fault_of_the_detector_leaves_nothing_out() -> None:
    maker: Any = AlignedFaces(InMemory({"a": drawn(0)}), AlignConfig(mode="none")).open_maker()

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure")

    maker.aligner.align = broken
    with pytest.raises(DataError, match=r"a … a: the search for faces failed .*launch failure"):
        list(maker([Item("a")]))


def test_faces_are_searched_on_the_cpu_unless_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker would open the GPU; and what it finds may differ in last bits."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    maker: Any = AlignedFaces(InMemory({}), AlignConfig(mode="detect")).open_maker()
    assert maker.aligner.detector.device.type == "cpu"
    assert AlignConfig(mode="detect", device="cuda:1").recipe() == AlignConfig(mode="detect").recipe()
    with pytest.raises(DataError, match=r"align\.device='gpu'"):
        AlignConfig(device="gpu")


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
