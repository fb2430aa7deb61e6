"""Small sets of smooth pictures, and ways to put another sample into one without breaking a checksum."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from shards.build import BuildConfig, build
from shards.doctor import Examination, ExamineConfig, Finding, examine
from shards.index import index_bytes
from shards.labels import AU12, EXPR8
from shards.records import Encoded, Item, LabelSpace, Maker, Rejected, SourceInfo, canonical_json, each
from shards.tars import write_tar
from tests.shards.faces import smooth_jpeg

COUNTS = {"train": 40, "val": 20}
SHARD_SIZE = 16


@dataclass(frozen=True)
class MadeFaces:
    """Smooth pictures, another for each key; single images and labels can be set by key.

    Attributes:
        images, labels: what takes the place of a sample's image, and is added to its labels.
        prefix: of the keys; another one gives other keys, but the same pictures.
        seed: another one gives other pictures.
        rejected: keys that are left out.
    """

    images: Mapping[str, bytes] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=lambda: COUNTS)
    prefix: str = ""
    seed: int = 0
    rejected: tuple[str, ...] = ()
    info: SourceInfo = field(
        default_factory=lambda: SourceInfo(
            "made", "CC0", label_space=LabelSpace(EXPR8, AU12), alignment={"size": 48}
        )
    )

    def splits(self) -> Sequence[str]:
        return list(self.counts)

    def items(self, split: str) -> Sequence[Item]:
        base = 10_000 * self.seed + 1000 * list(self.counts).index(split)
        return [Item(f"{self.prefix}{split}-{i:04d}", base + i) for i in range(self.counts[split])]

    def open_maker(self) -> Maker:
        return each(self._make)

    def _make(self, item: Item) -> Encoded | Rejected:
        if item.key in self.rejected:
            return Rejected(item.key, "no face")
        expr = item.ref % len(EXPR8)
        labels: dict[str, Any] = {
            "expr": EXPR8[expr],
            "valence": 0.2 * (expr - 4),
            "arousal": 0.1,
            "au": {unit: (item.ref + i) % 2 for i, unit in enumerate(AU12)},
            "identity": f"p{item.ref // 5}",
        }
        labels |= self.labels.get(item.key, {})
        image = self.images.get(item.key) or smooth_jpeg(item.ref, 48)
        members = {"jpg": image, "json": canonical_json(labels)}
        return Encoded(item.key, members, EXPR8.index(labels["expr"]) if labels["expr"] in EXPR8 else -1)


def made_set(out: Path, **settings: Any) -> Path:
    """A shard set of `MadeFaces(**settings)` at `out`."""
    build(MadeFaces(**settings), out, BuildConfig(shard_size=SHARD_SIZE, workers=1), quiet=True)
    return out


def picture(number: int, quality: int = 92) -> bytes:
    """The picture that `MadeFaces` makes of an item, in another quality."""
    data = io.BytesIO()
    Image.open(io.BytesIO(smooth_jpeg(number, 48))).save(data, "JPEG", quality=quality)
    return data.getvalue()


def put_shard(folder: Path, number: int, samples: Sequence[Encoded]) -> None:
    """Writes shard `number` of a split anew, with right checksums everywhere."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    entry = manifest["shards"][number]
    data = io.BytesIO()
    written = write_tar(data, samples)
    (folder / entry["tar"]).write_bytes(data.getvalue())
    index = index_bytes(entry["tar"], written.size, written.sha256, written.rows)
    (folder / entry["index"]).write_bytes(index)
    change = len(samples) - entry["num_samples"]
    entry |= {
        "tar_size": written.size,
        "tar_sha256": written.sha256,
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "num_samples": len(samples),
    }
    manifest["num_samples"] += change
    manifest["num_items"] += change
    manifest.pop("checksum", None)
    path.write_text(json.dumps(manifest))


def edit_manifest(folder: Path, **values: Any) -> None:
    """Sets fields of a split's manifest, on purpose."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes()) | values
    manifest.pop("checksum", None)
    path.write_text(json.dumps(manifest))


def look(*folders: Path, workers: int = 1) -> Examination:
    return examine(folders, ExamineConfig(workers=workers), quiet=True)


def found(examination: Examination, severity: str, where: str, what: str) -> list[Finding]:
    """Findings of a severity whose place and text match."""
    return [
        finding
        for finding in examination.findings
        if finding.severity == severity and re.search(where, finding.where) and re.search(what, finding.what)
    ]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap(train: Path) -> None:
    a, b = train / "faces-000000.tar", train / "faces-000001.tar"
    a.rename(train / "x"), b.rename(a), (train / "x").rename(b)
