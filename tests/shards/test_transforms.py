"""Decoding: one RGB image of 8 bits, upright, or a refusal; and settings that could not work."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shards import transforms
from shards.align import decode as align_decode
from shards.config import CropConfig, JitterConfig
from shards.labels import DataError
from shards.transforms import decode


def encoded(*images: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    images[0].save(
        out, kind, **({"save_all": True, "append_images": images[1:]} if images[1:] else {}), **options
    )
    return out.getvalue()


def smooth(size: tuple[int, int] = (48, 32), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    """A PNG, its header made by hand."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8001, 9000, 30_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(DataError, match=rf"sample x: ({side}×{side} pixels|.*exceeds limit)"):
        decode(png(side, side, 8, 2, b""), "tar: sample x")


def test_up_to_the_limit_it_is_the_decoder_that_finds_the_pixels_missing() -> None:
    with pytest.raises(DataError, match="sample x: cannot decode: cut short"):
        decode(png(8000, 8000, 1, 0, b""), "tar: sample x")


def test_a_damaged_byte_costs_a_sample_not_the_process() -> None:
    """Fuzzed; torchvision's PNG decoder crashed at the first of these."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded(Image.fromarray(pixels), kind=kind)
        for _ in range(200):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 2):
                data[at] = rng.integers(0, 256)
            try:
                image = decode(bytes(data), "x")
            except DataError as error:
                assert str(error).startswith("x: ")
            else:
                assert image.dtype == torch.uint8 and image.shape[0] == 3


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(DataError, match="sample x"):
        decode(b"\xff\xd8 not a picture", "tar: sample x")


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_whatever_their_name(kind: str) -> None:
    with pytest.raises(DataError, match=r"not JPEG, PNG, WEBP"):
        decode(encoded(smooth(), kind=kind), "x")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused_unread(kind: str) -> None:
    frames = [smooth((2000, 2000), seed) for seed in range(3)]
    with pytest.raises(DataError, match=r"animation of 3 frames|not JPEG, PNG, WEBP"):
        decode(encoded(*frames, kind=kind), "x")


def test_a_jpeg_with_a_second_picture_behind_it_is_its_first() -> None:
    image = decode(encoded(smooth(), smooth((20, 20), 1), kind="MPO"), "x")
    assert tuple(image.shape) == (3, 32, 48)


@pytest.mark.parametrize("colour", [0, 2])
def test_sixteen_bits_become_eight(colour: int) -> None:
    """Of other types a batch could not be stacked, or would be trained on as they are."""
    channels = 1 if colour == 0 else 3
    values = np.random.default_rng(1).integers(0, 65536, (4, 5, channels))
    data = png(5, 4, 16, colour, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    image = decode(data, "x")
    assert image.dtype == torch.uint8 and tuple(image.shape) == (3, 4, 5)
    assert np.abs(image.permute(1, 2, 0).numpy() - values / 257).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_faces_come_out_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(), kind=kind, exif=exif.tobytes())
    image = decode(data, "x").permute(1, 2, 0).numpy().astype(float)
    expected = align_decode.load_image(data)
    assert image.shape == expected.shape and np.abs(image - expected).mean() < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_min": 0.8, "scale_max": 0.5}, r"crop\.scale_min=0\.8 and crop\.scale_max=0\.5"),
        ({"scale_min": 0.0}, r"crop\.scale_min=0\.0"),
        ({"scale_max": 1.5}, r"crop\.scale_max=1\.5"),
        ({"ratio": 0.0}, r"crop\.ratio=0\.0"),
        ({"ratio": float("nan")}, r"crop\.ratio=nan"),
        ({"flip": 1.5}, r"crop\.flip=1\.5"),
        ({"resize": 0}, r"crop\.resize=0"),
    ],
)
def test_crops_that_could_not_be_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CropConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value"), [("hue", 0.7), ("probability", 2.0), ("brightness", -0.1), ("contrast", float("nan"))]
)
def test_jitters_that_could_not_be_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"jitter\.{name}={value}: must be from 0 to"):
        JitterConfig(**{name: value})


def test_on_the_command_line_it_is_one_line_of_text() -> None:
    config = pytest.importorskip("pipelines.config")
    with pytest.raises(config.ConfigError, match=r"^jitter\.hue=0\.7: must be from 0 to 0\.5$"):
        config.load_config("", ["jitter.hue=0.7"])


@pytest.mark.parametrize("crop", [CropConfig(scale_min=0.3), CropConfig(resize=40)])
def test_the_cut_of_a_window_is_the_crop_of_a_picture(crop: CropConfig) -> None:
    """Of the size that decides to the pixel; of twice that size in the same place."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8))
    for key in range(40):
        cut = transforms.draw_cut(key, 40, 40, (16, 16), crop)
        wanted = transforms.random_crop(pixels, key, (16, 16), crop)
        one = transforms.cut_image(pixels, cut, (16, 16))
        assert (one.int() - wanted.int()).abs().max() <= 1
        large = pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)
        plane = pixels[0].numpy().astype(np.float32)
        twice = transforms.cut_plane(large[0].numpy().astype(np.float32), cut, (16, 16))
        np.testing.assert_array_equal(twice, transforms.cut_plane(plane, cut, (16, 16)))
        if crop.resize:
            np.testing.assert_array_equal(twice, one[0].numpy())


def test_without_a_cut_pictures_and_planes_are_whole() -> None:
    plane = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(transforms.cut_plane(plane, transforms.Cut(), (3, 4)), plane)
    mirrored = transforms.cut_plane(plane, transforms.Cut(flip=True), (3, 4))
    np.testing.assert_array_equal(mirrored, plane[:, ::-1])
    image = torch.arange(36, dtype=torch.uint8).reshape(3, 3, 4)
    assert torch.equal(transforms.cut_image(image, transforms.Cut(), (3, 4)), image)
    with pytest.raises(DataError, match=r"crop\.resize=8 is smaller"):
        transforms.draw_cut(0, 40, 40, (16, 16), CropConfig(resize=8))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"exif": b"Exif\0\0" + bytes(900)},
        {"comment": "c" * 99},
    ],
    ids=["plain", "progressive", "grey", "cmyk", "exif", "comment"],
)
def test_a_jpegs_size_is_read_without_pillow_and_as_by_it(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = options.get("mode", "RGB")
    options = {name: value for name, value in options.items() if name != "mode"}
    data = encoded(smooth((37, 53)).convert(mode), kind="JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.height, image.width) == (53, 37)
    with monkeypatch.context() as context:
        context.setattr(transforms, "_stated_size", None)
        assert transforms.image_size(data, "x") == (53, 37)


@pytest.mark.parametrize("kept", [3, 10, 150])
def test_what_ends_before_its_size_goes_to_pillow_and_is_an_error(kept: int) -> None:
    with pytest.raises(DataError, match="x: "):
        transforms.image_size(encoded(smooth(), kind="JPEG")[:kept], "x")
