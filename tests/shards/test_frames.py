"""Frames as members: names there and back, and 16-bit planes bit for bit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from shards.config import MODALITIES
from shards.frames import decode_plane, encode_plane, frame_extension, frame_extensions, parse_frame
from shards.labels import DataError


def test_planes_come_back_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    for plane in (
        rng.integers(0, 65536, (37, 53), dtype=np.uint16),
        np.array([[0, 1, 255, 256, 32767, 32768, 65535]], np.uint16),
        rng.integers(0, 65536, (8, 8), dtype=np.uint16)[:, ::-1].T,
    ):
        data = encode_plane(plane)
        assert data == encode_plane(plane.copy())
        back = decode_plane(data, "x")
        assert back.dtype == np.uint16
        np.testing.assert_array_equal(back, plane)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("frame", [0, 7, 9999, 12345])
def test_names_there_and_back(modality: str, frame: int) -> None:
    assert parse_frame(frame_extension(modality, frame)) == (modality, frame)
    assert frame_extension(modality, frame) in frame_extensions(modality, frame)


@pytest.mark.parametrize(
    "name", ["jpg", "json", "color.jpg", "color.7.jpg", "color.00007.jpg", "depth.0001.jpg", "rgb.0001.jpg"]
)
def test_other_members_are_no_frames(name: str) -> None:
    assert parse_frame(name) is None


def test_pictures_of_eight_bits_are_no_planes() -> None:
    data = io.BytesIO()
    Image.new("L", (4, 4), 7).save(data, "PNG")
    with pytest.raises(DataError, match="x: mode L, not a 16-bit grey PNG"):
        decode_plane(data.getvalue(), "x")
    plane = encode_plane(np.ones((64, 64), np.uint16))
    for damaged in (b"", b"nothing", plane[: len(plane) // 2]):
        with pytest.raises(DataError, match="x: cannot decode the 16-bit PNG"):
            decode_plane(damaged, "x")
