"""Similarity, template and warp against explicit references."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.align import similarity_from_points, template_points, warp
from shards.align.geometry import TEMPLATE, apply_affine, relative_residual, scale_of

Floats = NDArray[np.float64]


def umeyama(source: Floats, target: Floats) -> Floats:
    """Umeyama (1991), equations 34-43, by singular value decomposition, without reflection."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, d, vt = np.linalg.svd(covariance)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / ((source - source_mean) ** 2).sum(1).mean()
    return np.hstack([scale * rotation, (target_mean - scale * rotation @ source_mean)[:, None]])


def similarity(scale: float, degrees: float, shift: tuple[float, float]) -> Floats:
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.hstack([turn, np.array(shift)[:, None]])


def dots(points: Floats, width: int, height: int, radius: float) -> NDArray[np.uint8]:
    """Bright Gaussian dots on dark ground."""
    y, x = np.mgrid[:height, :width]
    field = np.zeros((height, width))
    for px, py in points:
        field += np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2))
    return np.repeat((20 + 220 * field.clip(0, 1)).astype(np.uint8)[..., None], 3, 2)


def centres(image: NDArray[np.uint8], near: Floats, reach: int = 6) -> Floats:
    """Centre of mass of the dot near each point."""
    out = []
    for px, py in near:
        left, top = round(px) - reach, round(py) - reach
        part = image[top : top + 2 * reach + 1, left : left + 2 * reach + 1, 0].astype(float) - 20
        y, x = np.mgrid[: part.shape[0], : part.shape[1]]
        out.append(((part * x).sum() / part.sum() + left, (part * y).sum() / part.sum() + top))
    return np.array(out)


@pytest.mark.parametrize("seed", range(20))
def test_similarity_equals_umeyama(seed: int) -> None:
    generator = np.random.default_rng(seed)
    source = generator.normal(size=(5, 2)) * 50 + 100
    target = generator.normal(size=(5, 2)) * 20
    assert np.allclose(similarity_from_points(source, target), umeyama(source, target), atol=1e-9)


def test_mirrored_points_are_not_mirrored_back() -> None:
    mirrored = TEMPLATE * (-1, 1)
    matrix = similarity_from_points(mirrored, TEMPLATE)
    assert np.allclose(matrix, umeyama(mirrored, TEMPLATE), atol=1e-9)
    assert relative_residual(matrix, mirrored, TEMPLATE) > 0.9


def test_a_known_similarity_is_recovered() -> None:
    matrix = similarity(1.7, 33, (12, -5))
    recovered = similarity_from_points(TEMPLATE, apply_affine(matrix, TEMPLATE))
    assert np.allclose(recovered, matrix)
    assert scale_of(recovered) == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.ones((5, 2)), "coincide"),
        (np.full((5, 2), np.nan), "finite"),
        (np.ones((5, 3)), "need two arrays"),
        (np.ones((1, 2)), "need two arrays"),
    ],
)
def test_unusable_points_are_refused(points: Floats, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similarity_from_points(points, TEMPLATE[: len(points), : points.shape[1]])


def test_template_is_arcface_and_scales_about_the_pixel_corner() -> None:
    assert np.allclose(template_points(), TEMPLATE)
    double = template_points(224)
    assert np.allclose((double + 0.5) / 2 - 0.5, TEMPLATE)
    roomy = template_points(112, 0.5)
    assert np.allclose((roomy + 0.5) * 2 - 56 - 0.5, TEMPLATE)


@pytest.mark.parametrize("degrees", [0.0, 25.0, -80.0, 180.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.3, 2.6, 5.0])
def test_landmarks_land_on_the_template(scale: float, degrees: float) -> None:
    """A picture drawn under a known similarity: its landmarks come out within half a pixel, at any scale."""
    side = int(240 * max(scale, 1))
    placed = apply_affine(similarity(scale, degrees, (0, 0)), TEMPLATE)
    placed += side / 2 - placed.mean(0)
    picture = dots(placed, side, side, radius=2.2 * scale)
    target = template_points()
    out = warp(picture, similarity_from_points(placed, target), 112)
    assert out.shape == (112, 112, 3) and out.dtype == np.uint8
    assert np.abs(centres(out, target) - target).max() < 0.25


def test_identity_warp_returns_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    out = warp(picture, similarity(1, 0, (0, 0)), 64)
    assert np.abs(out.astype(int) - picture).max() <= 1


def test_shrinking_does_not_alias() -> None:
    checks = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    picture = np.repeat(checks[..., None], 3, 2)
    out = warp(picture, similarity(0.23, 17, (40, 0)), 64)
    inner = out[20:44, 30:50].astype(int)
    assert np.abs(inner - 127).max() < 10


def test_the_border_is_continued_outwards() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, :20] = (200, 10, 10)
    picture[:, 20:] = (10, 10, 200)
    out = warp(picture, similarity(1, 0, (30, 30)), 100)
    assert (np.abs(out[:, :45].astype(int) - (200, 10, 10)) <= 1).all()
    assert (np.abs(out[:, 55:].astype(int) - (10, 10, 200)) <= 1).all()


def test_a_square_wholly_outside_is_filled() -> None:
    picture = np.full((30, 30, 3), 90, np.uint8)
    assert (warp(picture, similarity(1, 0, (500, 500)), 32) == 90).all()
    assert (warp(picture, similarity(0.2, 10, (-500, 100)), 32) == 90).all()
