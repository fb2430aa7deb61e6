"""The renderer of the default data on one core: frames, faces of the data set, heads.

    python -m bench.renderer [--quick]

A frame is colour, depth and thermal at 112 px with every camera effect, of a head that is already built; a
face of the data set is made as `faceprior shards` makes it (its head, which several faces share, the colour
picture, JPEG and labels). No other renderer does this, so there is no peer. It never uses a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count

import numpy as np

from bench.measure import Asked, Row, Spread, rates, run_alone, take_turns
from shards.render import RenderedFaces
from shards.render.actions import draw_expression
from shards.render.camera import draw_camera
from shards.render.head import Head, build_head
from shards.render.picture import View, render
from shards.render.scene import draw_frame, draw_scene

WANTED = 80
SAMPLES_PER_HEAD = 8


def rows(asked: Asked) -> list[Row]:
    """Frames, faces and heads."""
    if hasattr(os, "sched_setaffinity"):  # whatever libraries start threads share it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    num_frames, turns = (8, 1) if asked.quick else (64, 12)
    num_heads = num_frames // SAMPLES_PER_HEAD
    rng = np.random.default_rng(0)
    heads = [build_head(rng) for _ in range(num_heads)]
    faces = RenderedFaces(
        num_train=(turns + 1) * num_frames, num_identities=(turns + 1) * num_frames // SAMPLES_PER_HEAD
    )
    items, make, portion = faces.items("train"), faces.open_maker(), count()

    def make_faces() -> None:
        start = next(portion) * num_frames
        for _ in make(items[start : start + num_frames]):
            pass

    seconds = take_turns(
        {
            "frames": lambda: _render_frames(heads, num_frames, rng),
            "faces": make_faces,
            "heads": lambda: [build_head(rng) for _ in range(num_heads)],
        },
        turns,
    )
    frames, made = rates(seconds["frames"], num_frames), rates(seconds["faces"], num_frames)
    head_ms = [1e3 * one / num_heads for one in seconds["heads"]]
    share = Spread.of(head_ms).median / SAMPLES_PER_HEAD * Spread.of(made).median / 1e3
    settings = {"ours": f"one core; {num_frames} frames or faces of {num_heads} heads a turn"}
    return [
        Row(
            "renderer: colour, depth and thermal at 112 px, heads built",
            f"{WANTED} frames/s on one core",
            f"{Spread.of(frames).text()} frames/s",
            reached=Spread.of(frames).median >= WANTED,
            settings=settings,
            values={"seconds": seconds["frames"]},
        ),
        Row(
            "the data set's own maker: colour, JPEG and labels at 112 px, heads included",
            "stated",
            f"{Spread.of(made).text()} faces/s",
            reached=True,
            note=f"Building the head takes {share:.0%} of it, shared by {SAMPLES_PER_HEAD} faces.",
            settings=settings,
            values={"seconds": seconds["faces"]},
        ),
        Row(
            "building a head",
            "stated",
            f"{Spread.of(head_ms).text('.1f')} ms",
            reached=True,
            settings=settings,
            values={"milliseconds a head": head_ms},
        ),
    ]


def _render_frames(heads: Sequence[Head], num_frames: int, rng: np.random.Generator) -> None:
    for number in range(num_frames):
        head = heads[number % len(heads)]
        frame = draw_frame(rng, draw_expression(rng).units)
        scene = draw_scene(rng, head.traits.wears_glasses, head.skin)
        render(head, frame, scene, View(), draw_camera(rng), rng)


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
