"""Where the five landmarks of an aligned face lie: one home for the aligner and the renderer.

Coordinates are (x, y) in pixels with the centre of the first pixel at (0, 0), as in landmark files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TEMPLATE_NAME = "arcface-112"
TEMPLATE_SIDE = 112
# Left eye, right eye (as seen), nose, left and right corner of the mouth, in a 112×112 image.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)


def template_points(size: int = TEMPLATE_SIDE, margin: float = 0.0) -> NDArray[np.float64]:
    """Where the five landmarks of an aligned face lie.

    Args:
        size: side of the image, pixels.
        margin: room added on each side, as a fraction of the template's side.

    Returns:
        (5, 2) float64.
    """
    return np.asarray(((TEMPLATE + 0.5) / TEMPLATE_SIDE + margin) / (1 + 2 * margin) * size - 0.5)
