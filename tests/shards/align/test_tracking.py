"""Following faces: who is who by place, and when a picture has to be searched anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.align import AlignConfig, AlignedFace, Aligner, Alignment, FaceTracker
from shards.align.tracking import MEMORY, _crop, overlaps
from shards.keyed import generator
from shards.render.actions import prototype
from shards.render.head import build_head
from shards.render.picture import View, render
from shards.render.scene import draw_frame, draw_scene
from shards.template import template_points

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner(AlignConfig(mode="detect", faces="all"), "cpu")


@pytest.fixture
def tracker(aligner: Aligner) -> FaceTracker:
    return FaceTracker(aligner)


@pytest.fixture(scope="module")
def face() -> Picture:
    """(200, 200, 3): one rendered person."""
    head = build_head(generator(0, "head"))
    rng = generator(0, "predict")
    frame, scene = draw_frame(rng, prototype("happiness").units), draw_scene(rng, False, head.skin)
    return render(head, frame, scene, View(200, margin=0.5), color_only=True).color


def shown(face: Picture, lefts: Sequence[int]) -> Picture:
    """(240, 480, 3) faces at these places."""
    page = np.full((240, 480, 3), 128, np.uint8)
    for left in lefts:
        width = min(len(face), 480 - left)
        page[20 : 20 + len(face), left : left + width] = face[:, :width]
    return page


def found(*lefts: float) -> Alignment:
    """What a search says of faces of 80 pixels at these places."""
    return Alignment(
        tuple(
            AlignedFace(
                np.zeros((112, 112, 3), np.uint8),
                landmarks=template_points(80, 0.0) + np.array([left, 50]),
                box=(left, 50.0, left + 80, 130.0),
                confidence=0.99,
            )
            for left in sorted(lefts)
        )
    )


def tracks(alignment: Alignment | None) -> list[int | None]:
    assert alignment is not None
    return [face.track for face in alignment.faces]


def test_overlap_is_the_shared_area_over_the_joint_one() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(overlaps(boxes, boxes), expected)
    assert overlaps(boxes, np.zeros((0, 4))).shape == (3, 0)


def test_faces_keep_their_numbers_through_searches(tracker: FaceTracker) -> None:
    assert tracks(tracker.take(found(10, 200))) == [1, 2]
    assert tracks(tracker.take(found(40, 170, 320))) == [1, 2, 3]
    assert tracks(tracker.take(found(20, 175))) == [1, 2]
    tracker.begin()
    assert tracks(tracker.take(found(200))) == [1]


def test_a_face_is_known_again_for_a_second(tracker: FaceTracker) -> None:
    tracker.take(found(10))
    for _ in range(MEMORY):
        tracker.take(found())
    assert tracks(tracker.take(found(20))) == [1]
    for _ in range(MEMORY + 1):
        tracker.take(found())
    assert tracks(tracker.take(found(20))) == [2]


def test_faces_are_followed_and_cut_out_as_those_of_a_search(
    tracker: FaceTracker, aligner: Aligner, face: Picture
) -> None:
    tracker.take(aligner.align([shown(face, [10, 250])])[0])
    for step in range(1, 5):
        picture = shown(face, [10 + 6 * step, 250 - 4 * step])
        followed, [searched] = tracker.follow(picture), aligner.align([picture])
        assert followed is not None and tracks(followed) == [1, 2]
        for one, other in zip(followed.faces, searched.faces, strict=True):
            assert one.landmarks is not None and other.landmarks is not None
            assert np.linalg.norm(one.landmarks - other.landmarks, axis=1).mean() < 3
            assert one.image.shape == other.image.shape == (112, 112, 3)
            assert np.abs(one.image.astype(int) - other.image).mean() < 12
            assert one.confidence is not None and one.confidence > 0.9


def test_a_picture_is_to_be_searched_when_a_face_is_gone(
    tracker: FaceTracker, aligner: Aligner, face: Picture
) -> None:
    tracker.take(aligner.align([shown(face, [10, 250])])[0])
    assert tracker.follow(shown(face, [10])) is None
    assert tracker.num_followed == 2, "nothing has changed until the search is taken over"
    assert tracks(tracker.take(aligner.align([shown(face, [10])])[0])) == [1]


def test_a_picture_is_to_be_searched_when_two_become_one(
    tracker: FaceTracker, aligner: Aligner, face: Picture
) -> None:
    [alone] = aligner.align([shown(face, [100])])[0].faces
    assert alone.box is not None and alone.landmarks is not None
    left, right = (
        AlignedFace(
            alone.image,
            alone.matrix,
            alone.landmarks + np.array([shift, 0]),
            (alone.box[0] + shift, alone.box[1], alone.box[2] + shift, alone.box[3]),
            0.99,
        )
        for shift in (-6, 6)
    )
    tracker.take(Alignment((left,)))
    assert tracker.follow(shown(face, [100])) is not None
    tracker.take(Alignment((left, right)))
    assert tracker.follow(shown(face, [100])) is None


def test_without_faces_there_is_nothing_to_follow(tracker: FaceTracker) -> None:
    tracker.take(found())
    assert tracker.follow(np.zeros((50, 60, 3), np.uint8)) == Alignment(())


@pytest.mark.parametrize("square", [(-20, -30, 40, 30), (50, 30, 110, 90), (-300, 10, -200, 110)])
def test_what_lies_outside_the_picture_is_black(square: tuple[int, int, int, int]) -> None:
    """Reference: the picture on a large black one."""
    picture = np.random.default_rng(0).integers(1, 255, (60, 80, 3), np.uint8)
    large = np.zeros((1060, 1080, 3), np.uint8)
    large[500:560, 500:580] = picture
    inside = np.array(square) + 500
    expected = _crop(large, inside.astype(float), 24)
    assert np.array_equal(_crop(picture, np.array(square, float), 24), expected)
