"""Frames of a video: in order, on time, upright; damage and a missing library are one clear message."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.labels import DataError
from shards.sources.media import Media
from shards.sources.video import count_frames, is_video, read_frames
from tests.shards.sources.layouts import drawn

NUM_FRAMES, RATE = 12, 8


def picture(index: int) -> NDArray[np.uint8]:
    """A grey that grows with the frame, white at the upper left."""
    out = np.full((48, 64, 3), 15 * index, np.uint8)
    out[:16, :24] = 255
    return out


def write_video(path: Path, pictures: list[NDArray[np.uint8]], options: dict[str, str] | None = None) -> Path:
    av: Any = pytest.importorskip("av")
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", [picture(index) for index in range(NUM_FRAMES)])


def test_frames_come_in_order_with_their_times(video: Path) -> None:
    frames = list(read_frames(video))
    assert [frame.index for frame in frames] == list(range(NUM_FRAMES)) and count_frames(video) == NUM_FRAMES
    assert np.allclose([frame.seconds or 0 for frame in frames], np.arange(NUM_FRAMES) / RATE)
    for frame in frames:
        assert frame.picture.shape == (48, 64, 3) and frame.picture.dtype == np.uint8
        assert np.abs(frame.picture.astype(int) - picture(frame.index)).mean() < 4


def test_frames_are_turned_as_the_file_asks(video: Path) -> None:
    """A telephone held upright writes lying frames and a matrix that turns them clockwise."""
    data = bytearray(video.read_bytes())
    one = struct.pack(">i", 1 << 16)
    at = data.find(one + bytes(12) + one, data.find(b"tkhd"))
    values = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *values)
    video.write_bytes(data)
    frame = next(read_frames(video))
    assert frame.picture.shape == (64, 48, 3)
    assert frame.picture[4, -4].min() > 200 and frame.picture[4, 4].max() < 60
    assert frame.picture.flags["C_CONTIGUOUS"]


def test_a_video_cut_short_gives_what_there_is_and_then_says_so(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8) for i in range(30)]
    path = write_video(tmp_path / "cut.mp4", noise, {"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seen = []
    with pytest.raises(DataError, match="after frame"):
        for frame in read_frames(path):
            seen.append(frame.index)  # noqa: PERF401
    assert 5 < len(seen) < 25
    frames = list(Media(path).frames_of(path.name))
    assert [frame.frame for frame in frames] == [*seen, len(seen)]
    assert frames[-1].picture is None and "after frame" in frames[-1].reason


@pytest.mark.parametrize(
    "content", [b"", b"no video at all", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n"]
)
def test_what_is_no_video_is_refused(video: Path, content: bytes) -> None:
    """The last would be a playlist, which would open what it names."""
    path = video.with_name("other.mp4")
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read the video"):
        next(read_frames(path))


def test_reading_stops_when_asked_to(video: Path) -> None:
    frames = read_frames(video)
    assert next(frames).index == 0
    frames.close()  # type: ignore[attr-defined]
    assert len(list(read_frames(video))) == NUM_FRAMES


def test_without_the_library_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(drawn(1))
    with pytest.raises(DataError, match=r"faceprior\[video\]"):
        Media(tmp_path / "clip.mp4")
    media = Media(tmp_path)
    frames = [frame for name in media.names for frame in media.frames_of(name)]
    assert frames[0].picture is not None
    assert frames[1].picture is None and "faceprior[video]" in frames[1].reason


def test_a_folder_is_searched_for_pictures_and_videos(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a.png", "c.mp4", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(drawn(3))
    media = Media(tmp_path)
    assert media.names == ["a.png", "b/2.JPG", "c.mp4"] and media.num_left_out == 1
    assert is_video("X.MOV") and not is_video("x.jpg")


@pytest.mark.parametrize(("name", "named"), [("nowhere", "no such file"), (".", "no picture or video")])
def test_nothing_to_look_at_is_said(tmp_path: Path, name: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        Media(tmp_path / name)


def test_pixels_that_are_wide_count_as_the_picture_they_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of 64×64 whose pixels are four times as wide as high are 256×64 when they are shown."""
    av: Any = pytest.importorskip("av")
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 1)
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    assert next(read_frames(path)).picture.shape == (64, 256, 3)
    monkeypatch.setattr("shards.sources.video.MAX_PIXELS", 64 * 255)
    with pytest.raises(DataError, match="too many pixels"):
        list(read_frames(path))
