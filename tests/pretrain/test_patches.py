import pytest
import torch

from pretrain.patches import gather_patches, grid_of, patchify, unpatchify


def test_patchify_matches_the_golden_order():
    patches = patchify(torch.arange(3 * 16 * 16).view(1, 3, 16, 16), (8, 8))
    assert patches.shape == (1, 4, 192)
    assert patches[0, 0, :6].tolist() == [0, 256, 512, 1, 257, 513]
    assert patches[0, 1, :3].tolist() == [8, 264, 520]
    assert patches[0, 2, :3].tolist() == [128, 384, 640]


@pytest.mark.parametrize("patch_size", [(8, 8), (4, 16)])
def test_unpatchify_undoes_patchify_on_any_grid(patch_size):
    images = torch.arange(2 * 3 * 16 * 48).remainder(251).to(torch.uint8).view(2, 3, 16, 48)
    grid = grid_of((16, 48), patch_size)
    assert torch.equal(unpatchify(patchify(images, patch_size), patch_size, grid), images)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="112x112 does not divide into patches 9x8"):
        patchify(torch.zeros(1, 3, 112, 112), (9, 8))
    with pytest.raises(ValueError, match="do not fill a 2x2 grid"):
        unpatchify(torch.zeros(1, 5, 192), (8, 8), (2, 2))


def test_gather_picks_rows_of_each_sample():
    tokens = torch.arange(24.0).view(2, 4, 3)
    ids = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]])
    assert torch.equal(gather_patches(tokens, ids), expected)
