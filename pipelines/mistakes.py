"""The faces about which a model was most sure and wrong, drawn where their licence allows it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.predictions import Predictions
from shards.shardset import ShardSet
from shards.stream import decode_image
from shards.transforms import fit

_COUNT, _COLUMNS = 18, 6
_SIDE, _GAP, _TEXT = 112, 8, 44
_OPEN = re.compile(r"\b(CC0|CC[ -]BY|public domain|MIT|Apache)\b", re.IGNORECASE)


def may_be_shown(shards: ShardSet) -> bool:
    """Whether the licences of all of these faces, as their manifests state them, are open ones."""
    return all(_OPEN.search(manifest.licence) for manifest in shards.manifests)


def confident_mistakes(predictions: Predictions, count: int = _COUNT) -> list[int]:
    """Rows whose most probable expression is not the labelled one, the most probable first."""
    if predictions.expr_probs is None:
        return []
    sure, said = predictions.expr_probs.max(1), predictions.expr_probs.argmax(1)
    wrong = np.flatnonzero((predictions.expr >= 0) & (said != predictions.expr))
    order: list[int] = wrong[np.argsort(-sure[wrong], kind="stable")].tolist()
    return order[:count]


def mistakes_picture(
    shards: ShardSet, predictions: Predictions, samples: Sequence[int]
) -> Image.Image | None:
    """The most confident mistakes, each with what is labelled and what was said; None if there are none.

    Args:
        shards: that the predictions are of.
        predictions: row i is of sample `samples[i]`.
        samples: numbers of samples.
    """
    rows = confident_mistakes(predictions)
    if not rows or predictions.expr_probs is None:
        return None
    height, width = _SIDE + _TEXT + _GAP, _SIDE + _GAP
    columns = min(_COLUMNS, len(rows))
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(rows) // columns) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    names = predictions.expr_names
    for place, row in enumerate(rows):
        image = fit(decode_image(shards.read(samples[row])), (_SIDE, _SIDE))
        x, y = _GAP + place % columns * width, _GAP + place // columns * height
        sheet.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), (x, y))
        said = int(predictions.expr_probs[row].argmax())
        text = f"{names[said]} {predictions.expr_probs[row, said]:.2f}\nlabel: {names[predictions.expr[row]]}"
        draw.multiline_text((x, y + _SIDE + 3), text, fill="black", font=font)
    return sheet
