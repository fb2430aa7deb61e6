"""A rig's folder: values bit for bit, times and places as computed by hand, what is missing counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.align import AlignConfig
from shards.labels import DataError
from shards.sources import build_source
from shards.sources.overlay import COLOURS, registered_edges
from shards.sources.recordings import ClipRef
from shards.sources.tracks import Calibration
from tests.shards.sources.clip_layouts import (
    RIG_CAMERAS,
    Files,
    SeenFaces,
    frames_of,
    labels_of,
    made_clips,
    picture,
    planes_of,
    png16,
    refs,
    rig_depth,
    rig_files,
    rig_landmarks,
    rig_thermal,
    stored,
    write_video,
)
from tests.shards.sources.layouts import write_files

NONE = AlignConfig(mode="none", size=0)


def with_landmarks(**options: Any) -> Files:
    return rig_files() | {f"r{n}/landmarks.csv": rig_landmarks(**options) for n in range(2)}


def only(src: Path, split: str = "train", **options: Any) -> ClipRef:
    (item,) = refs("rig", src, split, **options)
    ref: ClipRef = item.ref
    return ref


def test_each_frame_has_the_nearest_picture_of_every_camera(tmp_path: Path) -> None:
    """Thermal pictures are at 0.01 + i/9 s: 0.01, 0.1211, 0.2322, 0.3433; frames at j/30 s."""
    ref = only(write_files(tmp_path, rig_files()))
    assert ref.tracks["color"].frames == tuple(f"{i:04d}.jpg" for i in range(12))
    assert ref.tracks["depth"].frames == tuple(f"{i:04d}.png" for i in range(12))
    # 2/30 = .0667 is .0544 from the second and .0567 from the first; 5/30 = .1667 is .0456 and .0656 away.
    assert [name[0] for name in map(str, ref.tracks["thermal"].frames)] == list("001111222333")
    near = only(tmp_path, max_gap=0.03).tracks["thermal"].frames
    assert [None if name is None else name[0] for name in map(_text, near)] == [
        "0", "0", None, "1", "1", None, None, "2", None, None, "3", "3",
    ]  # fmt: skip


def _text(name: object) -> str | None:
    return None if name is None else str(name)


def test_times_of_a_table_are_followed_and_gaps_stay_gaps(tmp_path: Path) -> None:
    """Colour with picture 4 never taken and all a little late; thermal at two times alone."""
    late = [0.0, 0.004, -0.006, 0.003, 0.0, 0.005]
    rows = [f"{i:04d}.jpg,{i / 30 + late[i % 6]:.4f}" for i in range(12) if i != 4]
    files = rig_files() | {
        "r0/color.csv": "file,seconds\n" + "\n".join(rows) + "\nxx.jpg,9.5\n",
        "r0/thermal.csv": "seconds;file\n0.1;2.png\n0.3;0.png\n",
    }
    src = write_files(tmp_path, files)
    source = build_source("rig", src, fps=30, max_unused=0.1)
    (item,) = source.items("train")
    frames = item.ref.tracks["color"].frames
    assert frames == tuple(None if i == 4 else f"{i:04d}.jpg" for i in range(12))
    # 0.1 ± 0.06 s are frames 2 to 4 (of 4 the colour is missing), 0.3 ± 0.06 frames 8 to 10.
    thermal = [None, None, *["2.png"] * 3, None, None, None, *["0.png"] * 3, None]
    assert list(item.ref.tracks["thermal"].frames) == thermal
    account = source.info.settings["counts"]["train"]
    counts = account["frames"]
    assert counts["unusable"] == {"no picture": 1} and (counts["used"], counts["rows"]) == (11, 12)
    assert account["pictures"] == {
        "color: named but not there": 1,
        "color: not in its table": 1,
        "thermal: not in its table": 2,
    }
    assert counts["labels"]["thermal"] == 5 and counts["labels"]["depth"] == 11


def test_landmarks_are_those_of_the_picture_whatever_its_table_leaves_out(tmp_path: Path) -> None:
    """Landmarks are numbered by the pictures there are: without picture 4 the row of 5 still is that of 5."""
    files = rig_files() | {f"r{n}/landmarks.csv": rig_landmarks() for n in range(2)}
    head, *rows = files["r0/landmarks.csv"].splitlines()
    moved = [",".join([*row.split(",")[:-1], f"{90 + n}"]) for n, row in enumerate(rows)]
    files["r0/landmarks.csv"] = "\n".join([head, *moved])
    times = [f"{n:04d}.jpg,{n / 30:.4f}" for n in range(12) if n != 4]
    files["r0/color.csv"] = "\n".join(["file,seconds", *times])
    ref = only(write_files(tmp_path, files), fps=30, max_unused=0.1)
    points = np.frombuffer(ref.landmarks, np.float32).reshape(12, 5, 2)
    assert np.isnan(points[4]).all()
    assert points[[*range(4), *range(5, 12)], 4, 1].tolist() == [90 + n for n in range(12) if n != 4]


def test_values_come_back_bit_for_bit_where_nothing_is_moved(tmp_path: Path) -> None:
    """No alignment, no affine map, the colour camera's size: what was written is what is read."""
    files = rig_files() | {"cameras.csv": "modality,fps\ncolor,30\ndepth,30\nthermal,9\n"}
    for name in [name for name in files if "/thermal/" in name or "/depth/" in name]:
        big = np.random.default_rng(len(name)).integers(1, 65536, (120, 120)).astype(np.uint16)
        files[name] = png16(big)
    src = write_files(tmp_path / "src", files)
    made_clips("rig", src, tmp_path / "out", align=NONE)
    (sample,) = stored(tmp_path / "out", "train").values()
    for modality, found in (("depth", planes_of(sample, "depth")), ("thermal", planes_of(sample, "thermal"))):
        assert sorted(found) == list(range(12))
        for frame, plane in found.items():
            name = only(src).tracks[modality].frames[frame]
            whole = np.asarray(Image.open(src / "r0" / modality / str(name)))
            assert plane.dtype == np.uint16 and np.array_equal(plane, whole)


def test_a_cut_by_landmarks_takes_the_nearest_values_of_the_registered_plane(tmp_path: Path) -> None:
    """The face is moved by (4, 4) whole pixels: pixel (x, y) of the cut is colour's (x + 4, y + 4).

    Depth's map is 2·x + 0.5: colour's 10 is depth's 4.75, to the nearest 5. Thermal's are 3·x + 1 and
    4·y + 1.5, and its counts of 0.04 K times 4 are centi-kelvin.
    """
    src = write_files(tmp_path / "src", with_landmarks(faceless=(7,)))
    made_clips("rig", src, tmp_path / "out")
    (sample,) = stored(tmp_path / "out", "train").values()
    assert frames_of(sample) == frames_of(sample, "depth") == frames_of(sample, "thermal")
    assert frames_of(sample) == [i for i in range(12) if i != 7]
    assert labels_of(sample).extra == {"place": "lab", "lost": {"no landmarks": 1}}
    depth, thermal = planes_of(sample, "depth"), planes_of(sample, "thermal")
    assert depth[3].shape == thermal[3].shape == (112, 112)
    colour = np.arange(112) + 4
    columns = rows = np.floor((colour - 0.5) / 2 + 0.5).astype(int)
    inside = columns < 60
    expected = rig_depth(3)[rows[inside][:, None], columns[inside][None, :]]
    assert np.array_equal(depth[3][np.ix_(inside, inside)], expected) and not depth[3][~inside].any()
    columns, rows = (
        np.floor((colour - 1) / 3 + 0.5).astype(int),
        np.floor((colour - 1.5) / 4 + 0.5).astype(int),
    )
    assert columns.max() == 38 and rows.max() == 28
    assert np.array_equal(thermal[3], 4 * rig_thermal(1)[rows[:, None], columns[None, :]])
    assert thermal[3].min() > 30000


def test_16_bit_video_is_the_same_as_its_pictures(tmp_path: Path) -> None:
    files = with_landmarks()
    src = write_files(tmp_path / "src", files)
    videos = {name: data for name, data in files.items() if "/depth/" not in name and "/thermal/" not in name}
    other = write_files(tmp_path / "video", videos)
    for n in range(2):
        write_video(other / f"r{n}" / "depth.mkv", [rig_depth(i, n) for i in range(12)], 30)
        write_video(other / f"r{n}" / "thermal.mkv", [rig_thermal(i, n) for i in range(4)], 9)
    made_clips("rig", src, tmp_path / "a", clip_frames=5)
    made_clips("rig", other, tmp_path / "b", clip_frames=5)
    for split in ("train", "val"):
        one, two = stored(tmp_path / "a", split), stored(tmp_path / "b", split)
        assert list(one) == list(two) == [f"r{int(split == 'val')}-{start:06d}" for start in (0, 5)]
        assert all(one[key].members == two[key].members for key in one)


def test_a_clip_without_a_face_is_left_out_and_half_a_clip_by_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.align.aligner.FaceDetector", SeenFaces)
    src = write_files(tmp_path / "src", rig_files(black=(0, 1, 2, 3, 4, 5, 6)))
    manifests = made_clips("rig", src, tmp_path / "out", clip_frames=4)
    train = stored(tmp_path / "out", "train")
    assert list(train) == ["r0-000008"] and manifests["train"].alignment["mode"] == "detect"
    listed = (tmp_path / "out" / "train" / "quarantine.csv").read_text()
    assert "r0-000000,4 of 4 frames without a face (4 no face)" in listed
    assert "r0-000004,3 of 4 frames without a face (3 no face)" in listed
    assert manifests["train"].build["frames"]["in clips left out"] == 8
    kept = made_clips("rig", src, tmp_path / "all", clip_frames=4, max_missing=0.75)
    assert kept["train"].num_samples == 2 and kept["train"].build["frames"]["no face"] == 3
    found = labels_of(stored(tmp_path / "all", "train")["r0-000004"])
    assert (found.start_frame, found.group, found.identity) == (4, "r0", "person r0")
    assert found.valence[0] == pytest.approx(0.02 * 4 - 0.2)


def test_labels_between_rows_and_beyond_the_video(tmp_path: Path) -> None:
    rows = "0.0,0.0,1\n0.1,0.3,nan\n0.2,,0\n0.3,1.5,0\n0.4,0.6,x\n9,1,1"
    src = write_files(tmp_path, rig_files() | {"r0/labels.csv": f"seconds,valence,arousal\n{rows}\n"})
    source = build_source("rig", src, resample="linear", max_unused=0.5)
    found = labels_of_ref(source.items("train")[0].ref)
    assert found["valence"] == [0.0, 0.1, 0.2, 0.3, None, None, None, None, None, None, None, None]
    assert found["arousal"] == [1.0, None, None, None, None, None, 0.0, 0.0, 0.0, 0.0, None, None]
    account = source.info.settings["counts"]["train"]["labels"]
    assert account["unusable"] == {"invalid": 2} and account["used"] == 6
    assert account["dropped"] == {"missing": 2, "outside the video": 2}
    near = labels_of_ref(only(src, max_unused=0.5))
    assert near["valence"] == [0.0, 0.0, 0.3, 0.3, 0.3, *[None] * 6, 0.6]


def labels_of_ref(ref: ClipRef) -> dict[str, Any]:
    return dict(json.loads(ref.labels))


def test_raw_counts_become_units_and_what_leaves_16_bits_is_missing() -> None:
    raw = np.array([[0, 1, 3, 7000, 16380, 16384, 65535]], np.uint16)
    assert Calibration(4.0, 0.0).values(raw).tolist() == [[0, 4, 12, 28000, 65520, 0, 0]]
    assert Calibration(0.125, 0.0).values(raw).tolist() == [[0, 0, 0, 875, 2048, 2048, 8192]]
    celsius = np.array([[3650, 0, 1]], np.uint16)
    assert Calibration(1.0, 27315.0).values(celsius).tolist() == [[30965, 0, 27316]]
    # Without a map both cameras show the same: a pixel of half the size lies between two of colour's.
    half = Calibration().to_color((60, 40), (120, 120, 3))
    assert half.tolist() == [[3.0, 0.0, 1.0], [0.0, 2.0, 0.5]]


def test_the_edges_of_a_plane_are_drawn_where_its_map_puts_them(tmp_path: Path) -> None:
    """A warm square at (10 … 19, 5 … 14) of the thermal picture, mapped by 3·x + 1 and 4·y + 1.5."""
    plane = np.full((30, 40), 7400, np.uint16)
    plane[5:15, 10:20] = 7700
    edges = registered_edges(plane, np.array([[3.0, 0, 1], [0, 4.0, 1.5]]), (120, 120))
    rows, columns = np.nonzero(edges)
    # Pixel 9 is the last of the cold ones before the square, 19 the last warm one: each 3 or 4 pixels wide.
    assert (columns.min(), columns.max()) == (9 * 3 + 1 - 1, 19 * 3 + 1 + 1)
    assert (rows.min(), rows.max()) == (4 * 4, 14 * 4 + 3)
    assert not edges[30:50, 40:50].any()
    files = rig_files() | {f"r0/thermal/{i}.png": png16(plane) for i in range(4)}
    refs("rig", write_files(tmp_path / "src", files), overlay=str(tmp_path / "look"))
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["r0.png", "r1.png"]
    drawn = np.asarray(Image.open(tmp_path / "look" / "r0.png"))
    assert drawn.shape == (120, 120, 3)
    assert np.array_equal((drawn == COLOURS["thermal"]).all(2), edges)


def test_units_that_cannot_be_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cameras = RIG_CAMERAS.replace("thermal,9,0.01,4", "thermal,9,0.01,1")
    with caplog.at_level(logging.WARNING):
        refs("rig", write_files(tmp_path, rig_files() | {"cameras.csv": cameras}))
    assert "thermal is around 76" in caplog.text and "scale and offset in cameras.csv" in caplog.text
    assert "depth is around" not in caplog.text
    write_files(tmp_path, {"r0/depth/0000.png": png16(rig_depth(0))[:100], "r0/color/0000.jpg": b"x"})
    with caplog.at_level(logging.WARNING):
        refs("rig", tmp_path, overlay=str(tmp_path / "look"))
    assert "r0: its first picture of depth: depth: damaged picture" in caplog.text
    assert "r0: no overlay" in caplog.text and not (tmp_path / "look" / "r0.png").exists()


def test_a_colour_video_cut_short_loses_its_end_alone(tmp_path: Path) -> None:
    files = {name: data for name, data in rig_files().items() if "/color/" not in name}
    src = write_files(tmp_path / "src", files)
    shown = [picture(i, (120, 120)) for i in range(12)]
    for n in range(2):
        path = write_video(src / f"r{n}" / "color.mkv", shown, 30)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.6 * len(whole))])
    manifests = made_clips("rig", src, tmp_path / "out", align=AlignConfig(mode="none"), max_missing=1.0)
    (sample,) = stored(tmp_path / "out", "val").values()
    count = len(frames_of(sample))
    assert 3 <= count < 12 and frames_of(sample) == list(range(count))
    assert len(frames_of(*stored(tmp_path / "out", "train").values())) == 12
    assert manifests["val"].build["frames"]["with color"] == count


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({"cameras.csv": "modality,fps\ncolor,30\nheat,9\n"}, {}, r"cameras\.csv line 3: modality 'heat'"),
        (
            {"cameras.csv": "modality,fsp\ncolor,30\n"},
            {},
            r"line 2: unknown column 'fsp'; did you mean 'fps'",
        ),
        ({"cameras.csv": "modality,fps\ncolor,0\n"}, {}, "line 2: fps must be above 0"),
        ({"cameras.csv": "modality;a\ndepth;2\n"}, {}, "a alone: an affine map needs all of a to f"),
        ({"cameras.csv": "modality,scale\ncolor,2\n"}, {}, "scale has no meaning for color"),
        (
            {"cameras.csv": "modality,a,b,c,d,e,f\ndepth,1,2,0,2,4,0\n"},
            {},
            "a·e − b·d must not be 0",
        ),
        (
            {"cameras.csv": "modality,fps\ndepth,30\n"},
            {},
            r"add color\.csv \(file,seconds\), or fps of color",
        ),
        ({"cameras.csv": 'modality;scale\nthermal;"0,04"\n'}, {}, "scale must be a number.*decimal points"),
        (
            {"recordings.csv": "recording|subject\nr0|a\n"},
            {},
            "no column 'recording'.*semicolon, comma or tab",
        ),
        ({"recordings.csv": "recording,subject\nr0\n"}, {}, "line 2: 1 cells, but the header has 2"),
        ({"recordings.csv": "recording,subject\nr0,\n"}, {}, "line 2: no subject"),
        ({"recordings.csv": "recording,subject\nr9,a\n"}, {}, "line 2: no folder 'r9' beside it"),
        ({"recordings.csv": "recording,subject\n../x,a\n"}, {}, r"'\.\./x': must be the name of a folder"),
        ({"recordings.csv": "recording,subject\n..,a\n"}, {}, r"line 2: recording '\.\.': must be the name"),
        ({"cameras.csv": "modality,offset\ndepth,nan\n"}, {}, "line 2: offset must be a number, got nan"),
        ({"r0/depth/0002.jpg": b"x"}, {}, r"depth/0002\.jpg: not a 16-bit grey PNG or TIFF"),
        ({"r0/color.csv": "file,seconds\n0000.jpg,0\n0001.jpg,33\n"}, {}, "must be in seconds"),
        ({"r0/color.csv": "file,seconds\n0000.jpg,0\n0001.jpg,1e9\n"}, {"fps": 30.0}, "more than the 10,0"),
        ({"recordings.csv": "recording,subject\nr0,a\nr0,b\n"}, {}, "line 3: 'r0' was in .*line 2"),
        ({"recordings.csv": "recording,subject,split\nr0,a,trian\n"}, {}, "split 'trian': must be train"),
        ({"r0/labels.csv": "seconds valence arousal\n0 0 0\n"}, {}, r"r0/labels\.csv line 1: no column"),
        ({"r0/labels.csv": "seconds,valence,arousal\n1,0,0\n1,0,0\n"}, {}, "line 3: time 1 s does not come"),
        ({"r0/labels.csv": "seconds,valence,arousal\n,0,0\n"}, {}, "line 2: no time in this row"),
        ({"r0/labels.csv": "seconds,valence,arousal\n0,7,0\n"}, {}, "r0/labels.csv line 2: valence must be"),
        ({"r0/color.csv": "file,seconds\nx.jpg,0\n"}, {}, "names no picture of"),
        ({"r0/landmarks.csv": rig_landmarks()}, {}, r"landmarks.csv in r0 but not in r1: add it, or"),
        ({}, {"max_gap": -1.0}, "max_gap=-1"),
        ({}, {"resample": "cubic"}, "resample=cubic: must be one of nearest, linear"),
        ({}, {"val_fraction": 1.0}, "val_fraction=1.0"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line_and_remedy(
    tmp_path: Path, files: Files, options: dict[str, Any], said: str
) -> None:
    src = write_files(tmp_path / "src", rig_files() | files)
    with pytest.raises(DataError, match=said):
        refs("rig", src, **options)


def test_8_bit_pictures_are_refused_and_damaged_ones_counted(tmp_path: Path) -> None:
    files = with_landmarks() | {"r0/depth/0002.png": png16(rig_depth(2))[:200]}
    src = write_files(tmp_path / "src", files)
    manifests = made_clips("rig", src, tmp_path / "out")
    assert manifests["train"].build["frames"] == {
        "depth: damaged picture": 1,
        "with color": 12,
        "with depth": 11,
        "with thermal": 12,
    }
    grey = Image.new("L", (40, 30))
    grey.save(src / "r0" / "thermal" / "0.png")
    with pytest.raises(DataError, match=r"thermal/0\.png: mode L, not a 16-bit grey PNG or TIFF"):
        refs("rig", src)
