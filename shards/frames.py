"""The frames of a clip as members of its sample: how they are named, and 16-bit pictures to and from bytes.

`KEY.color.0000.jpg` is a picture, `KEY.depth.0000.png` millimetres (0 = hole), `KEY.thermal.0000.png`
centi-kelvin (0 = missing): each frame's side by side, in the order of `MODALITIES`, so that a window of
frames is one stretch of the tar. A frame may lack any of them.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.align.decode import MAX_PIXELS
from shards.config import MODALITIES
from shards.labels import DataError

UInt16 = NDArray[np.uint16]

ZERO_CELSIUS_CK = 27315
"""0 degrees Celsius in centi-kelvin."""

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_PLANE_FORMATS = ("png",)
_NAME = re.compile(rf"({'|'.join(MODALITIES)})\.(\d{{4,}})\.(\w+)")


class FrameName(NamedTuple):
    """One picture of one frame: of which modality, and the frame's number in its clip."""

    modality: str
    frame: int


def frame_extension(modality: str, frame: int, form: str = "") -> str:
    """The extension of a frame's member: ("depth", 7) -> "depth.0007.png".

    Args:
        form: the file's format; by default jpg for colour and png for the others.
    """
    return f"{modality}.{frame:04d}.{form or ('jpg' if modality == 'color' else 'png')}"


def frame_extensions(modality: str, frame: int) -> tuple[str, ...]:
    """All extensions under which a frame's picture may be stored, the first that there is to be taken."""
    forms = IMAGE_EXTENSIONS if modality == "color" else _PLANE_FORMATS
    return tuple(frame_extension(modality, frame, form) for form in forms)


def parse_frame(extension: str) -> FrameName | None:
    """What a member's extension says: "depth.0007.png" -> ("depth", 7); None if it names no frame."""
    found = _NAME.fullmatch(extension)
    if found is None:
        return None
    name = FrameName(found[1], int(found[2]))
    return name if extension in frame_extensions(*name) else None


def encode_plane(plane: UInt16) -> bytes:
    """(H, W) uint16 as the bytes of a 16-bit grey PNG: a pure function of the values."""
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plane, np.uint16)).save(data, "PNG", compress_level=4)
    return data.getvalue()


def decode_plane(data: bytes, where: str, formats: tuple[str, ...] = ("PNG",)) -> UInt16:
    """Bytes of a 16-bit grey PNG -> (H, W) uint16, the very values that were stored.

    Args:
        data: of the file.
        where: for messages.
        formats: that are taken; "TIFF" is another that may hold 16-bit grey.

    Raises:
        DataError: another format, not of 16 bits, too large, or damaged.
    """
    kind = " or ".join(formats)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=formats) as image:
                if not image.mode.startswith("I;16"):
                    raise DataError(
                        f"{where}: mode {image.mode}, not a 16-bit grey {kind} of millimetres or centi-kelvin"
                    )
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{where}: {image.width}×{image.height} pixels, more than the {MAX_PIXELS:,} allowed"
                    )
                return np.array(image, np.uint16)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: cannot decode the 16-bit {kind} ({error})") from error
