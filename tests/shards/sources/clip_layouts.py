"""Tiny data sets of video in their own layouts: a few frames each, with real names, columns and codes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.align.detector import Faces
from shards.build import BuildConfig, build
from shards.frames import decode_plane
from shards.labels import ClipLabels
from shards.manifest import Manifest, load_manifest
from shards.records import Encoded, Item
from shards.shardset import RawSample, open_shards
from shards.sources import build_source
from shards.template import TEMPLATE
from tests.shards.sources.affect_layouts import landmarks68
from tests.shards.sources.layouts import drawn

Files = dict[str, bytes | str]
Picture = NDArray[np.uint8]
Plane = NDArray[np.uint16]


class SeenFaces:
    """In place of the detector: a face lies on the template, scaled to the picture, unless that is black.

    A picture whose lower left corner is white shows two people, side by side.
    """

    def __init__(self, *_: object) -> None: ...

    def detect(self, pictures: Sequence[Picture]) -> list[Faces]:
        return [self._faces(picture) for picture in pictures]

    def _faces(self, picture: Picture) -> Faces:
        side = picture.shape[0]
        lefts = [0.0] if picture.mean() > 20 else []
        if lefts and picture[-3:, :3].min() > 240:
            lefts = [side / 8, 0.0]
        points = np.array([TEMPLATE * (side / 112) * 0.9 + (left, 0) for left in lefts], np.float32)
        boxes = np.array([(left, 0, left + side, side) for left in lefts], np.float32)
        return Faces(boxes.reshape(-1, 4), np.full(len(lefts), 0.99, np.float32), points.reshape(-1, 5, 2))


def made_clips(
    name: str, src: Path, out: Path, workers: int = 1, align: Any = None, **options: Any
) -> dict[str, Manifest]:
    """Builds a data set of video; split -> manifest."""
    config = BuildConfig(shard_size=2, workers=workers, chunk_size=1, max_quarantined=1.0)
    folders = build(build_source(name, src, align, **options), out, config, quiet=True)
    return {folder.name: load_manifest(folder) for folder in folders}


def stored(out: Path, split: str) -> dict[str, RawSample]:
    """Every clip of a split as it is stored, by key."""
    shards = open_shards([out], split)
    samples = [shards.read(number) for number in range(len(shards))]
    return {sample.key: sample for sample in samples}


def labels_of(sample: RawSample | Encoded) -> ClipLabels:
    return ClipLabels.from_json(json.loads(sample.members["json"]))


def planes_of(sample: RawSample, modality: str) -> dict[int, Plane]:
    """Frame -> the values that are stored of it."""
    return {
        int(name.split(".")[1]): decode_plane(data, name)
        for name, data in sample.members.items()
        if name.startswith(f"{modality}.")
    }


def frames_of(sample: RawSample, modality: str = "color") -> list[int]:
    """The frames of which a picture is stored."""
    return sorted(int(name.split(".")[1]) for name in sample.members if name.startswith(f"{modality}."))


def refs(name: str, src: Path, split: str = "train", **options: Any) -> list[Item]:
    """The items that a source lists."""
    return list(build_source(name, src, **options).items(split))


def picture(index: int, size: tuple[int, int] = (64, 64)) -> Picture:
    """(H, W, 3) smooth, another for each index; size (width, height)."""
    return np.asarray(Image.open(io.BytesIO(drawn(index, size))))


def png16(plane: Plane) -> bytes:
    data = io.BytesIO()
    Image.fromarray(plane).save(data, "PNG")
    return data.getvalue()


def write_video(path: Path, pictures: Sequence[Picture | Plane], rate: Any = 25) -> Path:
    """Colour as MPEG-4, 16-bit grey as FFV1, which loses nothing."""
    av: Any = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = pictures[0].dtype == np.uint16
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if grey else "mpeg4", rate=Fraction(rate))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "gray16le" if grey else "yuv420p"
        if not grey:
            stream.bit_rate = 4_000_000
        for pixels in pictures:
            frame = av.VideoFrame.from_ndarray(pixels, format="gray16le" if grey else "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def afewva_json(actor: str, frames: dict[str, Any]) -> str:
    return json.dumps({"video_id": "1", "actor": actor, "frames": frames})


def afewva_frame(valence: float, arousal: float, shift: tuple[float, float] = (4, 4)) -> dict[str, Any]:
    """A frame whose landmarks put the face on the template, moved by whole pixels."""
    points = landmarks68(1.0, shift).round(4).tolist()
    return {"landmarks": points, "valence": valence, "arousal": arousal}


def afewva_files(nested: bool = False) -> Files:
    """Clips 001 (6 frames, actor A), 002 (3, A) and 003 (4, C); frames of 128×128."""
    files: Files = {}
    for clip, count, actor in (("001", 6, "A"), ("002", 3, "A"), ("003", 4, "C")):
        folder = f"01/{clip}" if nested else clip
        frames = {f"{n:05d}": afewva_frame(n - 3, 10 - 4 * n) for n in range(count)}
        files[f"{folder}/{clip}.json"] = afewva_json(actor, frames)
        for n in range(count):
            files[f"{folder}/{n:05d}.png"] = drawn(100 * int(clip) + n, (128, 128), "PNG")
    return files


RIG_SIDE = 120
"""Side of the rig's colour pictures; depth is 60×60, thermal 40×30."""


def rig_depth(index: int, recording: int = 0) -> Plane:
    """(60, 60) mm with a hole: another value for each pixel and picture."""
    plane = 500 + 10 * np.arange(60)[:, None] + 3 * np.arange(60)[None, :] + index + 100 * recording
    plane[20:23, 30:33] = 0
    return plane.astype(np.uint16)


def rig_thermal(index: int, recording: int = 0) -> Plane:
    """(30, 40) raw counts of a camera that counts 0.04 K: 303.2 K and warmer."""
    plane = 7580 + 5 * np.arange(30)[:, None] + np.arange(40)[None, :] + index + 40 * recording
    return plane.astype(np.uint16)


RIG_CAMERAS = """modality,fps,start,scale,offset,a,b,c,d,e,f
color,30,,,,,,,,,
depth,30,0,1,0,2,0,0.5,0,2,0.5
thermal,9,0.01,4,0,3,0,1,0,4,1.5
"""


def rig_files(num_recordings: int = 2, num_frames: int = 12, black: Sequence[int] = ()) -> Files:
    """Recordings r0, r1, …, each of another subject: colour and depth at 30, thermal at 9 pictures a second.

    Args:
        black: colour pictures of r0 that are black, and so show no face.
    """
    names = [f"r{number}" for number in range(num_recordings)]
    files: Files = {"cameras.csv": RIG_CAMERAS}
    splits = ["train" if n < num_recordings - 1 else "val" for n in range(num_recordings)]
    rows = [f"{name},person {name},{split},lab" for name, split in zip(names, splits)]
    files["recordings.csv"] = "recording,subject,split,place\n" + "\n".join(rows) + "\n"
    for n, name in enumerate(names):
        for index in range(num_frames):
            dark = n == 0 and index in black
            pixels = drawn(50 * n + index, (RIG_SIDE, RIG_SIDE))
            black_jpeg = io.BytesIO()
            Image.new("RGB", (RIG_SIDE, RIG_SIDE)).save(black_jpeg, "JPEG")
            files[f"{name}/color/{index:04d}.jpg"] = black_jpeg.getvalue() if dark else pixels
            files[f"{name}/depth/{index:04d}.png"] = png16(rig_depth(index, n))
        for index in range(-(-num_frames * 9 // 30)):
            files[f"{name}/thermal/{index}.png"] = png16(rig_thermal(index, n))
        times = np.arange(num_frames + 6) / 30
        labels = [f"{t:.4f},{0.02 * i - 0.2:.3f},{0.5 - 0.05 * i:.3f}" for i, t in enumerate(times)]
        files[f"{name}/labels.csv"] = "\n".join(["seconds,valence,arousal", *labels]) + "\n"
    return files


def rig_landmarks(num_frames: int = 12, faceless: Sequence[int] = (), shift: float = 4.0) -> str:
    """landmarks.csv: the template, moved right and down by whole pixels; empty cells for no face."""
    head = "frame," + ",".join(f"x{p},y{p}" for p in range(5))
    points = ",".join(f"{value:.4f}" for value in (TEMPLATE + shift).ravel())
    rows = [f"{n},{',' * 9 if n in faceless else points}" for n in range(num_frames)]
    return "\n".join([head, *rows]) + "\n"


def write_sides(path: Path, count: int, rate: Any = 25, black: Sequence[int] = (), two: bool = False) -> Path:
    """A video of `count` frames of 64×64: a face by `SeenFaces` in all but `black` ones, or two of them."""
    shown = []
    for index in range(count):
        pixels = np.zeros((64, 64, 3), np.uint8) if index in black else picture(index) // 2 + 90
        if two:
            pixels[-12:, :12] = 255
        shown.append(pixels)
    return write_video(path, shown, rate)


RATERS = ("FM1 ", "FM2 ", "FM3 ", "FF1 ", "FF2 ", "FF3")


def recola_table(count: int, level: float = 0.0) -> str:
    """`time;FM1 ;FM2 ;…` with trailing blanks, a row each 40 ms: six raters, each a little off the others."""
    lines = ["time;" + ";".join(RATERS)]
    for row in range(count):
        rated = (f"{level + 0.02 * row + 0.01 * (rater - 2.5):.4f} " for rater in range(6))
        lines.append(f"{0.04 * row:.2f} ;" + ";".join(rated))
    return "\n".join(lines) + "\n"


def recola_files(rows: int = 13) -> Files:
    """P17 (train), P16 (val), P42 (test) and P99 (of no split), as the public release has them."""
    base = "RECOLA-Annotation/emotional_behaviour"
    return {
        f"{base}/{dimension}/{name}.csv": recola_table(rows, level)
        for name in ("P17", "P16", "P42", "P99")
        for dimension, level in (("valence", 0.1), ("arousal", -0.2))
    }


def recola_arff(name: str, count: int, level: float) -> str:
    head = ["@relation gold_standard", "", "@attribute Instance_name string", "@attribute frameTime numeric"]
    rows = [f"'{name}',{0.04 * row:.2f},{level + 0.02 * row:.6f}" for row in range(count)]
    return "\n".join([*head, "@attribute GoldStandard numeric", "", "@data", "", *rows]) + "\n"


def avec_recola_files() -> Files:
    return {
        f"ratings_gold_standard/{dimension}/{name}.arff": recola_arff(name, 13, level)
        for name in ("train_1", "train_2", "dev_1")
        for dimension, level in (("valence", 0.1), ("arousal", -0.2))
    }


def sewa_table(name: str, count: int, header: bool = False) -> str:
    """Rows each 0.1 s, as AVEC hands them out."""
    rows = [f"'{name}';{0.1 * r:.1f};{0.3 - 0.1 * r:.4f};{0.1 * r:.4f};0.0" for r in range(count)]
    return "\n".join([*(["name;timestamp;arousal;valence;liking"] if header else []), *rows]) + "\n"


def affwild2va_files() -> Files:
    """Two people of video5, the right of two in 6-30 (the other's name has no ending), video9 to validate.

    Frames are 112×112 JPEGs numbered from 1, as they are handed out; those without a face are not there.
    """
    base = "VA_Estimation_Challenge"
    text = "valence,arousal\n0.1,-0.2\n-5,-5\n0.3,0.25\n-1,1\n"
    names = ("video5_left", "video5_right", "6-30-1920x1080", "6-30-1920x1080_right")
    files: Files = {f"{base}/Train_Set/{name}.txt": text for name in names}
    files[f"{base}/Validation_Set/video9.txt"] = text
    for seed, name in enumerate((*names, "video9")):
        for number in (1, 2, 3, 4):
            files[f"cropped_aligned/{name}/{number:05d}.jpg"] = drawn(10 * seed + number, (112, 112))
    files["cropped_aligned/unlabelled/00001.jpg"] = drawn(99, (112, 112))
    return files
