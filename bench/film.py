"""Ten seconds of film for a benchmark: one rendered person who talks, turns and moves before a wall."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.keyed import generator
from shards.render.head import build_head
from shards.render.motion import draw_motion
from shards.render.picture import View, render
from shards.render.scene import draw_scene

Picture = NDArray[np.uint8]

WIDTH, HEIGHT, FPS = 1280, 720, 25
_FACE = 480  # side of the rendered pictures; the face itself is about half as high


def moving_face(count: int) -> Iterator[Picture]:
    """(720, 1280, 3) frames: a rendered person who talks and turns, and is moved and scaled smoothly."""
    head = build_head(generator(3, "head"))
    motion = draw_motion(generator(3, "motion"), min(count, 2 * FPS), float(FPS))
    scene, wall = draw_scene(generator(3, "scene"), False, head.skin), _wall()
    fixed, cuts = None, []
    for number in range(len(motion)):
        frame = motion.frame(number)
        picture = render(head, frame, scene, View(_FACE, 0.5, fixed=fixed))
        fixed = fixed or picture.transform
        assert picture.depth is not None
        is_head = (picture.depth > 0) & (picture.depth < 100 * frame.distance + scene.wall_mm / 2)
        alpha = Image.fromarray(np.where(is_head, 255, 0).astype(np.uint8))
        cuts.append((Image.fromarray(picture.color), alpha))
    for number in range(count):
        there_and_back = number % max(1, 2 * len(cuts) - 2)
        color, alpha = cuts[min(there_and_back, 2 * len(cuts) - 2 - there_and_back)]
        side = round(_FACE * (0.8 + 0.25 * np.sin(number / 40)))
        left = round(WIDTH / 2 + 250 * np.sin(number / 30) - side / 2)
        top = round(HEIGHT / 2 + 60 * np.sin(number / 17) - side / 2)
        page = wall.copy()
        page.paste(color.resize((side, side)), (left, top), alpha.resize((side, side)))
        yield np.asarray(page)


def _wall() -> Image.Image:
    """Grey noise of several sizes, as bricks, wallpaper and shadows have it."""
    rng, total = np.random.default_rng(0), np.full((HEIGHT, WIDTH), 120.0)
    for columns, strength in ((6, 50), (24, 30), (96, 20), (320, 12)):
        noise = rng.uniform(-strength, strength, (columns * HEIGHT // WIDTH, columns)).astype(np.float32)
        total += np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8)).convert("RGB")


def write_video(path: Path, pictures: Iterator[Picture]) -> Path:
    """Pictures of one size as H.264, or as MPEG-4 where this PyAV has no encoder for it."""
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 4_000_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
