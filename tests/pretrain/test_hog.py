"""Histograms of oriented gradients: where edges run, and not how strong they are."""

import pytest
import torch

from pretrain.hog import ORIENTATIONS, hog_patches, orientation_maps


def slope(angle: float, size: int = 32) -> torch.Tensor:
    """(1, 3, size, size) grey that rises `angle` half turns from the right."""
    place = torch.arange(size, dtype=torch.float32)
    turn = torch.tensor(angle * torch.pi)
    return (0.3 * (place * turn.cos() + place[:, None] * turn.sin())).expand(1, 3, size, size)


@pytest.mark.parametrize("number", range(ORIENTATIONS))
def test_a_gradient_along_a_bin_is_in_that_bin(number: int) -> None:
    maps = orientation_maps(slope(number / ORIENTATIONS))[0, :, 4:-4, 4:-4].sum((1, 2))
    assert maps.argmax() == number
    assert maps[number] > 0.9 * maps.sum()


def test_a_gradient_between_two_bins_is_shared_and_none_is_lost() -> None:
    image = slope(1.5 / ORIENTATIONS)
    maps = orientation_maps(image)
    inside = maps[0, :, 4:-4, 4:-4].sum((1, 2))
    torch.testing.assert_close(inside[1], inside[2])
    grey = image.mean(1)[0]
    dx, dy = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    torch.testing.assert_close(maps[0, :, 1:-1, 1:-1].sum(0), torch.hypot(dx, dy))


def test_opposite_edges_are_alike_and_the_last_bin_neighbours_the_first() -> None:
    image = slope(0.96)
    torch.testing.assert_close(orientation_maps(image), orientation_maps(-image))
    maps = orientation_maps(image)[0, :, 4:-4, 4:-4].sum((1, 2))
    assert set(maps.topk(2).indices.tolist()) == {0, ORIENTATIONS - 1}


@pytest.mark.parametrize("number", range(2 * ORIENTATIONS))
def test_signed_bins_go_once_around(number: int) -> None:
    maps = orientation_maps(slope(number / ORIENTATIONS), 2 * ORIENTATIONS, signed=True)[0, :, 4:-4, 4:-4]
    assert maps.sum((1, 2)).argmax() == number
    both = maps[:ORIENTATIONS] + maps[ORIENTATIONS:]
    unsigned = orientation_maps(slope(number / ORIENTATIONS))[0, :, 4:-4, 4:-4]
    torch.testing.assert_close(both, unsigned, rtol=1e-4, atol=1e-5)


def test_contrast_and_brightness_hardly_change_a_patchs_histograms() -> None:
    image = slope(0.3)
    plain, other = hog_patches(image, (8, 8)), hog_patches(0.5 * image + 1, (8, 8))
    torch.testing.assert_close(plain, other, rtol=0.1, atol=0.05)
    assert not torch.allclose(plain, hog_patches(slope(0.6), (8, 8)), atol=0.5)
    assert hog_patches(torch.ones(1, 3, 32, 32), (8, 8)).abs().max() == 0


@pytest.mark.parametrize(
    ("patch_size", "shape"),
    [((8, 8), (16, 36)), ((16, 8), (8, 36)), ((1, 4), (256, 18)), ((1, 1), (1024, 9))],
)
def test_every_patch_has_its_histograms(patch_size: tuple[int, int], shape: tuple[int, int]) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = hog_patches(images, patch_size)
    assert found.shape == (2, *shape) and found.dtype == torch.float32
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, shape[0]), atol=1e-5, rtol=0)


def test_a_patchs_histograms_are_of_its_own_place() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 18:22, 3:6] = 1.0  # inside the patch of row 2, column 0
    found = hog_patches(image, (8, 8))[0].abs().sum(-1)
    assert found.nonzero().flatten().tolist() == [8]
