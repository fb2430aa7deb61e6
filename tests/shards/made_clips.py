"""A source of tiny clips whose every pixel says where and when it was: quick to make, each frame another."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from shards.build import BuildConfig, build
from shards.frames import encode_plane, frame_extension
from shards.labels import ClipLabels
from shards.records import Encoded, Item, LabelSpace, Maker, SourceInfo, canonical_json, each

SIZE, THERMAL_SIZE = 24, 12


@dataclass(frozen=True)
class MadeClips:
    """`counts[split]` clips; clip n has `lengths[n % len(lengths)]` frames at `fps`.

    Attributes:
        left_out: (number of the clip, extension) of members that are not stored.
        stripes: how strong the stripes are that tell the clips' colour pictures apart.
    """

    counts: dict[str, int] = field(default_factory=lambda: {"train": 30, "val": 7})
    lengths: tuple[int, ...] = (3, 9, 10, 14)
    fps: float = 10.0
    left_out: frozenset[tuple[int, str]] = frozenset()
    stripes: float = 0.0
    info: SourceInfo = field(
        default_factory=lambda: SourceInfo(
            "made", "CC0", kind="clips", label_space=LabelSpace((), (), True), alignment={"size": SIZE}
        )
    )

    def splits(self) -> Sequence[str]:
        return list(self.counts)

    def items(self, split: str) -> Sequence[Item]:
        return [Item(f"{split}-{i:03d}", i) for i in range(self.counts[split])]

    def open_maker(self) -> Maker:
        return each(self._make)

    def _make(self, item: Item) -> Encoded:
        number, length = item.ref, self.lengths[item.ref % len(self.lengths)]
        members = {}
        for frame in range(length):
            members[frame_extension("color", frame)] = color(item.key, number, frame, self.stripes)
            members[frame_extension("depth", frame)] = encode_plane(depth(number, frame))
            members[frame_extension("thermal", frame)] = encode_plane(thermal(number, frame))
        members = {name: data for name, data in members.items() if (number, name) not in self.left_out}
        labels = ClipLabels(
            num_frames=length,
            fps=self.fps,
            valence=[valence(number, frame) for frame in range(length)],
            arousal=[None if frame == 1 else -0.5 for frame in range(length)],
            start_frame=100 * number,
            identity=f"{item.key[:3]}-{number // 3}",
            group=f"recording-{item.key}",
        )
        return Encoded(item.key, members | {"json": canonical_json(labels.to_json())})


def valence(number: int, frame: int) -> float:
    """Another for each frame of all clips."""
    return (number * 20 + frame) / 1000


def color(key: str, number: int, frame: int, stripes: float) -> bytes:
    """A picture that brightens towards the right and from frame to frame."""
    row = np.linspace(20, 160, SIZE) + 3 * frame + number
    across = np.random.default_rng(zlib.crc32(key.encode())).uniform(-stripes, stripes, (SIZE // 4, 1))
    grey = (row + across.repeat(4, axis=0)).clip(0, 255).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=2)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=95)
    return data.getvalue()


def depth(number: int, frame: int) -> np.ndarray:
    """(SIZE, SIZE) mm, farther towards the right, with a hole."""
    plane = np.tile(np.linspace(600, 800, SIZE), (SIZE, 1)) + 10 * number + frame
    plane = plane.astype(np.uint16)
    plane[2:4, 3:5] = 0
    return plane


def thermal(number: int, frame: int) -> np.ndarray:
    """(THERMAL_SIZE, THERMAL_SIZE) centi-kelvin, warmer towards the right, with a pixel missing."""
    plane = np.tile(np.linspace(30300, 31100, THERMAL_SIZE), (THERMAL_SIZE, 1)) + number + frame
    plane = plane.astype(np.uint16)
    plane[0, 0] = 0
    return plane


def made_clips(out: Path, shard_size: int = 6, **settings: object) -> Path:
    """A shard set of `MadeClips(**settings)` at `out`."""
    build(MadeClips(**settings), out, BuildConfig(shard_size=shard_size, workers=1), quiet=True)  # type: ignore[arg-type]
    return out
