"""Tiny data sets in the official layouts, drawn on the spot."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.align.geometry import TEMPLATE
from shards.records import Encoded, Item, Rejected
from shards.sources import AlignedFaces

ATTRIBUTES = ("5_o_Clock_Shadow", "Smiling", "Young")


def drawn(seed: int, size: tuple[int, int] = (48, 48), kind: str = "JPEG") -> bytes:
    """A smooth picture, different for each seed; size (width, height)."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def write_files(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes | str | tarfile.TarInfo], mode: Any = "w") -> Path:
    """Plain members by name; a TarInfo stands for itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def celeba_files(count: int = 6) -> dict[str, bytes | str]:
    """Official lists and images 000001.jpg …: four for training, one each for val and test."""
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    points = " ".join(str(round(value)) for value in (TEMPLATE * 1.1 + (25, 60)).ravel())
    head = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x"
    split = [0] * (count - 2) + [1, 2]
    files: dict[str, bytes | str] = {
        f"img_align_celeba/{name}": drawn(seed, (178, 218)) for seed, name in enumerate(names)
    }
    files["list_eval_partition.txt"] = "".join(f"{n} {s}\n" for n, s in zip(names, split))
    files["identity_CelebA.txt"] = "".join(f"{n} {2880 + i // 2}\n" for i, n in enumerate(names))
    files["list_attr_celeba.txt"] = f"{count}\n{' '.join(ATTRIBUTES)} \n" + "".join(
        f"{n} -1  1 {'-1' if i % 2 else ' 1'}\n" for i, n in enumerate(names)
    )
    files["list_landmarks_align_celeba.txt"] = f"{count}\n{head} rightmouth_y\n" + "".join(
        f"{n}  {points}\n" for n in names
    )
    return files


def celeba_csv_files(count: int = 6) -> dict[str, bytes | str]:
    """The copy with csv files and a nested folder."""
    files: dict[str, bytes | str] = {}
    for name, content in celeba_files(count).items():
        if name.startswith("img_align_celeba/"):
            files["img_align_celeba/" + name] = content
            continue
        lines = str(content).splitlines()
        columns = {
            "list_eval_partition.txt": "partition",
            "list_attr_celeba.txt": lines[1].strip(),
            "list_landmarks_align_celeba.txt": lines[1],
        }.get(name)
        if columns is not None:
            body = lines if name == "list_eval_partition.txt" else lines[2:]
            rows = [",".join(line.split()) for line in [f"image_id {columns}", *body]]
            files[name.replace(".txt", ".csv")] = "\r\n".join(rows) + "\r\n"
    return files


def img2dataset_tar(path: Path, urls: Mapping[str, str]) -> Path:
    """key -> url, as img2dataset writes them: KEY.jpg, KEY.json, KEY.txt."""
    files: dict[str, bytes | str | tarfile.TarInfo] = {}
    for number, (key, url) in enumerate(urls.items()):
        record = {"caption": "a face", "url": url, "key": key, "status": "success", "exif": "{}", "width": 48}
        files |= {f"{key}.jpg": drawn(number), f"{key}.json": json.dumps(record), f"{key}.txt": "a face"}
    return write_tar(path, files)


def made(source: AlignedFaces, split: str = "train") -> dict[str, Encoded | Rejected]:
    """Every record that a source makes of one split, by key."""
    items: list[Item] = list(source.items(split))
    return {record.key: record for record in source.open_maker()(items)}


def labels(record: Encoded | Rejected) -> dict[str, Any]:
    assert isinstance(record, Encoded), record
    return dict(json.loads(record.members["json"]))
