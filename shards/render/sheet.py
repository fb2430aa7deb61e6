"""Pictures for people: expressions, identities, action units, depth and heat on one sheet; clips on one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shards.frames import ZERO_CELSIUS_CK
from shards.keyed import generator, sample_key
from shards.labels import AU12, EXPR8
from shards.render.actions import prototype, unit_vector
from shards.render.camera import CLEAN, UInt8, UInt16, draw_camera
from shards.render.clips import RenderedClips
from shards.render.head import build_head
from shards.render.picture import View, render
from shards.render.scene import Frame, Scene, draw_frame, draw_scene

_CAPTION = 14
_CURVES = 72
_CURVE_COLOURS = {"valence": (20, 90, 200), "arousal": (205, 60, 30), "autonomic": (150, 150, 150)}
_SHEET_EPOCH = 2**21
"""Keeps the sheet's people and scenes apart from the data set's."""


def depth_colours(depth: UInt16) -> UInt8:
    """(H, W, 3): near is bright, holes are dark blue; the range is that of the face in the middle."""
    height, width = depth.shape
    middle = depth[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    nearest = float(middle[middle > 0].min())
    level = np.clip(1 - (depth.astype(np.float32) - nearest) / 180, 0, 1)
    shade = (40 + 215 * level) * (level > 0)
    image = np.stack([shade, shade, np.where(level > 0, shade, 40)], axis=-1)
    image[depth == 0] = (20, 20, 110)
    return image.astype(np.uint8)


def thermal_colours(thermal: UInt16) -> UInt8:
    """(H, W, 3): 22 degrees Celsius black, through purple and orange, to 37 yellow-white."""
    celsius = (thermal.astype(np.float32) - ZERO_CELSIUS_CK) / 100
    stops = np.linspace(22, 37, 6)
    red, green, blue = np.array(
        [(0, 0, 8), (60, 10, 90), (150, 30, 100), (225, 80, 50), (252, 170, 40), (255, 250, 190)], np.float64
    ).T
    planes = [np.interp(celsius, stops, plane) for plane in (red, green, blue)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def _caption(sheet: Image.Image, names: tuple[str, ...], top: int, step: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((column * step + step / 2, top + _CAPTION / 2), name, fill=(30, 30, 30), anchor="mm")


def contact_sheet(
    seed: int = 0, num_identities: int = 5, size: int = 112, effects: bool = True
) -> Image.Image:
    """Everything on one page.

    Rows, from the top: a caption; `num_identities` rows of the 8 prototypes at full intensity, with pose,
    light and surroundings of their own; one row each of depth and thermal for the last of them; a caption;
    two clean rows (two people) of a neutral face and the first 7 units; a caption; two of the other 5 units.

    Args:
        effects: with the camera's faults, as in the data set.

    Returns:
        RGB, 8 * size wide.
    """
    rows = num_identities + 2 + 4
    sheet = Image.new("RGB", (8 * size, rows * size + 3 * _CAPTION), (245, 245, 245))
    heads = [build_head(generator(sample_key(seed, _SHEET_EPOCH, n), "head")) for n in range(num_identities)]
    _caption(sheet, EXPR8, 0, size)
    for row, head in enumerate(heads):
        for column, name in enumerate(EXPR8):
            rng = generator(sample_key(seed, _SHEET_EPOCH, 8 * row + column), "sheet")
            frame = draw_frame(rng, prototype(name).units)
            scene = draw_scene(rng, head.traits.wears_glasses, head.skin)
            camera = draw_camera(rng) if effects else CLEAN
            picture = render(head, frame, scene, View(size), camera, rng)
            place = (column * size, _CAPTION + row * size)
            sheet.paste(Image.fromarray(picture.color), place)
            if row == num_identities - 1 and picture.depth is not None and picture.thermal is not None:
                sheet.paste(Image.fromarray(depth_colours(picture.depth)), (place[0], place[1] + size))
                sheet.paste(
                    Image.fromarray(thermal_colours(picture.thermal)), (place[0], place[1] + 2 * size)
                )
    top = _CAPTION + (num_identities + 2) * size
    for names in (("rest", *AU12[:7]), AU12[7:]):
        _caption(sheet, names, top, size)
        for row, head in enumerate(heads[:2]):
            rest = render(head, Frame(), Scene(), View(size), color_only=True)
            view = View(size, fixed=rest.transform)
            for column, name in enumerate(names):
                units = unit_vector() if name == "rest" else unit_vector(**{name: 1.0})
                picture = render(head, Frame(units=units), Scene(), view, color_only=True)
                sheet.paste(Image.fromarray(picture.color), (column * size, top + _CAPTION + row * size))
        top += _CAPTION + 2 * size
    return sheet


def clip_sheet(
    clips: RenderedClips, split: str = "train", first: int = 0, num_clips: int = 4, num_times: int = 8
) -> Image.Image:
    """Clips of the data set, one below the other.

    Of each: a caption, then rows of colour, depth and thermal at evenly spread times, then its valence,
    arousal and autonomic state from -1 (bottom) to 1 over all its frames.

    Returns:
        RGB, `num_times` * (size of the clips) wide.
    """
    size, width = clips.size, num_times * clips.size
    height = _CAPTION + 3 * size + _CURVES
    sheet = Image.new("RGB", (width, num_clips * height), (245, 245, 245))
    for row, item in enumerate(clips.items(split)[first : first + num_clips]):
        head, motion, top = clips.head(item.ref), clips.motion(item.ref), row * height
        setting = clips.setting(item.ref, head)
        _caption(sheet, (item.key + (", dark" if setting.dark else ""),), top, 2 * size)
        shots = list(clips.shots(item.ref, head, motion, setting))
        for column, number in enumerate(np.linspace(0, len(shots) - 1, num_times).round().astype(int)):
            shot = shots[number]
            for line, picture in enumerate(
                (shot.color, depth_colours(shot.depth), thermal_colours(shot.thermal))
            ):
                tile = Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST)
                sheet.paste(tile, (column * size, top + _CAPTION + line * size))
        valence, arousal = motion.affect()
        curves = {"valence": valence, "arousal": arousal, "autonomic": 2 * motion.autonomic - 1}
        sheet.paste(_curves(curves, width), (0, top + _CAPTION + 3 * size))
    return sheet


def _curves(values: dict[str, NDArray[np.float64]], width: int) -> Image.Image:
    """Curves in [-1, 1] over the width, each with its name in its colour."""
    image = Image.new("RGB", (width, _CURVES), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.line((0, _CURVES / 2, width, _CURVES / 2), fill=(225, 225, 225))
    for place, (name, curve) in enumerate(values.items()):
        x = (np.arange(len(curve)) + 0.5) * width / len(curve)
        y = (1 - curve) / 2 * (_CURVES - 1)
        draw.line(np.stack([x, y], axis=1).ravel().tolist(), fill=_CURVE_COLOURS[name], width=2)
        draw.text((4 + 70 * place, 2), name, fill=_CURVE_COLOURS[name])
    return image
