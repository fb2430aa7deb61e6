"""Image bytes -> uint8 tensor of the size a model takes; all randomness from the sample's key.

torchvision's JPEG decoder, and resizing on uint8 pixels; normalisation happens on the device, in the model.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from shards import keyed
from shards.align.decode import MAX_PIXELS, ImageError, load_image
from shards.config import AugmentConfig, CropConfig, JitterConfig
from shards.labels import DataError

FORMATS = ("JPEG", "PNG", "WEBP")
_JPEG = b"\xff\xd8"
_FRAME = struct.Struct(">BBHBHHB")  # 0xff, marker, length, bits, height, width, channels
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive
_TABLES = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)  # what may stand before the frame

# torchvision's JPEG decoder is measured twice as fast here as Pillow's; its successor is another package.
warnings.filterwarnings("ignore", "The image decoding and encoding capabilities of TorchVision")


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) as stored, from the header alone.

    Raises:
        DataError: not a JPEG, PNG or WebP image, an animation (its frames could be any number), or more than
            MAX_PIXELS: a few hundred bytes can claim to be 30,000².
    """
    height, width = _jpeg_size(data) or _stated_size(data, where)
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: {width}×{height} pixels, more than the {MAX_PIXELS:,} that are allowed")
    return height, width


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of an ordinary JPEG, whose tables lie one behind the other up to its frame; None of
    all else. Pillow's look at the same header costs a tenth of what it takes to decode a small picture."""
    at = 2
    while data.startswith(_JPEG) and at + _FRAME.size <= len(data):
        start, marker, length, bits, height, width, channels = _FRAME.unpack_from(data, at)
        if start == 0xFF and marker in _FRAMES:
            plain = bits == 8 and channels in (1, 3, 4) and height and width
            return (height, width) if plain else None
        if start != 0xFF or marker not in _TABLES or length < 2:
            return None
        at += 2 + length
    return None


def _stated_size(data: bytes, where: str) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                # A JPEG's further pictures (MPO: depth maps, previews) lie behind its end and are not read.
                frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1
    except UnidentifiedImageError:
        raise DataError(f"{where}: cannot read the image's header (not {', '.join(FORMATS)})") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: cannot read the image's header ({error})") from error
    if frames > 1:
        raise DataError(f"{where}: an animation of {frames} frames: only single images are read")
    return height, width


def decode(data: bytes, where: str) -> torch.Tensor:
    """Image bytes -> (3, H, W) uint8 RGB, upright, its size checked before anything is decoded.

    What is no JPEG is read as the aligner reads it: torchvision's PNG decoder (0.29) brings the process down
    at a damaged byte.

    Raises:
        DataError: see `image_size`, or the image is damaged.
    """
    image_size(data, where)
    if not data.startswith(_JPEG):
        try:
            return torch.from_numpy(load_image(data)).permute(2, 0, 1).contiguous()
        except ImageError as error:
            raise DataError(f"{where}: {error}") from error
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        image: torch.Tensor = decode_image(buffer, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise DataError(f"{where}: cannot decode the image ({str(error).splitlines()[0]})") from error
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        shape = "×".join(map(str, image.shape))
        raise DataError(f"{where}: decoded to {shape} of {image.dtype}, not to one RGB image")
    return image


def crop_box(rng: int, height: int, width: int, config: CropConfig) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: area and log-ratio uniform, ten tries, else the centre."""
    stream = keyed.mix(rng, keyed.stream_id("crop"))
    for attempt in range(10):
        share = config.scale_min + (config.scale_max - config.scale_min) * _uniform(stream, attempt)
        ratio = math.exp((2 * _uniform(stream, 10 + attempt) - 1) * math.log(config.ratio))
        w = round(math.sqrt(height * width * share * ratio))
        h = round(math.sqrt(height * width * share / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = _uniform(stream, 20) * (height - h + 1), _uniform(stream, 21) * (width - w + 1)
            return int(top), int(left), h, w
    h, w = min(height, round(width * config.ratio)), min(width, round(height * config.ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def _uniform(stream: int, number: int) -> float:
    """The `number`-th of a stream's `keyed.uniforms`, by itself: an array of few is dearer than one."""
    return (keyed.mix(stream, number) >> 11) * 2.0**-53


def _is_flipped(rng: int, config: CropConfig) -> bool:
    return _uniform(keyed.mix(rng, keyed.stream_id("flip")), 0) < config.flip


def random_crop(image: torch.Tensor, rng: int, size: tuple[int, int], config: CropConfig) -> torch.Tensor:
    """Random resized crop and flip of one image.

    Args:
        image: (3, H, W) uint8.
        rng: the sample's random key.
        size: (height, width) that comes out.
        config: ranges.

    Returns:
        (3, height, width) uint8.
    """
    if config.resize is None:
        top, left, height, width = crop_box(rng, image.shape[1], image.shape[2], config)
        image = fit(image[:, top : top + height, left : left + width], size)
    else:
        image = _resize_and_cut(image, rng, size, config.resize)
    return image.flip(2) if _is_flipped(rng, config) else image


def _resize_and_cut(image: torch.Tensor, rng: int, size: tuple[int, int], side: int) -> torch.Tensor:
    height, width = size
    top, left = _place(rng, size, side)
    return fit(image, (side, side))[:, top : top + height, left : left + width]


def _place(rng: int, size: tuple[int, int], side: int) -> tuple[int, int]:
    """(top, left) of what is cut from a square of `side` pixels."""
    height, width = size
    if side < max(size):
        raise DataError(f"crop.resize={side} is smaller than the image to cut from it, {height}×{width}")
    draws = keyed.uniforms(rng, "crop", 2)
    return int(draws[0] * (side - height + 1)), int(draws[1] * (side - width + 1))


def color_jitter(image: torch.Tensor, rng: int, config: JitterConfig) -> torch.Tensor:
    """Random changes of brightness, contrast, saturation and hue, in random order.

    Args:
        image: (3, H, W) uint8.
        rng: the sample's random key.
        config: ranges.

    Returns:
        (3, H, W) uint8.
    """
    draws = keyed.uniforms(rng, "jitter", 9)
    if draws[0] >= config.probability:
        return image
    ranges = (config.brightness, config.contrast, config.saturation)
    factors = [max(0.0, 1 + (2 * draw - 1) * reach) for draw, reach in zip(draws[1:4], ranges, strict=True)]
    changes = (
        lambda x: functional.adjust_brightness(x, factors[0]),
        lambda x: functional.adjust_contrast(x, factors[1]),
        lambda x: functional.adjust_saturation(x, factors[2]),
        lambda x: functional.adjust_hue(x, (2 * float(draws[4]) - 1) * config.hue),
    )
    for number in np.argsort(draws[5:9]):
        image = changes[number](image)
    return image


def augment(image: torch.Tensor, rng: int, size: tuple[int, int], config: AugmentConfig) -> torch.Tensor:
    """Crop, flip and colours of one training image: (3, H, W) uint8 -> (3, height, width) uint8."""
    image = random_crop(image, rng, size, config.crop)
    return color_jitter(image, rng, config.jitter) if config.jitter.probability > 0 else image


def fit(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The whole image, nothing random: (3, H, W) uint8 -> (3, height, width) uint8."""
    if tuple(image.shape[1:]) == size:
        return image
    # A pixel's colours side by side, as decoders leave them, and a stride of the whole image for the batch of
    # one: of anything else torch makes planes and back, which takes longer than to resize.
    pixels = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    return interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)[0]


class Cut(NamedTuple):
    """What is taken of all pictures of a window, whatever their sizes: a box in shares of a picture's sides,
    and whether it is mirrored."""

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    flip: bool = False


def draw_cut(rng: int, height: int, width: int, size: tuple[int, int], config: CropConfig) -> Cut:
    """The crop and flip that `random_crop` makes of a picture, as a cut for pictures of any size.

    Args:
        rng: the sample's random key.
        height, width: of the picture that decides, pixels.
        size: (height, width) that will come out.
        config: ranges.

    Raises:
        DataError: `config.resize` is smaller than `size`.
    """
    flip = _is_flipped(rng, config)
    if config.resize is None:
        top, left, box_height, box_width = crop_box(rng, height, width, config)
        return Cut(top / height, left / width, box_height / height, box_width / width, flip)
    side = config.resize
    top, left = _place(rng, size, side)
    return Cut(top / side, left / side, size[0] / side, size[1] / side, flip)


def cut_image(image: torch.Tensor, cut: Cut, size: tuple[int, int]) -> torch.Tensor:
    """The cut of one colour picture, to the nearest pixel, resized smoothly.

    Args:
        image: (3, H, W) uint8.
        cut: what to take.
        size: (height, width) that comes out.

    Returns:
        (3, height, width) uint8.
    """
    height, width = image.shape[1:]
    box_height, box_width = max(1, round(cut.height * height)), max(1, round(cut.width * width))
    top = min(round(cut.top * height), height - box_height)
    left = min(round(cut.left * width), width - box_width)
    image = fit(image[:, top : top + box_height, left : left + box_width], size)
    return image.flip(2) if cut.flip else image


def cut_plane(plane: NDArray[np.float32], cut: Cut, size: tuple[int, int]) -> NDArray[np.float32]:
    """The cut of one depth or thermal plane: each pixel is the nearest stored one, none is mixed of several.

    Args:
        plane: (H, W) float32.
        cut: what to take.
        size: (height, width) that comes out.

    Returns:
        (height, width) float32.
    """
    rows = _nearest(cut.top, cut.height, plane.shape[0], size[0])
    columns = _nearest(cut.left, cut.width, plane.shape[1], size[1])
    return plane[rows[:, None], columns[::-1] if cut.flip else columns]


def _nearest(start: float, share: float, side: int, count: int) -> NDArray[np.int64]:
    """Which stored pixels lie under the centres of `count` new ones."""
    centres = (start + share * (np.arange(count) + 0.5) / count) * side
    return np.clip(np.floor(centres + 1e-9), 0, side - 1).astype(np.int64)
