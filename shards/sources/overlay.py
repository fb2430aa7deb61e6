"""A look at a rig before hours of work: do its cameras show the same, and can its units be right?"""

from __future__ import annotations

import io
import logging
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.align import warp_plane
from shards.align.decode import Picture
from shards.files import clear_disk_errors, write_atomic
from shards.frames import ZERO_CELSIUS_CK, UInt16
from shards.sources.recordings import Recording
from shards.sources.tracks import TrackReader

_LOG = logging.getLogger(__name__)

COLOURS = {"depth": (0, 255, 255), "thermal": (255, 128, 0)}

_EDGES = 0.08  # share of a plane's pixels that are drawn: the steepest
_LIKELY = {"depth": (100, 10_000), "thermal": (ZERO_CELSIUS_CK - 4000, ZERO_CELSIUS_CK + 6000)}
_UNITS = {"depth": "mm", "thermal": "centi-kelvin"}


def check_units(recording: Recording, reader: TrackReader) -> None:
    """Warns where the first plane of a camera cannot be read, or is not likely to be mm (0.1 to 10 m) or
    centi-kelvin (−40 to 60 °C): a scale or offset that is wrong would teach a model nothing, without a word.

    Raises:
        DataError: a plane is not 16-bit grey.
    """
    for modality, track in recording.tracks.items():
        if modality == "color":
            continue
        frame = next((i for i, name in enumerate(track.frames) if name is not None), None)
        lost: Counter[str] = Counter()
        plane = None if frame is None else reader.plane(track, frame, modality, lost)
        if plane is None or not plane.any():
            reason = next(iter(lost), f"{modality}: nothing in it" if frame is not None else "none near")
            _LOG.warning("%s: its first picture of %s: %s", recording.name, modality, reason)
            continue
        low, high = _LIKELY[modality]
        median = float(np.median(plane[plane > 0]))
        if not low <= median <= high:
            _LOG.warning(
                "%s: %s is around %.0f %s in its first picture, which is not likely: see scale and offset in "
                "cameras.csv",
                recording.name,
                modality,
                median,
                _UNITS[modality],
            )


def overlay_edges(recording: Recording, reader: TrackReader, path: Path) -> bool:
    """Writes the first frame that all cameras have; False if there is none, or its colour cannot be read.

    Grey colour, over it the edges of depth in blue-green and those of thermal in orange, each moved by its
    affine map: where they lie on the outline of the face, the map is right.

    Args:
        recording: whole.
        reader: of its pictures.
        path: of the PNG.

    Raises:
        DataError: the folder cannot be written, or a picture cannot be read.
    """
    tracks = recording.tracks
    common = [
        i
        for i in range(recording.num_frames)
        if all(track.frames[i] is not None for track in tracks.values())
    ]
    color = reader.picture(tracks["color"], common[0], Counter()) if common else None
    if color is None:
        return False
    shown = np.repeat((color.mean(2, keepdims=True) * 0.7).astype(np.uint8), 3, axis=2)
    for modality, drawn in COLOURS.items():
        plane = None
        if modality in tracks:
            plane = reader.plane(tracks[modality], common[0], modality, Counter())
        if plane is not None:
            matrix = tracks[modality].calibration.to_color(plane.shape, color.shape)
            shown[registered_edges(plane, matrix, color.shape[:2])] = drawn
    with clear_disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, _png(shown))
    return True


def registered_edges(plane: UInt16, matrix: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the steepest steps of a plane lie in the colour picture.

    Args:
        plane: (H, W) uint16, 0 = missing: steps to and from it do not count.
        matrix: (2, 3), plane -> colour picture.
        shape: (height, width) of the colour picture.

    Returns:
        (height, width) bool.
    """
    values = plane.astype(np.float64)
    steep = np.zeros(plane.shape)
    for axis in (0, 1):
        step = np.abs(np.diff(values, axis=axis))
        known = np.minimum(np.delete(plane, 0, axis), np.delete(plane, -1, axis)) > 0
        pad = [(0, 1) if a == axis else (0, 0) for a in (0, 1)]
        steep = np.maximum(steep, np.pad(step * known, pad))
    limit = np.quantile(steep, 1 - _EDGES)
    edges = (steep >= max(limit, 1)).astype(np.uint16)
    return np.asarray(warp_plane(edges, matrix, shape) > 0)


def _png(picture: Picture) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()
