"""Pictures with what a model says of the faces in them: numbered boxes, and a card for each face.

Cards stand outside the picture, so that they hide no face and are as readable for small faces as for big.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipelines.facetable import FacePrediction
from pipelines.thresholds import DEFAULT as AU_THRESHOLD

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

_SHORTEST, _LONGEST = 640, 1280  # longer side of the picture: it is enlarged or shrunk to lie between
_CROWD = 10  # faces, from which on pictures are as large as that allows
_GAP = 12
_CARD = (396, 148)
_THUMB = 124
_PLOT = 84
_COLUMNS = 2  # of cards beside the picture; more than fit there go below it
_PAGE, _PAPER, _INK, _PALE = (236, 237, 240), (255, 255, 255), (28, 30, 36), (112, 117, 128)
# Told apart on skin and walls, by people who confuse red and green too (after Okabe and Ito).
_COLORS: tuple[Color, ...] = (
    (0, 158, 115),
    (230, 120, 0),
    (0, 114, 178),
    (204, 80, 150),
    (86, 160, 220),
    (190, 60, 40),
    (130, 90, 190),
    (150, 130, 0),
)


def annotated(picture: Picture, rows: Sequence[FacePrediction], faces: Sequence[Picture]) -> Image.Image:
    """Draws what was found in one picture.

    Args:
        picture: (H, W, 3) uint8.
        rows: what was said of it; a row without a face gives a line with its status.
        faces: the aligned face of each row that has one, (S, S, 3) uint8.

    Returns:
        RGB; the picture, its cards beside or, where they are many, below it.
    """
    shown = [row for row in rows if row.is_face]
    image, scale = _fitted(picture, _LONGEST if len(shown) >= _CROWD else _SHORTEST)
    numbered = len(shown) > 1
    for row in shown:
        _draw_box(image, row, scale)
    for row in shown:
        _draw_label(image, row, scale, numbered)
    cards = [_card(row, face, numbered) for row, face in zip(shown, faces, strict=True)]
    if not cards:
        cards = [_notice(rows[0].status if rows else "no face")]
    return _page(image, cards)


def _fitted(picture: Picture, shortest: int) -> tuple[Image.Image, float]:
    """The picture at a size to look at, and its pixels per pixel."""
    image = Image.fromarray(picture)
    longer = max(image.size)
    scale = min(max(longer, shortest), _LONGEST) / longer
    if scale == 1:
        return image, 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0), scale


def _page(image: Image.Image, cards: Sequence[Image.Image]) -> Image.Image:
    width, height = (side + _GAP for side in _CARD)
    fitting = max(1, (image.height + _GAP) // height)
    beside = len(cards) <= fitting * _COLUMNS
    if beside:
        columns = -(-len(cards) // fitting)
        left, top = image.width + 2 * _GAP, _GAP
        size = (left + columns * width, max(image.height, -(-len(cards) // columns) * height - _GAP))
    else:
        columns = max(_COLUMNS, (image.width + _GAP) // width, math.ceil(math.sqrt(len(cards) / 2.5)))
        left, top = _GAP, image.height + 2 * _GAP
        size = (_GAP + max(image.width + _GAP, columns * width), top + -(-len(cards) // columns) * height)
    page = Image.new("RGB", (size[0], size[1] + (2 * _GAP if beside else 0)), _PAGE)
    page.paste(image, (_GAP, _GAP))
    rows = -(-len(cards) // columns)
    for number, card in enumerate(cards):
        column, row = divmod(number, rows)
        page.paste(card, (left + column * width, top + row * height))
    return page


def _draw_box(image: Image.Image, row: FacePrediction, scale: float) -> None:
    """The box and the landmarks."""
    if row.box is None:
        return
    color, draw = _color(row), ImageDraw.Draw(image)
    left, top, right, bottom = (side * scale for side in row.box)
    line = _line(row.box, scale)
    draw.rectangle((left - line - 1, top - line - 1, right + line + 1, bottom + line + 1), None, _PAPER, 1)
    draw.rectangle((left - line, top - line, right + line, bottom + line), outline=color, width=line)
    r = min(max(1.5, (bottom - top) / 90), 4)
    for x, y in row.landmarks or ():
        spot = (x * scale - r, y * scale - r, x * scale + r, y * scale + r)
        draw.ellipse(spot, fill=color, outline=_PAPER if r > 2 else None)


def _draw_label(image: Image.Image, row: FacePrediction, scale: float, numbered: bool) -> None:
    """The face's number on its box; and the class, where it is no wider than the box."""
    if row.box is None:
        return
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = (side * scale for side in row.box)
    line = _line(row.box, scale)
    font = _font(round(min(max((bottom - top) / 9, 15), 30)))
    number = _number(row) if numbered else ""
    label = f"{number} {row.expression or ''}".strip()
    if draw.textlength(label, font) > right - left + 2 * line:
        label = number
    if not label:
        return
    ascent, descent = font.getmetrics()
    pad = line + 2
    width, height = draw.textlength(label, font) + 2 * pad, ascent + descent + 2
    x = min(max(left - line, 0), image.width - width)
    y = top - line - height if top - line - height >= 0 else max(top - line, 0)  # inside, without room above
    draw.rectangle((x, y, x + width, y + height), fill=_color(row))
    draw.text((x + pad, y + 1), label, fill=_PAPER, font=font)


def _line(box: tuple[float, float, float, float], scale: float) -> int:
    """Width of a box's line, pixels."""
    return min(max(2, round((box[3] - box[1]) * scale / 70)), 5)


def _card(row: FacePrediction, face: Picture, numbered: bool) -> Image.Image:
    """What is said of one face: the face as the model saw it, expression, valence and arousal, units."""
    color = _color(row)
    card = Image.new("RGB", _CARD, _PAPER)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, 5, _CARD[1]), fill=color)
    thumb = Image.fromarray(face).resize((_THUMB, _THUMB), Image.Resampling.BICUBIC, reducing_gap=2.0)
    x, y = 6 + 6, (_CARD[1] - _THUMB) // 2
    card.paste(thumb, (x, y))
    if numbered:
        font = _font(15)
        draw.rectangle((x, y, x + 10 + draw.textlength(_number(row), font), y + 20), fill=color)
        draw.text((x + 5, y + 1), _number(row), fill=_PAPER, font=font)
    x += _THUMB + 10
    if row.expression is not None:
        share = f"{row.expr_probs[row.expression]:.0%}"
        room = _CARD[0] - x - 10 - draw.textlength(share, _font(18)) - 8
        draw.text((x, 8), _shortened(draw, row.expression, _font(18), room), fill=_INK, font=_font(18))
        draw.text((_CARD[0] - 10, 8), share, fill=color, font=_font(18), anchor="ra")
        full = _CARD[0] - 10 - x
        draw.rectangle((x, 33, x + full, 37), fill=_PAGE)
        draw.rectangle((x, 33, x + full * row.expr_probs[row.expression], 37), fill=color)
    y = 48
    right = x
    if row.valence is not None and row.arousal is not None:
        card.paste(_plot(row.valence, row.arousal, color), (x, y))
        right = x + _PLOT + 10
        draw.text((right, y - 1), f"valence {row.valence:+.2f}", fill=_INK, font=_font(13))
        draw.text((right, y + 15), f"arousal {row.arousal:+.2f}", fill=_INK, font=_font(13))
        y += 36
    if row.au_probs:
        _draw_units(draw, row, (right, y))
    return card


def _draw_units(draw: ImageDraw.ImageDraw, row: FacePrediction, start: tuple[float, float]) -> None:
    """Active action units, the surest first, as far as there is room."""
    active = sorted(
        (name for name, probability in row.au_probs.items() if probability > AU_THRESHOLD),
        key=lambda name: -row.au_probs[name],
    )
    font = _font(12)
    x, y = start
    if not active:
        draw.text((x, y), "no active unit", fill=_PALE, font=font)
    for number, name in enumerate(active):
        width = draw.textlength(name, font) + 8
        if x + width > _CARD[0] - 6:
            x, y = start[0], y + 19
        if y + 17 + 19 > _CARD[1] and number < len(active) - 1 and x + 2 * width + 4 > _CARD[0] - 6:
            draw.text((x, y + 1), f"+{len(active) - number}", fill=_PALE, font=font)
            return
        draw.rounded_rectangle((x, y, x + width, y + 16), 4, fill=_PAGE)
        draw.text((x + 4, y + 1), name, fill=_INK, font=font)
        x += width + 4


def _plot(valence: float, arousal: float, color: Color) -> Image.Image:
    """Valence to the right, arousal upwards, both from −1 to 1; drawn large and shrunk, for smooth edges."""
    times = 4
    side = _PLOT * times
    plot = Image.new("RGB", (side, side), _PAPER)
    draw = ImageDraw.Draw(plot)
    half, room = side / 2, side / 2 - 7 * times
    low, high = half - room, half + room
    draw.rectangle((low, low, high, high), fill=_PAGE)
    draw.line((low, half, high, half), fill=_PALE, width=times)
    draw.line((half, low, half, high), fill=_PALE, width=times)
    x, y, r = half + room * valence, half - room * arousal, 5.5 * times
    draw.line((half, half, x, y), fill=color, width=2 * times)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=color, outline=_PAPER, width=times)
    return plot.resize((_PLOT, _PLOT), Image.Resampling.LANCZOS)


def _notice(text: str) -> Image.Image:
    card = Image.new("RGB", (_CARD[0], 48), _PAPER)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, 5, 48), fill=_PALE)
    draw.text((18, 14), _shortened(draw, text, _font(16), _CARD[0] - 28), fill=_INK, font=_font(16))
    return card


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "...", font) > room:
        text = text[:-1]
    return text + "..."


def _number(row: FacePrediction) -> str:
    """What a face is called in its pictures: its track in a video, so that it keeps the number."""
    return str(row.face if row.track is None else row.track)


def _color(row: FacePrediction) -> Color:
    """Of its expression, the same in all pictures of a model."""
    classes = list(row.expr_probs)
    return _COLORS[classes.index(row.expression) % len(_COLORS) if row.expression in classes else 2]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's own, built with FreeType in all its wheels
    return font
