"""Whatever an image file holds, upright RGB pixels come out, or a short reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from shards.align import ImageError, encode_jpeg, load_image
from shards.align.decode import count_pixels, finished_jpeg


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(width: int = 40, height: int = 24) -> np.ndarray:
    """(height, width, 3): red grows to the right, green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.full_like(red, 90)], -1).round().astype(np.uint8)


def test_rgb_is_exact() -> None:
    picture = load_image(encoded(Image.fromarray(gradient()), "PNG"))
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, gradient())
    picture[0, 0] = 1  # its own memory


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_format_is_read(kind: str) -> None:
    picture = load_image(encoded(Image.fromarray(gradient()), kind))
    assert picture.shape == (24, 40, 3)
    assert np.abs(picture.astype(int) - gradient()).mean() < 12


def test_grey_has_three_equal_channels() -> None:
    grey = gradient()[..., 0]
    picture = load_image(encoded(Image.fromarray(grey), "PNG"))
    assert np.array_equal(picture, np.stack([grey] * 3, -1))


def test_transparent_pixels_lie_on_mid_grey() -> None:
    pixels = np.dstack([gradient(), np.full((24, 40), 255, np.uint8)])
    pixels[:, :20, 3] = 0
    picture = load_image(encoded(Image.fromarray(pixels), "PNG"))
    assert (picture[:, :20] == 128).all()
    assert np.array_equal(picture[:, 20:], gradient()[:, 20:])


def test_palette_with_a_transparent_entry() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert (load_image(encoded(image, "PNG")) == (200, 100, 50)).all()
    assert (load_image(encoded(image, "PNG", transparency=1)) == 128).all()


def test_grey_with_alpha_and_one_bit() -> None:
    assert (load_image(encoded(Image.new("LA", (8, 8), (77, 255)), "PNG")) == 77).all()
    assert (load_image(encoded(Image.new("1", (8, 8), 1), "PNG")) == 255).all()


def test_cmyk_jpeg_comes_out_in_colour() -> None:
    image = Image.new("RGB", (32, 32), (200, 60, 30))
    picture = load_image(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(picture.astype(int) - (200, 60, 30)).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 12850, 65535]], np.uint16)
    picture = load_image(encoded(Image.fromarray(values), kind))
    assert picture[0, :, 0].tolist() == [0, 1, 50, 255]


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        load_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = gradient(48, 32)
    inverse = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(inverse(upright)))
    picture = load_image(encoded(stored, "PNG", exif=exif))
    assert np.array_equal(picture, upright)


def test_broken_exif_does_not_cost_the_picture() -> None:
    data = encoded(Image.fromarray(gradient()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert load_image(data).shape == (24, 40, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_cut_short_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match="cannot decode"):
        load_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8\xff", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
)
def test_no_picture_has_a_short_stable_reason(data: bytes) -> None:
    with pytest.raises(ImageError) as first:
        load_image(data)
    with pytest.raises(ImageError) as second:
        load_image(data)
    assert str(first.value) == str(second.value)
    assert str(first.value).startswith("cannot decode")
    assert len(str(first.value)) < 160 and "0x" not in str(first.value)


def test_damage_never_raises_anything_else() -> None:
    generator = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"):
        whole = bytearray(encoded(Image.fromarray(gradient()), kind))
        for _ in range(60):
            data = bytearray(whole)
            for place in generator.integers(0, len(data), 4):
                data[place] = generator.integers(0, 256)
            try:
                assert load_image(bytes(data), 10_000_000).ndim == 3
            except ImageError as error:
                assert str(error).startswith(("cannot decode", "too many pixels"))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 12_000, 30_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(ImageError, match="too many pixels"):
        load_image(png_header(side, side))


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 20_000_000, zip=True)
    with pytest.raises(ImageError, match="cannot decode"):
        load_image(encoded(Image.fromarray(gradient()), "PNG", pnginfo=info))


def test_only_a_whole_plain_jpeg_is_kept_as_it_is() -> None:
    picture = gradient(32, 32)
    plain = encode_jpeg(picture)
    assert finished_jpeg(plain, 32) == plain and finished_jpeg(plain, 0) == plain
    assert finished_jpeg(plain, 48) is None
    assert finished_jpeg(plain[:-10], 32) is None
    assert finished_jpeg(encoded(Image.fromarray(picture), "PNG"), 32) is None
    assert finished_jpeg(encoded(Image.fromarray(picture), "JPEG", progressive=True), 32) is None
    assert finished_jpeg(encoded(Image.fromarray(picture[..., 0]), "JPEG"), 32) is None
    exif = Image.Exif()
    exif[0x0112] = 6
    assert finished_jpeg(encoded(Image.fromarray(picture), "JPEG", exif=exif), 32) is None


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def test_nothing_but_pixels_is_kept_of_a_jpeg() -> None:
    """EXIF with a place, XMP, a preview, a comment, a second picture behind the first; pixels to the bit."""
    picture = gradient(48, 48)
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    exif[0x010F] = "SECRET maker"
    plain = encode_jpeg(picture)
    data = encoded(Image.fromarray(picture), "JPEG", quality=95, exif=exif, comment=b"SECRET comment")
    jfif, rest = plain[2:20], plain[20:]
    small = b"JFIF\0\1\1\0\0\1\0\1\2\2" + b"SECRETSECRET"
    more = [segment(0xE0, b"JFXX\0\x10SECRET"), segment(0xEE, b"SECRET"), b"\xff", segment(0xED, b"SECRET")]
    assert jfif.startswith(segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"))
    for source in (data, plain[:2] + segment(0xE0, small) + b"".join(more) + rest + b"SECRET" + plain):
        assert b"SECRET" in source
        kept = finished_jpeg(source, 48)
        assert kept is not None and b"SECRET" not in kept and b"Exif" not in kept
        assert np.array_equal(load_image(kept), load_image(source))
        assert kept == plain
    before_end = plain[:-2] + segment(0xFE, b"SECRET") + plain[-2:]
    assert finished_jpeg(before_end, 48) == plain
    adobe = plain[:20] + segment(0xEE, b"Adobe\0d\0\0\0\0\1SECRET") + plain[20:]
    assert finished_jpeg(adobe, 48) == plain[:20] + segment(0xEE, b"Adobe\0d\0\0\0\0\1") + plain[20:]


def test_a_header_says_how_many_pixels_there_will_be() -> None:
    assert count_pixels(encode_jpeg(gradient(48, 32))) == 48 * 32
    assert count_pixels(png_header(9_000, 9_000)) == 81_000_000
    assert count_pixels(b"junk") == 0
