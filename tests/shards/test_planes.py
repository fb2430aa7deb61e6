"""Depth and thermal planes in units that do not depend on what else is in the picture."""

from __future__ import annotations

import numpy as np

from shards.planes import depth_units, face_depth, thermal_units


def test_depth_is_relative_to_the_face_and_holes_are_zero() -> None:
    plane = np.array([[700, 750, 0], [600, 5000, 100]], np.uint16)
    np.testing.assert_allclose(depth_units(plane, 700.0), [[0, 0.5, 0], [-1, 3, -3]], atol=1e-6)


def test_the_face_is_what_lies_in_the_middle_of_all_frames() -> None:
    near, far = np.full((8, 8), 2000, np.uint16), np.full((8, 8), 2000, np.uint16)
    near[2:6, 2:6], far[2:6, 2:6] = 700, 704
    near[3, 3] = 0
    assert face_depth([near, near, far]) == 700
    assert face_depth([near, far, far]) == 704
    hole = np.zeros((8, 8), np.uint16)
    assert face_depth([hole]) == face_depth([]) == 0
    hole[0, 0] = 900
    assert face_depth([hole]) == 900


def test_heat_has_one_window_for_all() -> None:
    celsius = np.array([[20, 30, 34, 36, 45, 10]])
    plane = (100 * celsius + 27315).astype(np.uint16)
    np.testing.assert_allclose(thermal_units(plane), [[-2.5, -2, 0, 1, 2.5, -2.5]], atol=1e-5)
    assert thermal_units(np.zeros((2, 2), np.uint16)).tolist() == [[0, 0], [0, 0]]
    warmer = np.append(plane, [[31500]], axis=1).astype(np.uint16)
    np.testing.assert_array_equal(thermal_units(warmer)[:, :6], thermal_units(plane))
