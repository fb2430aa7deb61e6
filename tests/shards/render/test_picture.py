"""What the cameras see: aligned faces, physical depth and heat, and each action unit where it belongs."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageOps

from shards.frames import ZERO_CELSIUS_CK
from shards.keyed import generator, sample_key
from shards.labels import AU12
from shards.records import Encoded
from shards.render import RenderedFaces
from shards.render.actions import draw_expression, unit_vector
from shards.render.camera import draw_camera
from shards.render.geometry import Similarity, fit_similarity
from shards.render.head import Head, build_head
from shards.render.picture import DEFAULT_MARGIN, Picture, View, render
from shards.render.scene import Frame, Glasses, Pose, Scene, draw_frame, draw_scene
from shards.render.sheet import contact_sheet
from shards.template import template_points
from tests.shards.render.regions import region_mask

NUM_HEADS = 8


@pytest.fixture(scope="module")
def heads() -> list[Head]:
    return [build_head(generator(sample_key(7, 0, n), "head")) for n in range(NUM_HEADS)]


@pytest.fixture(scope="module")
def resting(heads: list[Head]) -> list[Picture]:
    return [render(head, Frame(), Scene(), View()) for head in heads]


@pytest.mark.parametrize("unit", AU12)
def test_each_unit_changes_its_own_region(unit: str, heads: list[Head], resting: list[Picture]) -> None:
    region = region_mask(unit, 112, DEFAULT_MARGIN)
    inside, outside = [], []
    for head, rest in zip(heads, resting):
        frame = Frame(units=unit_vector(**{unit: 1.0}))
        moved = render(head, frame, Scene(), View(fixed=rest.transform), color_only=True)
        difference = np.abs(moved.color.astype(np.float64) - rest.color).mean(axis=2)
        inside.append(difference[region].mean())
        outside.append(difference[~region].mean())
    assert np.mean(inside) >= 2
    assert np.mean(outside) <= 0.3


def test_rendering_twice_gives_the_same_pixels(heads: list[Head]) -> None:
    pictures = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        frame = draw_frame(rng, draw_expression(rng).units)
        scene = draw_scene(rng, True, heads[0].skin)
        pictures.append(render(heads[0], frame, scene, View(), draw_camera(rng), rng))
    for name in ("color", "depth", "thermal", "landmarks"):
        np.testing.assert_array_equal(getattr(pictures[0], name), getattr(pictures[1], name))


def test_colour_alone_is_the_same_colour(heads: list[Head], resting: list[Picture]) -> None:
    alone = render(heads[0], Frame(), Scene(), View(), color_only=True)
    np.testing.assert_array_equal(alone.color, resting[0].color)
    assert alone.depth is None
    assert alone.thermal is None


@pytest.mark.parametrize("yaw", [-0.6, 0.0, 0.6])
@pytest.mark.parametrize("size", [64, 112])
def test_faces_are_aligned_at_every_turn(yaw: float, size: int, heads: list[Head]) -> None:
    target = template_points(size, DEFAULT_MARGIN)
    worst = []
    for head in heads:
        picture = render(head, Frame(pose=Pose(yaw=yaw, roll=0.2)), Scene(), View(size), color_only=True)
        error = picture.landmarks - target
        # A least squares fit: no shift is left.
        np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-3)
        worst.append(np.abs(error).max())
    # Turning away leaves the nose off: by an eighth of the frame, of one short face in eight by a bit more.
    assert np.sort(worst)[-2] < size / 8
    assert np.median(worst) < size / 10
    assert max(worst) < size / 7


def test_similarity_is_found_back() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (5, 2))
    true = Similarity(complex(0.8, 0.3), complex(-4, 7))
    moved = np.stack(true(points[:, 0].astype(np.float32), points[:, 1].astype(np.float32)), axis=1)
    found = fit_similarity(points, moved.astype(np.float64))
    assert found.factor == pytest.approx(true.factor, abs=1e-5)
    assert found.shift == pytest.approx(true.shift, abs=1e-3)


def test_depth_is_in_millimetres_and_holes_are_zero(heads: list[Head], resting: list[Picture]) -> None:
    frame, scene = Frame(distance=7.0), Scene(wall_mm=1200)
    for head in heads[:3]:
        depth = render(head, frame, scene, View()).depth
        assert depth is not None
        assert depth.dtype == np.uint16
        nose, corner = int(depth[60:75, 50:62].min()), int(depth[0, 0])
        assert 600 < nose < 700
        assert corner == 700 + 1200
        assert 20 < int(depth[80, 15:97].max()) - nose < 1300
    rng = np.random.default_rng(0)
    noisy = [render(heads[0], frame, scene, View(), draw_camera(rng), rng).depth for _ in range(3)]
    for depth in noisy:
        assert depth is not None
        assert 0 < (depth == 0).mean() < 0.1
        assert depth[depth > 0].min() > 500


def test_skin_is_warm_and_the_room_is_not(resting: list[Picture]) -> None:
    for picture in resting:
        assert picture.thermal is not None
        celsius = (picture.thermal.astype(np.float64) - ZERO_CELSIUS_CK) / 100
        assert picture.thermal.dtype == np.uint16
        assert celsius[0, 0] == pytest.approx(Scene().room_c, abs=0.05)
        assert 31 < np.median(celsius[40:90, 35:77]) < 36
        assert celsius.max() < 38
        assert celsius.min() > 20


def test_arousal_cools_the_nose_for_the_thermal_camera_alone(heads: list[Head]) -> None:
    calm, tense = (render(heads[0], Frame(autonomic=level), Scene(), View()) for level in (0.0, 1.0))
    assert calm.thermal is not None
    assert tense.thermal is not None
    change = (tense.thermal.astype(np.float64) - calm.thermal) / 100
    column, row = calm.landmarks[2].round().astype(int)
    assert change[row - 2 : row + 3, column - 2 : column + 3].mean() < -0.6
    assert change.max() > 0.2
    np.testing.assert_array_equal(tense.color, calm.color)


def test_a_smooth_trajectory_gives_smooth_clips(heads: list[Head]) -> None:
    frames = [
        Frame(units=unit_vector(AU12=t, AU25=0.5 * t), pose=Pose(yaw=0.3 * t), breath=float(np.sin(6 * t)))
        for t in np.linspace(0, 1, 12)
    ]
    clip = [render(heads[1], frame, Scene(), View()) for frame in frames]
    steps = [np.abs(b.color.astype(float) - a.color).mean() for a, b in pairwise(clip)]
    whole = np.abs(clip[-1].color.astype(float) - clip[0].color).mean()
    assert 0 < max(steps) < whole / 2


def test_glasses_are_cold_and_leave_the_depth_alone(heads: list[Head], resting: list[Picture]) -> None:
    worn = Glasses(radius=(0.22, 0.17), squareness=3.0, rim=0.025, colour=(0.01, 0.01, 0.01), passes=0.95)
    picture = render(heads[0], Frame(), Scene(glasses=worn), View())
    bare = resting[0]
    assert picture.thermal is not None
    assert bare.thermal is not None
    column, row = bare.landmarks[0].round().astype(int)
    assert bare.thermal[row, column].astype(int) - picture.thermal[row, column] > 300
    np.testing.assert_array_equal(picture.depth, bare.depth)
    assert (picture.color != bare.color).any()


def test_a_detector_finds_the_stored_faces() -> None:
    from facenet_pytorch import MTCNN

    faces = RenderedFaces(num_train=40, num_val=0, num_test=0, num_identities=20, seed=11)
    made = [face for face in faces.open_maker()(faces.items("train")) if isinstance(face, Encoded)]
    images = []
    for face in made:
        with Image.open(io.BytesIO(face.members["jpg"])) as image:
            # A quarter of grey on each side, twice the size: detectors expect faces within pictures.
            images.append(ImageOps.expand(image.convert("RGB"), 28, fill=(127, 127, 127)).resize((336, 336)))
    boxes, _, points = MTCNN(keep_all=True, device="cpu").detect(images, landmarks=True)
    found = [box is not None for box in boxes]
    assert np.mean(found) >= 0.97
    errors = []
    for face, landmarks in zip(made, points):
        if landmarks is not None:
            true = np.array(json.loads(face.members["json"])["extra"]["landmarks"])
            candidates = np.asarray(landmarks, np.float64) / 2 - 28
            errors.append(np.linalg.norm(candidates - true, axis=2).mean(axis=1).min())
    assert np.median(errors) < 3


def test_the_contact_sheet_has_its_size() -> None:
    sheet = contact_sheet(seed=0, num_identities=2, size=48)
    assert sheet.mode == "RGB"
    assert sheet.size == (8 * 48, 8 * 48 + 3 * 14)
    pixels = np.asarray(sheet)
    assert pixels[14 : 14 + 2 * 48].std() > 30
