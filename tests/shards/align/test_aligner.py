"""From pictures to aligned faces, or the reason why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.align import AlignConfig, Aligner, FaceDetector, Faces, load_image, template_points
from shards.align.geometry import TEMPLATE, apply_affine
from shards.labels import DataError
from shards.records import fingerprint

Picture = NDArray[np.uint8]


class FakeDetector(FaceDetector):
    """Finds the faces it was given."""

    def __init__(self, faces: Faces) -> None:
        self.faces = faces

    def detect(self, pictures: object) -> list[Faces]:
        return [self.faces]


def faces_at(*scales_and_lefts: tuple[float, float], error: str = "") -> Faces:
    """Faces with the template's landmarks, enlarged and moved to the right; in the order given."""
    points = [TEMPLATE * scale + (left, 0) for scale, left in scales_and_lefts]
    boxes = [(left, 0, left + 112 * scale, 112 * scale) for scale, left in scales_and_lefts]
    return Faces(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(len(boxes), 0.95, np.float32),
        np.array(points, np.float32).reshape(-1, 5, 2),
        error,
    )


def aligner(found: Faces, **options: object) -> Aligner:
    out = Aligner(AlignConfig(mode="given", **options))  # type: ignore[arg-type]
    out.config = AlignConfig(mode="detect", **options)  # type: ignore[arg-type]
    out.detector = FakeDetector(found)
    return out


PICTURE = np.random.default_rng(0).integers(0, 255, (300, 800, 3), dtype=np.uint8)


def test_the_largest_face_is_taken() -> None:
    [alignment] = aligner(faces_at((2, 400), (1, 100))).align([PICTURE])
    [face] = alignment.faces
    assert face.image.shape == (112, 112, 3)
    assert face.box == (400, 0, 624, 224) and face.confidence == pytest.approx(0.95)
    assert face.matrix is not None
    assert np.allclose(apply_affine(face.matrix, face.landmarks), template_points(), atol=1e-3)


def test_all_faces_come_from_left_to_right() -> None:
    [alignment] = aligner(faces_at((2, 400), (1, 100), (0.5, 700)), faces="all").align([PICTURE])
    assert [face.box[0] for face in alignment.faces if face.box] == [100, 400, 700]


@pytest.mark.parametrize(
    ("faces", "options", "reason"),
    [
        (faces_at(), {}, "no face"),
        (faces_at(error="detector failed: IndexError"), {}, "detector failed: IndexError"),
        (faces_at((1, 0), (1, 200)), {"faces": "one"}, "several faces: 2"),
        (faces_at((0.107, 0)), {}, "too small: 12 px"),
        (faces_at((1, 0)), {"min_face": 150}, "too small: 112 px"),
    ],
)
def test_reasons(faces: Faces, options: dict[str, object], reason: str) -> None:
    [alignment] = aligner(faces, **options).align([PICTURE])
    assert alignment.faces == () and alignment.reason == reason


def test_a_small_face_is_passed_over_for_the_others() -> None:
    [alignment] = aligner(faces_at((1, 0), (0.1, 300)), faces="all").align([PICTURE])
    assert len(alignment.faces) == 1


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (None, "no landmarks"),
        (np.zeros((5, 2)), "bad landmarks: the points coincide"),
        (np.full((5, 2), np.inf), "bad landmarks: points must be finite"),
        (TEMPLATE * (-1, 1) + (200, 0), "bad landmarks: not those of a face"),
        (TEMPLATE - (5000, 0), "bad landmarks: outside the picture"),
        (TEMPLATE * 0.1, "too small: 11 px"),
    ],
)
def test_given_landmarks_are_checked(points: NDArray[np.float64] | None, reason: str) -> None:
    [alignment] = Aligner(AlignConfig(mode="given")).align([PICTURE], [points])
    assert alignment.faces == () and alignment.reason == reason


def test_given_landmarks_land_on_the_template_with_size_and_margin() -> None:
    config = AlignConfig(mode="given", size=160, margin=0.25)
    [alignment] = Aligner(config).align([PICTURE], [TEMPLATE * 1.5 + (30, 20)])
    [face] = alignment.faces
    assert face.image.shape == (160, 160, 3)
    assert face.matrix is not None
    assert np.allclose(apply_affine(face.matrix, face.landmarks), template_points(160, 0.25), atol=1e-6)


def test_mode_none_takes_the_centre_square() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[:, 50:150] = 200
    [alignment] = Aligner(AlignConfig(mode="none", size=32)).align([picture])
    assert alignment.faces[0].image.shape == (32, 32, 3)
    assert (alignment.faces[0].image == 200).all()
    [kept] = Aligner(AlignConfig(mode="none", size=0)).align([picture])
    assert np.array_equal(kept.faces[0].image, picture)


def test_photographs(shared_data: Path) -> None:
    """Six of six, none where there is none, one on each portrait."""
    photos = shared_data / "photos"
    singles = sorted(photos.glob("single_*.jpg"))[:4]
    names = ["group_of_six.jpg", "no_face.jpg", *(path.name for path in singles)]
    pictures = [load_image((photos / name).read_bytes()) for name in names]
    found = Aligner(AlignConfig(mode="detect", faces="all"), device="cpu").align(pictures)
    assert [len(alignment.faces) for alignment in found] == [6, 0, 1, 1, 1, 1]
    assert found[1].reason == "no face"
    lefts = [face.box[0] for face in found[0].faces if face.box]
    assert lefts == sorted(lefts)


def test_a_tilted_face_comes_out_upright(shared_data: Path) -> None:
    """Found again in its aligned image, the eyes are level and the landmarks near the template's."""
    picture = load_image((shared_data / "photos" / "tilted_20deg.jpg").read_bytes())
    worker = Aligner(AlignConfig(mode="detect", size=224, margin=0.2), device="cpu")
    [alignment] = worker.align([picture])
    matrix = alignment.faces[0].matrix
    assert matrix is not None
    assert 15 < abs(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))) < 25
    assert worker.detector is not None
    [again] = worker.detector.detect([alignment.faces[0].image])
    left, right = again.landmarks[0, :2]
    assert abs(np.degrees(np.arctan2(right[1] - left[1], right[0] - left[0]))) < 4
    assert np.abs(again.landmarks[0] - template_points(224, 0.2)).max() < 8


def test_turned_pictures_give_the_same_face(shared_data: Path) -> None:
    """Alignment takes the tilt away: a photograph and its tilted copy give nearly the same image."""
    picture = load_image((shared_data / "photos" / "single_003.jpg").read_bytes())
    turned = np.asarray(Image.fromarray(picture).rotate(12, Image.Resampling.BICUBIC, fillcolor=(128,) * 3))
    one, other = Aligner(AlignConfig(mode="detect"), device="cpu").align([picture, turned])
    difference = one.faces[0].image.astype(float) - other.faces[0].image
    assert np.abs(difference[20:100, 20:92]).mean() < 12


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "magic"},
        {"faces": "some"},
        {"size": 4},
        {"size": 0},
        {"margin": -0.1},
        {"quality": 0},
        {"min_confidence": 2},
        {"detect_side": 10},
        {"mode": "none", "margin": 0.1},
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(DataError, match=rf"align\.{list(options)[-1]}="):
        AlignConfig(**options)  # type: ignore[arg-type]


def test_auto_is_decided_by_what_the_data_has() -> None:
    assert AlignConfig().resolve(has_landmarks=True).mode == "given"
    assert AlignConfig().resolve(has_landmarks=False).mode == "detect"
    assert AlignConfig(mode="none").resolve(has_landmarks=True).mode == "none"
    with pytest.raises(DataError, match="no landmarks"):
        AlignConfig(mode="given").resolve(has_landmarks=False)
    with pytest.raises(ValueError, match="resolve"):
        Aligner(AlignConfig())


def test_the_recipe_says_what_changes_images() -> None:
    base = AlignConfig(mode="detect")
    recipe = base.recipe()
    assert recipe["geometry"]["points"] == TEMPLATE.tolist()
    assert recipe["detector"]["version"].startswith("facenet-pytorch 2.5")
    changed = [
        AlignConfig(mode="given"),
        AlignConfig(mode="none"),
        AlignConfig(mode="detect", size=128),
        AlignConfig(mode="detect", margin=0.1),
        AlignConfig(mode="detect", faces="all"),
        AlignConfig(mode="detect", min_face=30),
        AlignConfig(mode="detect", min_confidence=0.8),
        AlignConfig(mode="detect", detect_side=640),
        AlignConfig(mode="detect", quality=90),
    ]
    assert len({fingerprint(config.recipe()) for config in [base, *changed]}) == len(changed) + 1
    assert changed[0].recipe()["geometry"] == recipe["geometry"]
    assert AlignConfig(mode="detect").recipe() == recipe
