"""Images a second from shards on disk to a batch in memory, on one core, against stock webdataset.

    python -m bench.reading [--quick]

2,048 samples of CelebA's size (178×218, JPEG of quality 90, from 128 rendered faces) in tars, page cache
warm: read, decoded, cropped at random to 224, flipped, made a batch. Ours is the stream that training takes
its batches from; webdataset decodes with Pillow and transforms with torchvision, as its documentation shows.
Then the same with two loader workers, and what it costs that they hand their batches over.
"""

from __future__ import annotations

import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from bench.measure import Asked, Row, Spread, rates, run_alone, take_turns, times_as_fast
from shards import keyed, stream, transforms
from shards.build import BuildConfig, build
from shards.config import AugmentConfig
from shards.draws import Layout
from shards.labels import FaceLabels
from shards.order import EpochOrder
from shards.records import Encoded, Item, LabelSpace, Maker, SourceInfo, each
from shards.render.actions import draw_expression
from shards.render.camera import draw_camera
from shards.render.head import build_head
from shards.render.picture import View, render
from shards.render.scene import draw_frame, draw_scene
from shards.shardset import ShardSet
from shards.stream import Batch, FaceSample, train_batches

SEED = 0
BATCH = 64
SIZE = (224, 224)
WIDTH, HEIGHT = 178, 218
QUALITY = 90
RATE_GOAL = 1700
RATIO_GOAL = 2.3
NUM_WORKERS = 2
AUGMENT = AugmentConfig()
_CROP = {"scale": (0.2, 1.0), "interpolation": v1.InterpolationMode.BICUBIC}


def rows(asked: Asked) -> list[Row]:
    """The two lines; `asked.device` does not matter."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            faces = face_jpegs(16 if asked.quick else 128)
            source = _Repeated(faces, 256 if asked.quick else 2048)
            (split,) = build(source, Path(folder), BuildConfig(shard_size=256, workers=1), quiet=True)
            mean_bytes = statistics.mean(map(len, faces))
            return [_core_row(split, mean_bytes, asked.quick), _workers_row(split, asked.quick)]
    finally:
        torch.set_num_threads(threads)


def face_jpegs(count: int) -> list[bytes]:
    """Rendered faces as JPEGs of CelebA's size: 178×218, quality 90; the same each time."""
    rng = np.random.default_rng(SEED)
    found = []
    for number in range(count):
        if number % 8 == 0:
            head = build_head(rng)
        frame = draw_frame(rng, draw_expression(rng).units)
        scene = draw_scene(rng, head.traits.wears_glasses, head.skin)
        pixels = render(head, frame, scene, View(size=HEIGHT), draw_camera(rng), rng).color
        left = (HEIGHT - WIDTH) // 2
        data = io.BytesIO()
        Image.fromarray(pixels[:, left : left + WIDTH].copy()).save(data, "JPEG", quality=QUALITY)
        found.append(data.getvalue())
    return found


@dataclass(frozen=True)
class _Repeated:
    """A source of `count` samples that repeats some JPEGs under keys of their own."""

    faces: Sequence[bytes]
    count: int
    info: SourceInfo = field(default_factory=lambda: SourceInfo("benchmark", "CC0", rendered=True))

    def splits(self) -> Sequence[str]:
        return ["train"]

    def items(self, split: str) -> Sequence[Item]:
        return [Item(f"face-{number:06}", number) for number in range(self.count)]

    def open_maker(self) -> Maker:
        return each(lambda item: Encoded(item.key, {"jpg": self.faces[item.ref % len(self.faces)]}))


def _core_row(split: Path, mean_bytes: float, quick: bool) -> Row:
    shards = ShardSet([split])
    num_batches, num_apart = (2, 64) if quick else (24, 256)
    contestants = {
        "ours": lambda: _draw(_ours(shards), num_batches),
        "webdataset": lambda: _draw(_webdataset(split, _as_documented), num_batches),
        "webdataset, on tensors": lambda: _draw(_webdataset(split, _on_tensors), num_batches),
    }
    parts = _parts(shards, num_apart)
    seconds = take_turns({**contestants, **parts}, turns=1 if quick else 9)
    rate = {name: Spread.of(rates(seconds[name], num_batches * BATCH)) for name in contestants}
    ratio = times_as_fast(seconds["ours"], seconds["webdataset"])
    other = times_as_fast(seconds["ours"], seconds["webdataset, on tensors"])
    micro = {name: statistics.median(seconds[name]) / num_apart * 1e6 for name in parts}
    micro["decode"] -= micro["header"]
    whole = statistics.median(seconds["ours"]) / (num_batches * BATCH) * 1e6
    split_up = ", ".join(f"{name} {one:.0f}" for name, one in micro.items())
    return Row(
        work=f"shard read + decode + RandomResizedCrop + flip, {WIDTH}×{HEIGHT} JPEG of "
        f"{mean_bytes / 1e3:.1f} KB → {SIZE[0]}, one core, batches of {BATCH}",
        goal=f"{RATE_GOAL:,} images/s and {RATIO_GOAL} × stock webdataset",
        ours=f"{rate['ours'].text()} images/s",
        peer=f"webdataset {rate['webdataset'].text()} images/s",
        ratio=ratio,
        reached=rate["ours"].median >= RATE_GOAL and ratio.median >= RATIO_GOAL,
        note=f"An image takes {whole:.0f} µs with order, stages and loader; its parts, each by itself, "
        f"{sum(micro.values()):.0f}: {split_up}. webdataset with our decoder and transforms.v2 on uint8: "
        f"{rate['webdataset, on tensors'].text()} images/s; ours is {other.text('.2f')} × that.",
        settings={
            "ours": "train_batches(num_workers=0): EpochOrder, crc32 and header checked, uint8",
            "webdataset": 'WebDataset(tars, shardshuffle=False).decode("pil"), torchvision '
            "RandomResizedCrop(224, (.2, 1), bicubic), RandomHorizontalFlip, ToTensor, batched; no worker",
            "webdataset, on tensors": "the same with torchvision.io.decode_image and transforms.v2 on uint8",
            "parts": f"each by itself on {num_apart} samples; decode is without its look at the header",
            "threads": "1; page cache warm",
        },
        values=seconds,
    )


def _ours(shards: ShardSet, num_workers: int = 0) -> Iterator[Batch]:
    order = EpochOrder(shards.shard_sizes, SEED)
    return train_batches(shards, order, Layout(0, 1, BATCH, 1), 0, SIZE, AUGMENT, num_workers)


def _webdataset(split: Path, stages: Callable[[Any], Any]) -> Iterator[Any]:
    tars = [str(tar) for tar in sorted(split.glob("*.tar"))]
    return iter(stages(wds.WebDataset(tars, shardshuffle=False)).batched(BATCH))


def _as_documented(samples: Any) -> Any:
    transform = v1.Compose([v1.RandomResizedCrop(SIZE, **_CROP), v1.RandomHorizontalFlip(), v1.ToTensor()])
    return samples.decode("pil").to_tuple("jpg", "__key__").map_tuple(transform)


def _on_tensors(samples: Any) -> Any:
    transform = v2.Compose([v2.RandomResizedCrop(SIZE, **_CROP, antialias=True), v2.RandomHorizontalFlip()])

    def decoded(data: bytes) -> torch.Tensor:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found: torch.Tensor = transform(decode_image(buffer, ImageReadMode.RGB))
        return found

    return samples.to_tuple("jpg", "__key__").map_tuple(decoded)


def _draw(batches: Iterable[Any], count: int) -> None:
    for _ in itertools.islice(batches, count):
        pass


def _parts(shards: ShardSet, count: int) -> dict[str, Callable[[], object]]:
    """Each step of ours by itself, on `count` samples; "decode" looks at the header too."""
    raws = [shards.read(number) for number in range(count)]
    data = [raw.members["jpg"] for raw in raws]
    images = [transforms.decode(one, "") for one in data]
    keys = [keyed.sample_key(SEED, 0, number) for number in range(count)]

    def augmented() -> list[torch.Tensor]:
        return [transforms.augment(image, key, SIZE, AUGMENT) for image, key in zip(images, keys)]

    samples = [FaceSample("", image, FaceLabels(), key) for image, key in zip(augmented(), keys)]
    collate = partial(stream.collate_faces, space=LabelSpace((), (), False))
    return {
        "read and crc": lambda: [shards.read(number) for number in range(count)],
        "header": lambda: [transforms.image_size(one, "") for one in data],
        "decode": lambda: [transforms.decode(one, "") for one in data],
        "crop, resize and flip": augmented,
        "collate": lambda: _draw(stream.in_batches(collate, BATCH, samples), count),
    }


def _workers_row(split: Path, quick: bool) -> Row:
    shards = ShardSet([split])
    kept = partial(stream.load, [partial(_ours, shards), _sizes], NUM_WORKERS)
    contestants: dict[str, Callable[[], Iterator[Any]]] = {
        "in process": lambda: _ours(shards),
        "workers": lambda: _ours(shards, NUM_WORKERS),
        "workers that keep their batches": kept,
    }
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(1 if quick else 5):
        for name, opened in contestants.items():
            found[name].append(_steady_rate(opened, 2 if quick else 24))
    rate = {name: Spread.of(some) for name, some in found.items()}
    times = Spread.of([many / one for many, one in zip(found["workers"], found["in process"])])
    lost = Spread.of(
        [1 - own / kept for own, kept in zip(found["workers"], found["workers that keep their batches"])]
    )
    return Row(
        work=f"the same with {NUM_WORKERS} loader workers, as training reads ({os.cpu_count()} cores)",
        goal="for information",
        ours=f"{rate['workers'].text()} images/s, {times.median:.2f} × one process; "
        f"{lost.median:.0%} ({lost.low:.0%}–{lost.high:.0%}) lost in handing batches over",
        reached=None,
        note=f"No goal is set. {NUM_WORKERS} workers that throw their batches away make "
        f"{rate['workers that keep their batches'].text()} images/s, one process "
        f"{rate['in process'].text()}: the first is what the cores give, and the share lost is of that.",
        settings={
            "workers": f"train_batches(num_workers={NUM_WORKERS}), batches of {BATCH} through shared memory, "
            "four ahead for each worker",
            "workers that keep their batches": "the same stages in the workers, which hand over counts",
            "measured": "after the workers have started and what they had made ahead is used up",
        },
        values=found,
    )


def _sizes(batches: Iterable[Batch]) -> Iterator[int]:
    for batch in batches:
        yield batch.size


def _steady_rate(opened: Callable[[], Iterator[Any]], count: int) -> float:
    """Images a second of `count` batches, once it runs steadily."""
    batches = opened()
    _draw(batches, 1 + 4 * NUM_WORKERS)
    start = time.perf_counter()
    _draw(batches, count)
    return count * BATCH / (time.perf_counter() - start)


if __name__ == "__main__":
    run_alone(__spec__.name, rows)
