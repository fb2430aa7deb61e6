"""MTCNN behind one class: any sizes, any number of faces, one by one the same as together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shards.align import FaceDetector, load_image
from shards.align.detector import _canvas
from shards.labels import DataError

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(device="cpu")


def load(path: Path) -> Picture:
    return load_image(path.read_bytes())


def test_pictures_of_any_size_without_a_face(detector: FaceDetector) -> None:
    sizes = [(1, 1), (5, 300), (900, 12), (64, 64), (200, 90), (64, 64)]
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    found = detector.detect([*pictures, np.zeros((100, 100, 3), np.uint8)])
    assert [len(faces) for faces in found] == [0] * 7
    for faces in found:
        assert faces.boxes.shape == (0, 4) and faces.landmarks.shape == (0, 5, 2)
        assert faces.boxes.dtype == np.float32


def test_no_pictures(detector: FaceDetector) -> None:
    assert detector.detect([]) == []


def test_small_pictures_are_enlarged_and_large_ones_shrunk() -> None:
    for shape, border, expected in [
        ((128, 128), 0.0, (192, 192)),
        ((218, 178), 0.0, (224, 192)),
        ((2000, 1000), 0.0, (512, 256)),
        ((10, 4000), 0.0, (64, 512)),
        ((128, 128), 0.25, (288, 288)),
    ]:
        canvas = _canvas(np.zeros((*shape, 3), np.uint8), 512, border)
        assert canvas.pixels.shape == (*expected, 3)


class FailingNet:
    """Fails as facenet-pytorch does on a candidate wholly outside; here, on pictures with a white corner."""

    def detect(self, pictures: Picture, landmarks: bool) -> tuple[list[Any], list[Any], list[Any]]:
        if (pictures[:, 0, 0] == 255).any():
            raise IndexError("The shape of the mask does not match")
        box = np.array([[10, 10, 50, 50]], dtype=object)
        points = np.full((1, 5, 2), 20, dtype=object)
        return [box] * len(pictures), [np.array([0.99])] * len(pictures), [points] * len(pictures)


def test_a_failure_costs_one_picture_only() -> None:
    detector = FaceDetector(device="cpu", batch_pixels=10_000_000)
    detector._net = FailingNet()
    good, bad = np.zeros((192, 192, 3), np.uint8), np.full((192, 192, 3), 255, np.uint8)
    found = detector._search([good, bad, good], range(3), border=0.0)
    assert [len(found[index]) for index in range(3)] == [1, 0, 1]
    assert found[1].error == "detector failed: IndexError"


class FaultyNet:
    """A device that fails, as with a batch of more than `room` pictures."""

    def __init__(self, error: Exception, room: int) -> None:
        self.error, self.room = error, room

    def detect(self, pictures: Picture, landmarks: bool) -> tuple[list[Any], list[Any], list[Any]]:
        if len(pictures) > self.room:
            raise self.error
        return [None] * len(pictures), [None] * len(pictures), [None] * len(pictures)


def test_a_fault_of_the_device_is_no_fault_of_the_picture() -> None:
    detector = FaceDetector(device="cpu", batch_pixels=10_000_000)
    pictures = [np.zeros((192, 192, 3), np.uint8)] * 5
    detector._net = FaultyNet(RuntimeError("CUDA error: an illegal memory access was encountered"), 0)
    with pytest.raises(RuntimeError, match="illegal memory"):
        detector.detect(pictures)
    detector._net = FaultyNet(torch.OutOfMemoryError("CUDA out of memory"), 0)
    with pytest.raises(DataError, match=r"too little memory.*build\.workers"):
        detector.detect(pictures)
    detector._net = FaultyNet(torch.OutOfMemoryError("CUDA out of memory"), 2)
    assert [faces.error for faces in detector.detect(pictures)] == [""] * 5


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=r"align\.device=cuda: there is no GPU"):
        FaceDetector(device="cuda")


def test_batched_equals_one_by_one(shared_data: Path) -> None:
    paths = sorted((shared_data / "sfhq").glob("*.jpg"))[:10]
    pictures = [load(path) for path in paths] + [load(shared_data / "photos" / "group_of_six.jpg")]
    pictures.insert(3, np.zeros((128, 128, 3), np.uint8))
    together = FaceDetector(device="cpu", batch_pixels=4_000_000).detect(pictures)
    alone = [FaceDetector(device="cpu").detect([picture])[0] for picture in pictures]
    assert [len(faces) for faces in together] == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 6]
    for one, other in zip(together, alone):
        assert np.abs(one.landmarks - other.landmarks).max(initial=0) < 0.1
        assert np.abs(one.boxes - other.boxes).max(initial=0) < 0.1
        assert np.abs(one.confidences - other.confidences).max(initial=0) < 1e-4


def test_landmarks_do_not_depend_on_the_size_of_the_picture(
    detector: FaceDetector, shared_data: Path
) -> None:
    small = load(shared_data / "photos" / "single_001.jpg")
    large = small.repeat(3, 0).repeat(3, 1)
    one, other = detector.detect([small, large])
    assert len(one) == len(other) == 1
    assert np.abs((other.landmarks + 0.5) / 3 - 0.5 - one.landmarks).max() < 4
    eyes, mouth = one.landmarks[0, :2], one.landmarks[0, 3:]
    assert eyes[0, 0] < eyes[1, 0] and (eyes[:, 1] < mouth[:, 1]).all()


@pytest.mark.parametrize("folder", ["portraits", "sfhq", "london"])
def test_tight_crops_are_found(detector: FaceDetector, shared_data: Path, folder: str) -> None:
    paths = sorted((shared_data / folder).glob("*.jpg"))
    pictures = [load(path) for path in paths[:: len(paths) // 20]]
    found = [len(faces) > 0 for faces in detector.detect(pictures)]
    assert np.mean(found) >= 0.95
