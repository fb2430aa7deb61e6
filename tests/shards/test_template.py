"""The template: points and face of an aligned picture."""

from __future__ import annotations

import numpy as np
import pytest

from shards.template import face_oval, relative_geometry, template_geometry, template_points


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_the_face_is_an_ellipse_about_the_middle_of_eyes_and_mouth(margin: float) -> None:
    geometry = relative_geometry({"geometry": template_geometry(112, margin)})
    assert geometry is not None
    fine = face_oval(geometry, 448, 448)
    right, left, nose, *corners = template_points(448, margin) + 0.5
    eyes, mouth = (right + left) / 2, sum(corners) / 2
    half = np.linalg.norm(left - right), np.linalg.norm(mouth - eyes)
    assert fine.sum() == pytest.approx(np.pi * half[0] * half[1], rel=5e-3)
    for x, y in (right, left, nose, *corners):
        assert fine[int(y), int(x)] == 1
    rows, columns = np.nonzero(fine > 0.5)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(tuple((eyes + mouth) / 2), abs=0.5)
    coarse = face_oval(geometry, 14, 7)
    assert coarse.shape == (14, 7) and coarse.mean() == pytest.approx(fine.mean(), abs=0.01)
