"""A source of tiny smooth pictures with labels: quick to make, different for each key."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from shards.build import BuildConfig, build
from shards.labels import EXPR8, FaceLabels
from shards.records import Encoded, Item, Maker, Rejected, SourceInfo, canonical_json, each


@dataclass(frozen=True)
class SmoothFaces:
    """`counts[split]` pictures; every `reject_every`-th one is left out."""

    counts: dict[str, int] = field(default_factory=lambda: {"train": 90, "val": 30})
    size: int = 32
    reject_every: int = 0
    info: SourceInfo = field(default_factory=lambda: SourceInfo("smooth", "CC0"))

    def splits(self) -> Sequence[str]:
        return list(self.counts)

    def items(self, split: str) -> Sequence[Item]:
        base = 1000 * list(self.counts).index(split)
        return [Item(f"{split}-{i:04d}", base + i) for i in range(self.counts[split])]

    def open_maker(self) -> Maker:
        return each(self._make)

    def _make(self, item: Item) -> Encoded | Rejected:
        if self.reject_every and item.ref % self.reject_every == 0:
            return Rejected(item.key, "no face")
        expr = item.ref % len(EXPR8)
        labels = FaceLabels(
            expr=EXPR8[expr] if item.ref % 7 else None,
            valence=0.1 * (expr - 4),
            arousal=-0.5,
            au={"AU1": expr % 2},
            identity=f"p{item.ref // 10}",
        )
        members = {"jpg": smooth_jpeg(item.ref, self.size), "json": canonical_json(labels.to_json())}
        return Encoded(item.key, members, expr if labels.expr else -1)


def smooth_jpeg(number: int, size: int = 32) -> bytes:
    """A random 4×4 picture blown up."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(data, "JPEG", quality=92)
    return data.getvalue()


def build_smooth(out: Path, shard_size: int = 16, **settings: object) -> Path:
    """A shard set of smooth pictures at `out`, of which half may be left out."""
    config = BuildConfig(shard_size=shard_size, workers=1, max_quarantined=0.5)
    build(SmoothFaces(**settings), out, config, quiet=True)  # type: ignore[arg-type]
    return out
