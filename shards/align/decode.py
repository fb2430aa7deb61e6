"""Bytes of a picture from anywhere -> RGB pixels, and back to JPEG. Headers are read before any decoding."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Picture = NDArray[np.uint8]

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_BACKGROUND = (128, 128, 128)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ORIENTATION = 0x0112

_APP0, _COMMENT, _SCAN, _END = 0xE0, 0xFE, 0xDA, 0xD9
_STANDALONE = (0x00, 0x01, *range(0xD0, 0xDA))  # markers without a length
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


class ImageError(Exception):
    """These bytes are not a picture that can be used; the message is short and the same each time."""


def load_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decodes one picture (of an animation: the first), upright.

    Grey, palette and CMYK become RGB; transparent pixels are laid on mid grey; 16-bit grey is scaled by 1/257
    (not clipped); the EXIF orientation is applied. Colour profiles are ignored.

    Args:
        data: JPEG, PNG, WebP, BMP, TIFF or GIF.
        max_pixels: pictures whose header announces more are refused before decoding.

    Returns:
        (H, W, 3) uint8, its own memory.

    Raises:
        ImageError: empty, no picture, too large, cut short, damaged, or of a kind that has no plain RGB.
    """
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of sizes that are refused below.
        warnings.simplefilter("ignore")
        return np.array(_to_rgb(_decode(data, max_pixels)), np.uint8)


def count_pixels(data: bytes) -> int:
    """Width × height that a picture's header announces; 0 where there is none to read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            return image.width * image.height
        except Exception:  # whatever Pillow raises: `load_image` says what is wrong
            return 0


def finished_jpeg(data: bytes, size: int) -> bytes | None:
    """A whole baseline RGB JPEG of size×size without rotation, as it is to be stored; None for all else.

    Its pixels stay as they are, to the bit. What a camera or editor wrote beside them does not: EXIF (which
    may say where a person was), XMP, previews of what was cut away, comments, whatever follows the picture.

    Args:
        data: any bytes.
        size: wanted side, pixels; 0 for any.
    """
    return without_metadata(data) if _is_finished(data, size) else None


def _is_finished(data: bytes, size: int) -> bool:
    if not data.startswith(b"\xff\xd8"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
            return (
                image.format == "JPEG"
                and image.mode == "RGB"
                and size in (0, image.width)
                and size in (0, image.height)
                and not image.info.get("progressive")
                and image.getexif().get(_ORIENTATION, 1) == 1
            )
        except Exception:  # whatever Pillow raises: the picture is decoded with every check instead
            return False


def without_metadata(data: bytes) -> bytes | None:
    """A JPEG with nothing but what its pixels need (ITU-T T.81, annex B); None if it cannot be followed.

    Of the application segments stay JFIF (APP0, without its thumbnail) and Adobe (APP14), which say how
    colours are stored.
    """
    out = [data[:2]]
    at = 2
    while at + 2 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _END:
            return b"".join([*out, data[at : at + 2]])
        if marker == 0xFF:  # fill
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _STANDALONE or end > len(data):
            return None
        body = data[at + 4 : end]
        if marker == _APP0 and body.startswith(b"JFIF\0"):
            body = body[:12].ljust(12, b"\0") + b"\0\0"
        elif marker == _APP0 + 14 and body.startswith(b"Adobe"):
            body = body[:12]
        elif _APP0 <= marker < _APP0 + 16 or marker == _COMMENT:
            body = b""
        if body:
            out.append(data[at : at + 2] + (len(body) + 2).to_bytes(2, "big") + body)
        at = end
        if marker == _SCAN:
            found = _AFTER_SCAN.search(data, at)
            if found is None:
                return None
            out.append(data[at : found.start()])
            at = found.start()
    return None


def encode_jpeg(picture: Picture, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 -> baseline JPEG without metadata, quality in 1..100."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("cannot decode: empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise ImageError(
                f"too many pixels: {image.width}x{image.height}, at most {max_pixels / 1e6:g} million"
            )
        image.load()
        return image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("cannot decode: not a JPEG, PNG, WebP, BMP, TIFF or GIF picture") from None
    except Image.DecompressionBombError:
        raise ImageError(f"too many pixels: at most {max_pixels / 1e6:g} million") from None
    except MemoryError:
        raise ImageError("cannot decode: out of memory") from None
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        raise ImageError(f"cannot decode: {_short(error)}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    # Metadata that cannot be read says nothing of the orientation.
    with contextlib.suppress(
        ValueError, TypeError, KeyError, OSError, SyntaxError, EOFError, struct.error, zlib.error
    ):
        image = ImageOps.exif_transpose(image)
    try:
        if image.mode in _SIXTEEN_BIT:
            return _from_sixteen_bit(image)
        if image.mode == "F":
            raise ImageError("cannot decode: floating-point pixels have no known range")
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
            ground.alpha_composite(image)
            return ground.convert("RGB")
        return image.convert("RGB")
    except (ValueError, OSError, MemoryError) as error:
        raise ImageError(f"cannot decode: {_short(error)}") from None


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"cannot decode: grey values {values.min()}..{values.max()} are not 16-bit")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _short(error: Exception) -> str:
    """An error as a short stable text: no addresses, no counts of bytes."""
    text = str(error).lower()
    if "truncated" in text or "not enough" in text or isinstance(error, EOFError):
        return "cut short"
    text = re.sub(r"<[^>]*>|0x[0-9a-f]+", "…", str(error))
    return f"damaged ({type(error).__name__}: {text:.80})" if text else f"damaged ({type(error).__name__})"
