"""Frames a second of the renderer on one core: colour, depth and thermal at 112 px, with every camera effect.

    OMP_NUM_THREADS=1 python bench/render.py [--frames 64] [--repeats 16]

Prints, for the best of the repeats (other work on the machine only slows it down): frames a second with the
heads already built, with each head's building shared by its samples, and faces a second of the data set's
own maker (colour and JPEG); each with its ratio to the 80 frames a second asked for. The peer is that
figure: no other renderer does this.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from shards.render import RenderedFaces
from shards.render.actions import draw_expression
from shards.render.camera import draw_camera
from shards.render.head import build_head
from shards.render.picture import View, render
from shards.render.scene import draw_frame, draw_scene

WANTED = 80
SAMPLES_PER_HEAD = 8


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=64, help="frames of one repeat")
    parser.add_argument("--repeats", type=int, default=16, help="the best one counts")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    build_head(rng)
    num_heads = max(1, args.frames // SAMPLES_PER_HEAD)
    frame_s, head_s, face_s = [], [], []
    faces = RenderedFaces(
        num_train=args.repeats * args.frames, num_identities=args.repeats * args.frames // SAMPLES_PER_HEAD
    )
    items, make = faces.items("train"), faces.open_maker()
    for repeat in range(args.repeats):
        start = time.perf_counter()
        heads = [build_head(rng) for _ in range(num_heads)]
        head_s.append((time.perf_counter() - start) / num_heads)
        start = time.perf_counter()
        for number in range(args.frames):
            head = heads[number % num_heads]
            frame = draw_frame(rng, draw_expression(rng).units)
            scene = draw_scene(rng, head.traits.wears_glasses, head.skin)
            render(head, frame, scene, View(), draw_camera(rng), rng)
        frame_s.append((time.perf_counter() - start) / args.frames)
        start = time.perf_counter()
        for _ in make(items[repeat * args.frames : (repeat + 1) * args.frames]):
            pass
        face_s.append((time.perf_counter() - start) / args.frames)
    best = min(frame_s)
    rows = (
        ("frames/s, heads built", 1 / best),
        (f"frames/s, a head built for every {SAMPLES_PER_HEAD}", 1 / (best + min(head_s) / SAMPLES_PER_HEAD)),
        ("faces/s of the data set (colour, JPEG, JSON)", 1 / min(face_s)),
    )
    for name, rate in rows:
        print(f"{name:48s} {rate:7.1f}   {rate / WANTED:5.2f} x {WANTED}")
    print(f"{'ms a head':48s} {1e3 * min(head_s):7.1f}")


if __name__ == "__main__":
    main()
