"""Pictures that a run makes of its own work."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.files import write_atomic

_GAP = 4
_HEADER = 18


def to_pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """(B, 3, H, W) floats in [0, 1] -> (B, H, W, 3) uint8."""
    pixels: NDArray[np.uint8] = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def grid_picture(columns: Sequence[tuple[str, torch.Tensor]], per_row: int = 1) -> Image.Image:
    """Named columns of images side by side, one sample a row, `per_row` samples beside each other.

    Args:
        columns: (title, (B, 3, H, W) floats in [0, 1]).
        per_row: samples in a row of the picture.
    """
    pixels = [to_pixels(images) for _, images in columns]
    count, height, width = pixels[0].shape[:3]
    rows = -(-count // per_row)
    cell_w, cell_h = width + _GAP, height + _GAP
    block_w = cell_w * len(columns) + _GAP * 2
    sheet = Image.new("RGB", (block_w * per_row, _HEADER + cell_h * rows), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for sample in range(count):
        row, block = divmod(sample, per_row)
        for column, (title, _) in enumerate(columns):
            x = block * block_w + column * cell_w + _GAP
            if row == 0:
                draw.text((x, 2), title, fill="black", font=font)
            sheet.paste(Image.fromarray(pixels[column][sample]), (x, _HEADER + row * cell_h))
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    write_atomic(path, data.getvalue())
