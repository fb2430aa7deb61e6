import pytest
import torch

from pretrain.patches import patchify
from pretrain.pixels import PixelNorm


def test_uint8_is_normalised_per_channel_for_images_and_for_patches():
    images = torch.arange(2 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(2, 3, 8, 8)
    norm = PixelNorm((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(norm(images), expected)
    torch.testing.assert_close(norm.patches(patchify(images, (4, 4))), patchify(expected, (4, 4)))
    torch.testing.assert_close(
        norm.undo_patches(patchify(expected, (4, 4))), patchify(images, (4, 4)) / 255, atol=1e-6, rtol=1e-5
    )


def test_float_images_pass_unchanged_and_nothing_enters_the_state_dict():
    norm = PixelNorm()
    images = torch.rand(1, 3, 4, 4)
    assert norm(images) is images
    assert norm.patches(images) is images
    assert not norm.state_dict()


def test_a_std_of_zero_is_refused():
    with pytest.raises(ValueError, match="std > 0"):
        PixelNorm((0.5,), (0.0,))
