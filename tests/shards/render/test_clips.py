"""The rendered clips as a source: same bytes, disjoint people, an arousal that colour alone does not show."""

from __future__ import annotations

import io
import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build import BuildConfig, build
from shards.clips import clip_eval_batches
from shards.config import MODALITIES, ClipConfig
from shards.doctor import ExamineConfig, examine
from shards.frames import ZERO_CELSIUS_CK, decode_plane, frame_extension, parse_frame
from shards.labels import ClipLabels
from shards.records import Encoded
from shards.render import RenderedClips, RenderedFaces
from shards.render import constants as c
from shards.render.clips import Shot
from shards.render.sheet import clip_sheet
from shards.shardset import open_shards
from shards.template import relative_geometry

FRAMES = 4


@pytest.fixture(scope="module")
def clips() -> RenderedClips:
    return RenderedClips(6, 2, 2, num_identities=3, seed=3, num_frames=FRAMES, size=48)


@pytest.fixture(scope="module")
def made(clips: RenderedClips) -> list[Encoded]:
    return [clip for clip in clips.open_maker()(clips.items("train")) if isinstance(clip, Encoded)]


def labels_of(clip: Encoded) -> ClipLabels:
    return ClipLabels.from_json(json.loads(clip.members["json"]))


def test_bytes_do_not_depend_on_order_or_company(clips: RenderedClips, made: list[Encoded]) -> None:
    items = clips.items("train")
    for n, clip in zip((4, 1), pickle.loads(pickle.dumps(clips)).open_maker()([items[4], items[1]])):
        assert isinstance(clip, Encoded)
        assert (clip.key, dict(clip.members)) == (made[n].key, dict(made[n].members))
    other = replace(clips, seed=4)
    (clip,) = other.open_maker()(other.items("train")[:1])
    assert isinstance(clip, Encoded)
    assert clip.members["color.0000.jpg"] != made[0].members["color.0000.jpg"]


def test_every_frame_has_all_modalities_side_by_side(clips: RenderedClips, made: list[Encoded]) -> None:
    names = [frame_extension(modality, frame) for frame in range(FRAMES) for modality in MODALITIES]
    holes = []
    for clip in made:
        assert list(clip.members) == [*names, "json"]
        for name, data in clip.members.items():
            frame = parse_frame(name)
            if frame is None:
                continue
            if frame.modality == "color":
                with Image.open(io.BytesIO(data)) as image:
                    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
                continue
            plane = decode_plane(data, name)
            if frame.modality == "depth":
                assert plane.shape == (48, 48)
                assert 500 < np.median(plane[16:32, 16:32]) < 1400
                holes.append(np.mean(plane == 0))
            else:
                assert plane.shape == (24, 24)
                assert 31 < (np.median(plane[8:16, 8:16]) - ZERO_CELSIUS_CK) / 100 < 36
                assert plane.min() > ZERO_CELSIUS_CK + 1500
    assert max(holes) < 0.15
    assert np.median(holes) > 0.001  # a good camera loses next to none in a frame this small


def test_labels_are_one_for_each_frame(clips: RenderedClips, made: list[Encoded]) -> None:
    for item, clip in zip(clips.items("train"), made):
        labels = labels_of(clip)
        assert (labels.num_frames, labels.fps, labels.group) == (FRAMES, clips.fps, clip.key)
        valence, arousal = clips.motion(item.ref).affect()
        np.testing.assert_allclose(labels.valence, valence, atol=1e-4)
        np.testing.assert_allclose(labels.arousal, arousal, atol=1e-4)
        assert labels.extra["rendered"] is True


def taken(clips: RenderedClips, **changes: float) -> tuple[list[Shot], list[Shot]]:
    """The first clip, and the same with arrays of its motion set to one value."""
    ref = clips.items("train")[0].ref
    head, motion = clips.head(ref), clips.motion(ref)
    setting = clips.setting(ref, head)
    other = replace(motion, **{name: np.full(len(motion), value) for name, value in changes.items()})
    return list(clips.shots(ref, head, motion, setting)), list(clips.shots(ref, head, other, setting))


def test_the_autonomic_part_of_arousal_shows_in_the_thermal_pictures_alone(clips: RenderedClips) -> None:
    calm, aroused = taken(clips, skin=0.0)[1], taken(clips, skin=1.0)[1]
    for one, other in zip(calm, aroused):
        np.testing.assert_array_equal(one.color, other.color)
        np.testing.assert_array_equal(one.depth, other.depth)
        change = (other.thermal.astype(float) - one.thermal) / 100
        assert -1.2 < change.min() / c.AUTONOMIC_GAIN < -0.5
        assert 0.2 < change.max() / c.AUTONOMIC_GAIN < 0.6
    ref = clips.items("train")[0].ref
    motion = clips.motion(ref)
    rise = replace(motion, autonomic=np.ones(FRAMES)).affect()[1]
    rise = rise - replace(motion, autonomic=np.zeros(FRAMES)).affect()[1]
    np.testing.assert_allclose(rise, 2 * c.AROUSAL_FROM_AUTONOMIC)


def test_breath_shows_in_the_thermal_pictures_alone(clips: RenderedClips) -> None:
    one, other = taken(clips, breath=1.0)
    assert all(
        np.array_equal(a.color, b.color) and np.array_equal(a.depth, b.depth) for a, b in zip(one, other)
    )
    assert any(not np.array_equal(a.thermal, b.thermal) for a, b in zip(one, other))


def test_frames_of_a_clip_are_alike_and_not_the_same(made: list[Encoded]) -> None:
    for clip in made:
        frames = []
        for frame in range(FRAMES):
            with Image.open(io.BytesIO(clip.members[frame_extension("color", frame)])) as image:
                frames.append(np.asarray(image, np.float64))
        for one, other in itertools.pairwise(frames):
            assert 0.3 < np.abs(one - other).mean() < 25


def test_people_do_not_cross_splits_and_are_those_of_the_faces(clips: RenderedClips) -> None:
    people = {
        split: {(item.ref.split, item.ref.identity) for item in clips.items(split)}
        for split in clips.splits()
    }
    assert not people["train"] & people["val"]
    assert not people["train"] & people["test"]
    assert not people["val"] & people["test"]
    heads = [clips.head(clips.items(split)[0].ref).neutral[:100] for split in clips.splits()]
    assert not np.allclose(heads[0], heads[1], atol=1e-3)
    assert not np.allclose(heads[1], heads[2], atol=1e-3)
    faces = RenderedFaces(num_train=8, num_val=2, num_test=2, num_identities=4, seed=3)
    np.testing.assert_array_equal(faces.head(faces.items("val")[0].ref).neutral[:100], heads[1])


def test_about_as_many_clips_are_dark_as_is_stated() -> None:
    clips = RenderedClips(num_frames=2, size=32)
    head = clips.head(clips.items("train")[0].ref)
    settings = [clips.setting(item.ref, head) for item in clips.items("train")]
    assert np.mean([setting.dark for setting in settings]) == pytest.approx(c.DARK_SHARE, abs=0.06)
    for setting in settings:
        assert (setting.camera.exposure <= c.DARK_EXPOSURE[1]) == setting.dark


def test_dark_clips_are_dark_and_say_so(made: list[Encoded]) -> None:
    seen = set()
    for clip in made:
        with Image.open(io.BytesIO(clip.members["color.0000.jpg"])) as image:
            level = float(np.asarray(image, np.float64)[12:36, 12:36].mean())
        dark = labels_of(clip).extra["dark"]
        assert level < 45 if dark else level > 45
        seen.add(dark)
    assert seen == {True, False}


def test_the_source_says_what_it_is(clips: RenderedClips) -> None:
    info = clips.info
    assert info.rendered and info.kind == "clips"
    assert info.label_space.va and not info.label_space.expr and not info.label_space.au
    assert relative_geometry(info.alignment) == relative_geometry(RenderedFaces().info.alignment)
    assert info.settings["seed"] == 3 and info.settings["num_frames"] == FRAMES
    json.dumps(info.settings | info.alignment)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 at 5"):
        RenderedClips(num_frames=1)
    with pytest.raises(ValueError, match="got 7"):
        RenderedClips(size=7)
    with pytest.raises(ValueError, match="positive"):
        RenderedClips(num_test=-1)


def test_built_examined_and_read(clips: RenderedClips, tmp_path: Path) -> None:
    small = replace(clips, num_train=2, num_val=1, num_test=0, num_identities=2)
    build(small, tmp_path / "set", BuildConfig(shard_size=1, workers=1), quiet=True)
    examination = examine([tmp_path / "set"], ExamineConfig(workers=1), quiet=True)
    assert examination.healthy and all(split.num_damaged == 0 for split in examination.splits)
    shards = open_shards(str(tmp_path / "set"), "train")
    assert shards.rendered and shards.shard_sizes.tolist() == [1, 1]
    (batch,) = clip_eval_batches(shards, 2, (40, 40), ClipConfig(num_frames=FRAMES, stride=FRAMES))
    assert batch.images["color"].shape == (2, FRAMES, 3, 40, 40)
    assert batch.images["thermal"].shape == batch.images["depth"].shape == (2, FRAMES, 1, 40, 40)
    assert all(valid.all() for valid in batch.valid.values()) and batch.va_valid.all()
    middle = batch.images["depth"][:, :, 0, 15:25, 15:25]
    assert middle.median().abs() < 0.3


def test_the_sheet_shows_what_was_asked_for(clips: RenderedClips) -> None:
    sheet = clip_sheet(clips, "val", num_clips=2, num_times=3)
    assert sheet.width == 3 * 48 and sheet.height % 2 == 0
    pixels = np.asarray(sheet)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
