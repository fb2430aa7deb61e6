"""Hostile binary files: tars, zips, pictures, weights."""

from __future__ import annotations

import argparse
import bz2
import functools
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from pipelines.checkpoint import load_encoder, read_tensors
from pipelines.importing import import_weights
from pipelines.models import load_model
from shards.align.decode import load_image
from shards.frames import decode_plane
from shards.indexing import index_tars
from shards.shardset import open_shards
from shards.sources.affectnet import read_npy
from shards.sources.pictures import ZipPictures
from shards.sources.tars import TarFaces
from shards.stream import decode_image, decode_labels
from shards.tars import scan_tar
from shards.transforms import decode
from tests.reliability.hostile import Case
from tests.shards.faces import smooth_jpeg
from tests.shards.test_tars import make_tar


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, call: Callable[..., Any] = os.system, word: str = "touch canary") -> None:
        self.call, self.word = call, word

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call, (self.word,)


def _saved(data: Any, zipped: bool = True) -> Case:
    def case(place: Path) -> Any:
        os.chdir(place)
        torch.save(data, place / "x.pth", _use_new_zipfile_serialization=zipped)
        return import_weights(place / "x.pth", place / "out.safetensors")

    return case


def _written(name: str, data: bytes, take: Callable[[Path], Any]) -> Case:
    def case(place: Path) -> Any:
        os.chdir(place)
        (place / name).write_bytes(data)
        return take(place / name)

    return case


def _import(path: Path) -> Any:
    return import_weights(path, path.with_name("out.safetensors"))


def _read_set(path: Path) -> Any:
    """Indexes a tar where it lies, and reads and decodes every sample."""
    index_tars([path], path.parent, "train", "x", "x")
    opened = open_shards([path.parent], "train")
    for number in range(len(opened)):
        raw = opened.read(number)
        decode_labels(raw)
        decode_image(raw)
    return len(opened)


def _tar(members: list[tuple[str, bytes]], take: Callable[[Path], Any] = _read_set, **of: Any) -> Case:
    def case(place: Path) -> Any:
        os.chdir(place)
        return take(make_tar(place / "a.tar", members, **of))

    return case


def _raw_member(change: Callable[[tarfile.TarInfo], None], form: int = tarfile.GNU_FORMAT) -> Case:
    """A tar whose one member's header is what `change` makes of it, whatever its content is."""

    def case(place: Path) -> Any:
        info = tarfile.TarInfo("1.jpg")
        info.size = 10
        change(info)
        (place / "a.tar").write_bytes(info.tobuf(form) + bytes(512) + bytes(1024))
        return scan_tar(place / "a.tar").rows

    return case


def _set(**values: Any) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in values.items():
            setattr(info, name, value)

    return change


def _big_json(place: Path) -> Any:
    """A member of labels with hundreds of megabytes, which take no room on the disk."""
    size = 700_000_000
    header = tarfile.TarInfo("1.json")
    header.size = size
    with (place / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + -(-size // 512) * 512 + 1024)
    return _read_set(place / "a.tar")


def _zip(name: str, data: bytes, take: str = "", **of: Any) -> Case:
    def case(place: Path) -> Any:
        with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        pictures = ZipPictures(place / "a.zip")
        return len(pictures.read(take or name))

    return case


def _overlapping(place: Path) -> Any:
    data = bytearray(_zip_bytes("a.jpg", bytes(1000)))
    start = data.rfind(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    directory = bytes(data[start:end]) * 3
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, len(directory), start, 0)
    (place / "a.zip").write_bytes(bytes(data[:start]) + directory + tail)
    return ZipPictures(place / "a.zip").names()


def _zip_bytes(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        file.writestr(name, data)
    return out.getvalue()


def _png(width: int, height: int, extra: bytes = b"", data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = data or zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.cache
def _bomb(size: int = 300_000_000) -> bytes:
    """Zlib data that unpacks to `size` bytes."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(10_000_000)) for _ in range(size // 10_000_000)) + packer.flush()


def _claiming_jpeg(side: int) -> bytes:
    data = bytearray(smooth_jpeg(1))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def _moving(form: str) -> bytes:
    frames = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(3)]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def _looked_at(data: bytes) -> Case:
    """Through every door for pictures; refused if any refuses."""

    def case(place: Path) -> Any:
        load_image(data)
        return decode(data, "x").shape

    return case


def _safetensors(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def _facts(facts: Any, shape: tuple[int, ...] = (1, 1, 4)) -> bytes:
    count = int(np.prod(shape))
    tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * count]}
    text = facts if isinstance(facts, str) else json.dumps(facts)
    return _safetensors({"__metadata__": {"faceprior": text}, "cls_token": tensor}, bytes(4 * count))


def _encoder_facts(**config: Any) -> bytes:
    return _facts({"format": "faceprior-encoder", "version": 1, "config": config})


def _model_facts(**spec: Any) -> bytes:
    return _facts({"format": "faceprior-model", "version": 1, "spec": spec})


_DEEP = "[" * 100_000
_TENSOR = {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}
_GNU_LONG = tarfile.TarInfo("././@LongLink")
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch canary) (w) file\n"

CASES: dict[str, Case] = {
    "pth: os.system": _saved(Evil()),
    "pth: os.system, old format": _saved(Evil(), zipped=False),
    "pth: eval beside tensors": _saved(
        {"model": {"w": torch.ones(2)}, "x": Evil(eval, "open('canary','w')")}
    ),
    "pth: in a Namespace": _saved({"args": argparse.Namespace(x=Evil()), "model": {"w": torch.ones(1)}}),
    "pth: exec": _saved({"state_dict": Evil(exec, "open('canary','w')")}),
    "pth: a plain pickle": _written("x.pth", pickle.dumps(Evil()), _import),
    "pth: protocol 0": _written("x.pth", pickle.dumps(Evil(), protocol=0), _import),
    "pth: a huge number": _written("x.pth", b"\x80\x02\x8a\xff" + bytes(300) + b".", _import),
    "pth: junk": _written("x.pth", np.random.default_rng(0).bytes(3000), _import),
    "pth: an empty zip": _written("x.pth", _zip_bytes("archive/data.pkl", b""), _import),
    "pth: as an encoder": _written("x.pth", pickle.dumps(Evil()), load_encoder),
    "pth: named safetensors": _written("x.safetensors", pickle.dumps(Evil()), load_encoder),
    "npy of objects": _written(
        "x.npy", pickle.dumps(Evil()), lambda path: read_npy(path.read_bytes(), "x.npy")
    ),
    "npy with a lying shape": lambda place: read_npy(
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**12,)}".ljust(118),
        "x",
    ),
    "npy with a shape that is code": lambda place: read_npy(
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': __import__('os').system('touch canary')}".ljust(118), "x"
    ),
    "tar: pickle beside a picture": _tar([("1.jpg", smooth_jpeg(1)), ("1.pkl", pickle.dumps(Evil()))]),
    "tar: pickle for webdataset to decode": _tar(
        [("1.jpg", smooth_jpeg(1)), ("1.pyd", pickle.dumps(Evil()))]
    ),
    "tar: pickle as a picture": _tar([("1.jpg", pickle.dumps(Evil()))]),
    "tar: pickle as labels": _tar([("1.jpg", smooth_jpeg(1)), ("1.json", pickle.dumps(Evil()))]),
    "tar: a name that climbs": _tar([("../1.jpg", b"x")]),
    "tar: a name from the root": _tar([("/etc/1.jpg", b"x")]),
    "tar: a name that climbs later": _tar([("a/../../1.jpg", b"x")]),
    "tar: a symbolic link": _tar([("1.jpg", b"")], kind=tarfile.SYMTYPE),
    "tar: a hard link": _tar([("1.jpg", b"")], kind=tarfile.LNKTYPE),
    "tar: a character device": _tar([("1.jpg", b"")], kind=tarfile.CHRTYPE),
    "tar: a block device": _tar([("1.jpg", b"")], kind=tarfile.BLKTYPE),
    "tar: a pipe": _tar([("1.jpg", b"")], kind=tarfile.FIFOTYPE),
    "tar: a sparse file": _raw_member(_set(type=tarfile.GNUTYPE_SPARSE)),
    "tar: a size beyond the end": _raw_member(_set(size=10**12)),
    "tar: a negative size": _raw_member(_set(size=-512)),
    "tar: a pax name that climbs": _raw_member(_set(pax_headers={"path": "../x.jpg"}), tarfile.PAX_FORMAT),
    "tar: a pax size that lies": _raw_member(_set(pax_headers={"size": "99999999999"}), tarfile.PAX_FORMAT),
    "tar: a pax size that is no number": _raw_member(_set(pax_headers={"size": "x"}), tarfile.PAX_FORMAT),
    "tar: a long name of gigabytes": _raw_member(_set(type=tarfile.GNUTYPE_LONGNAME, size=1 << 33)),
    "tar: a pax header of gigabytes": _raw_member(_set(type=tarfile.XHDTYPE, size=1 << 33)),
    "tar: a key twice": _tar([("1.jpg", b"a"), ("2.jpg", b"b"), ("1.json", b"{}")]),
    "tar: gzip": lambda place: _written("a.tar", gzip.compress(bytes(10**8)), _read_set)(place),
    "tar: bzip2": lambda place: _written("a.tar", bz2.compress(bytes(10**7)), _read_set)(place),
    "tar: xz": lambda place: _written("a.tar", lzma.compress(bytes(10**7)), _read_set)(place),
    "tar: labels of 700 MB": _big_json,
    "tar: raw labels of 2 MB": _tar(
        [("1.jpg", smooth_jpeg(1)), ("1.json", b'{"x": "' + bytes(2_000_000) + b'"}')],
        lambda path: TarFaces(path).open_reader()(TarFaces(path).items("train")[0]),
    ),
    "zip: a name that climbs": _zip("../a.jpg", b"x"),
    "zip: a name from the root": _zip("/a.jpg", b"x"),
    "zip: a name with a drive": _zip("C:\\a.jpg", b"x"),
    "zip: a bomb": _zip("a.jpg", bytes(60_000_000)),
    "zip: a larger bomb": _zip("a.jpg", bytes(260_000_000)),
    "zip: members over each other": _overlapping,
    "jpeg that claims 30,000²": _looked_at(_claiming_jpeg(30_000)),
    "jpeg that claims 65,500²": _looked_at(_claiming_jpeg(65_500)),
    "png that claims 50,000²": _looked_at(_png(50_000, 50_000)),
    "png that claims 2³¹": _looked_at(_png(2**31 - 1, 2**31 - 1)),
    "png of no width": _looked_at(_png(0, 0)),
    "png: a bomb in zTXt": _looked_at(_png(8, 8, _chunk(b"zTXt", b"k\0\0" + _bomb()))),
    "png: a bomb in iTXt": _looked_at(_png(8, 8, _chunk(b"iTXt", b"k\0\1\0\0\0" + _bomb()))),
    "png: a bomb in iCCP": _looked_at(_png(8, 8, _chunk(b"iCCP", b"k\0\0" + _bomb()))),
    "png: a bomb in its pixels": _looked_at(_png(8, 8, data=_bomb())),
    "png: a chunk that lies": _looked_at(_png(8, 8, struct.pack(">I", 2**31 - 1) + b"tEXt")),
    "png plane: a bomb": lambda place: decode_plane(_png(40_000, 40_000), "x"),
    "png plane: a bomb in zTXt": lambda place: decode_plane(
        _png(8, 8, _chunk(b"zTXt", b"k\0\0" + _bomb())), "x"
    ),
    "png that moves": lambda place: decode(_moving("PNG"), "x"),
    "webp that moves": lambda place: decode(_moving("WEBP"), "x"),
    "gif that claims 65,535²": _looked_at(
        b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\0\x08\0;"
    ),
    "bmp that claims 10⁹²": _looked_at(
        b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 10**9, 10**9, 1, 24, 0) + bytes(20)
    ),
    "tiff with an endless chain": _looked_at(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "eps that runs a command": _looked_at(_EPS),
    "svg with a script": _looked_at(b"<svg xmlns='http://www.w3.org/2000/svg'><script>x</script></svg>"),
    "safetensors: a header of 2⁶³": _written("x.safetensors", _safetensors({}, size=2**63 - 1), read_tensors),
    "safetensors: a header beyond the end": _written(
        "x.safetensors", _safetensors({}, size=10**6), read_tensors
    ),
    "safetensors: offsets beyond the end": _written(
        "x.safetensors", _safetensors({"a": _TENSOR}), read_tensors
    ),
    "safetensors: a shape that lies": _written(
        "x.safetensors", _safetensors({"a": _TENSOR | {"shape": [10**9, 10**9]}}, bytes(4000)), read_tensors
    ),
    "safetensors: tensors over each other": _written(
        "x.safetensors", _safetensors({"a": _TENSOR, "b": _TENSOR}, bytes(4000)), read_tensors
    ),
    "safetensors: a header that is no JSON": _written("x.safetensors", _safetensors(b"{"), read_tensors),
    "safetensors: deep facts": _written("x.safetensors", _facts(_DEEP), read_tensors),
    "safetensors: facts that are a list": _written("x.safetensors", _facts([1]), load_encoder),
    "safetensors: an encoder of another kind": _written(
        "x.safetensors", _encoder_facts(kind="x"), load_encoder
    ),
    "safetensors: a huge encoder": _written(
        "x.safetensors", _encoder_facts(embed_dim=1 << 20, depth=4, num_heads=1), load_encoder
    ),
    "safetensors: a deep encoder": _written("x.safetensors", _encoder_facts(depth=10**7), load_encoder),
    "safetensors: an encoder of huge images": _written(
        "x.safetensors", _encoder_facts(image_size=[10**7, 10**7]), load_encoder
    ),
    "safetensors: an encoder whose size is text": _written(
        "x.safetensors", _encoder_facts(embed_dim="__import__('os')"), load_encoder
    ),
    "safetensors: a huge model": _written(
        "x.safetensors", _model_facts(kind="vit", image_size=[10**6, 10**6]), load_model
    ),
    "safetensors: a model of no kind": _written("x.safetensors", _model_facts(kind="os.system"), load_model),
    "safetensors: a model without facts": _written("x.safetensors", _facts({}), load_model),
}
_PNG_TEXT_LIMIT = PngImagePlugin.MAX_TEXT_CHUNK
assert _PNG_TEXT_LIMIT < 10**7  # else Pillow would unpack such bombs
