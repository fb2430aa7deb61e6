"""Recordings become clips: cut without gap, streamed, and the same bytes however the work is shared."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.align import AlignConfig, warp_plane
from shards.build import BuildConfig, build, merge
from shards.labels import DataError, ReadError
from shards.sources import alignedclips, build_source, raw, recordings, tracks
from shards.sources.recordings import check_clip_options, places_of
from shards.sources.tracks import Track, TrackReader
from tests.shards.sources.clip_layouts import (
    labels_of,
    picture,
    rig_files,
    rig_landmarks,
    stored,
    write_sides,
    write_video,
)
from tests.shards.sources.layouts import write_files

NONE = AlignConfig(mode="none", size=32)


@pytest.mark.parametrize(
    ("num_frames", "clip_frames", "places"),
    [
        (10, 5, [(0, 5), (5, 10)]),
        (7501, 1500, [(0, 1500), (1500, 3000), (3000, 4500), (4500, 6000), (6000, 7501)]),
        (12, 5, [(0, 5), (5, 12)]),
        (13, 5, [(0, 5), (5, 10), (10, 13)]),
        (2, 600, [(0, 2)]),
        (1, 1, [(0, 1)]),
    ],
)
def test_a_short_rest_belongs_to_the_last_clip(
    num_frames: int, clip_frames: int, places: list[tuple[int, int]]
) -> None:
    assert places_of(num_frames, clip_frames) == places


def test_the_longest_clip_can_be_indexed_and_a_longer_option_is_refused() -> None:
    """With three cameras and the labels, and a rest of just under half a clip joined to it."""
    longest = recordings._LONGEST
    (place,) = places_of(longest + (longest - 1) // 2, longest)
    assert 3 * (place[1] - place[0]) + 1 <= 65_535
    with pytest.raises(DataError, match="clip_frames="):
        check_clip_options(longest + 1, 0.5, 0.0)


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    """Three recordings of colour and depth video; shards of a clip or two cut through them."""
    files = rig_files(3) | {f"r{n}/landmarks.csv": rig_landmarks() for n in range(3)}
    files["recordings.csv"] = "recording,subject,split\n" + "".join(f"r{n},{n},train\n" for n in range(3))
    src = write_files(tmp_path / "rig", {k: v for k, v in files.items() if "/color/" not in k})
    for n in range(3):
        write_video(src / f"r{n}" / "color.mp4", [picture(50 * n + i, (120, 120)) for i in range(12)], 30)
    return src


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_parts_and_workers_and_a_second_call_give_the_same_bytes(rig: Path, tmp_path: Path) -> None:
    source = build_source("rig", rig, clip_frames=4)
    one = BuildConfig(shard_size=2, workers=1, chunk_size=1)
    build(source, tmp_path / "one", one, quiet=True)
    build(source, tmp_path / "many", BuildConfig(shard_size=2, workers=2, chunk_size=2), quiet=True)
    for part in ("2/2", "1/2"):
        config = BuildConfig(shard_size=2, workers=1, part=part)
        build(source, tmp_path / "parts", config, quiet=True)
    merge(tmp_path / "parts" / "train")
    whole = bytes_of(tmp_path / "one")
    assert whole == bytes_of(tmp_path / "many") == bytes_of(tmp_path / "parts")
    assert sum(name.endswith(".tar") for name in whole) == 5
    build(source, tmp_path / "one", one, quiet=True)
    assert whole == bytes_of(tmp_path / "one")
    moved = rig.rename(tmp_path / "elsewhere")
    build(build_source("rig", moved, clip_frames=4), tmp_path / "one", one, quiet=True)
    with pytest.raises(DataError, match="made with other settings"):
        build(build_source("rig", moved, clip_frames=4, max_gap=0.01), tmp_path / "one", one, quiet=True)


class Frame:
    """A frame of which only the picture is large."""

    def __init__(self, index: int) -> None:
        self.index, self.pixels = index, np.full((60, 80, 3), index % 200, np.uint8)

    def picture(self) -> np.ndarray[Any, Any]:
        return self.pixels


def test_a_long_recording_is_never_held_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine clips of a recording, with pixels enough for four pictures at once: one pass over it."""
    opened: list[Path] = []
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    most: list[int] = []

    def decode(path: Path) -> Iterator[Frame]:
        opened.append(path)
        for index in range(180):
            frame = Frame(index)
            alive.add(frame)
            most.append(len(alive))
            yield frame

    batches: Counter[int] = Counter()
    monkeypatch.setattr(tracks, "decode_frames", decode)
    monkeypatch.setattr(alignedclips, "_BATCH_PIXELS", 4 * 60 * 80)
    (tmp_path / "long.mp4").write_bytes(b"x")
    track = Track(tmp_path / "long.mp4", tuple(range(180)))
    maker = alignedclips._ClipMaker(NONE, 1.0)
    plain = maker._align

    def align(batch: Any, side: str) -> Any:
        batches[len(batch)] += 1
        return plain(batch, side)

    monkeypatch.setattr(maker, "_align", align)
    for start in range(0, 180, 20):
        labels = f'{{"num_frames": 20, "fps": 30, "start_frame": {start}}}'
        ref = alignedclips.ClipRef(labels, {"color": track.cut(start, start + 20)})
        record = maker._make(f"k{start}", ref)
        assert len(record.members) == 21
    assert opened == [tmp_path / "long.mp4"] and batches == {4: 45}
    assert len(most) == 180 and max(most) <= 3


def test_frames_come_by_number_in_any_order(tmp_path: Path) -> None:
    path = write_sides(tmp_path / "a.mp4", 9)
    reader, lost = TrackReader(), Counter[str]()
    track = Track(path, (5, 5, 2, 8, 9, 0, None))
    shown = [reader.picture(track, i, lost) for i in range(7)]
    assert [found is None for found in shown] == [False, False, False, False, True, False, True]
    assert np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[0], shown[2])
    again = TrackReader().picture(track, 5, lost)
    assert np.array_equal(again, shown[5]) and lost == {"not in the video": 1, "no picture": 1}


def test_a_video_without_a_usable_frame_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a bomb of nine thousand frames would be decoded nine thousand times."""
    path = write_sides(tmp_path / "a.mp4", 3)
    opened: list[Path] = []

    def decode(path: Path) -> Iterator[Frame]:
        opened.append(path)
        raise DataError("frames of 99999x99999: too many pixels")
        yield

    monkeypatch.setattr(tracks, "decode_frames", decode)
    reader, lost = TrackReader(), Counter[str]()
    assert [reader.picture(Track(path, (0, 1, 2)), i, lost) for i in range(3)] == [None] * 3
    assert opened == [path] and lost == {"not in the video": 3}
    path.unlink()
    monkeypatch.setattr(raw, "_WAITS", (0.0,))
    with pytest.raises(ReadError, match=r"a\.mp4: cannot be read"):
        TrackReader().picture(Track(path, (0,)), 0, lost)


def test_a_file_that_cannot_be_read_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_WAITS", (0.0,))
    places = ((0, tmp_path / "gone.mp4"), ("gone.jpg", tmp_path), ("gone.jpg", tmp_path / "away"))
    for frame, path in places:
        with pytest.raises(ReadError, match=r"gone\.\w+: cannot be read .*tried 2 times.*mend it"):
            TrackReader().picture(Track(path, (frame,)), 0, Counter())


def test_rotation_and_size_go_with_the_planes() -> None:
    """A quarter turn: pixel (x, y) of the cut is (y, 3 − x) of the plane; outside is missing."""
    plane = np.arange(1, 13, dtype=np.uint16).reshape(3, 4)
    turned = warp_plane(plane, np.array([[0.0, -1, 2], [1, 0, 0]]), (4, 3))
    assert turned.tolist() == np.rot90(plane, -1).tolist()
    assert warp_plane(plane, np.array([[1.0, 0, 1], [0, 1, 0]]), (3, 4))[0].tolist() == [0, 1, 2, 3]
    twice = warp_plane(plane, np.array([[2.0, 0, 0.5], [0, 2, 0.5]]), (6, 8))
    assert twice.tolist() == plane.repeat(2, 0).repeat(2, 1).tolist()


def test_real_detection_finds_a_rendered_face_and_none_on_a_wall(tmp_path: Path) -> None:
    from shards.render import RenderedFaces
    from shards.render.people import Ref
    from shards.render.picture import View, render
    from shards.render.scene import draw_frame, draw_scene

    faces = RenderedFaces(num_train=4, num_val=0, num_test=0, num_identities=2)
    ref = Ref(*faces.items("train")[0].ref)
    head = faces.head(ref)
    rng = np.random.default_rng(1)
    frame, scene = draw_frame(rng, np.zeros(17)), draw_scene(rng, False, head.skin)
    face = render(head, frame, scene, View(160, 0.6), rng=rng, color_only=True).color
    wall = np.full_like(face, 120)
    path = write_video(tmp_path / "rig" / "r0" / "color.mkv", [face, wall, face], 30)
    write_files(path.parent.parent, {"recordings.csv": "recording,subject,split\nr0,p,train\n"})
    build(
        build_source("rig", tmp_path / "rig"),
        tmp_path / "out",
        BuildConfig(workers=1, chunk_size=1),
        quiet=True,
    )
    (clip,) = stored(tmp_path / "out", "train").values()
    assert [name for name in sorted(clip.members) if name != "json"] == ["color.0000.jpg", "color.0002.jpg"]
    assert labels_of(clip).extra["lost"] == {"no face": 1}
