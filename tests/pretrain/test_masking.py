import pytest
import torch
from tiny import golden_inputs

from pretrain.masking import mask_noise, num_keep, random_masking


def test_random_masking_matches_the_golden_numbers():
    masking = random_masking(golden_inputs()[1], 4)
    assert masking.ids_keep.tolist() == [[2, 12, 0, 6], [11, 6, 0, 14]]
    assert masking.mask.int().tolist() == [
        [0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1],
        [0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1],
    ]
    assert masking.ids_restore.tolist() == [
        [2, 4, 0, 7, 12, 10, 3, 8, 9, 15, 14, 5, 1, 11, 13, 6],
        [2, 4, 14, 15, 7, 12, 1, 11, 5, 13, 9, 0, 10, 6, 3, 8],
    ]


def test_kept_and_masked_are_a_partition_and_restore_undoes_the_shuffle():
    masking = random_masking(mask_noise(torch.arange(5), 49), 12)
    ids = torch.cat([masking.ids_keep, masking.ids_masked], dim=1)
    assert torch.equal(ids.gather(1, masking.ids_restore), torch.arange(49).expand(5, 49))
    assert torch.equal(masking.mask.sum(1), torch.full((5,), 37))
    assert masking.mask.gather(1, masking.ids_masked).all()


def test_equal_noise_keeps_position_order():
    assert random_masking(torch.zeros(1, 6), 2).ids_keep.tolist() == [[0, 1]]


def test_a_samples_mask_does_not_depend_on_its_batch():
    keys = torch.tensor([11, -5, 2**62, 7])
    together = random_masking(mask_noise(keys, 196), 49).ids_keep
    alone = torch.cat([random_masking(mask_noise(key[None], 196), 49).ids_keep for key in keys])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])


def test_views_of_one_sample_are_masked_independently():
    keys = torch.arange(3)
    assert not torch.equal(mask_noise(keys, 16, view=0), mask_noise(keys, 16, view=1))


@pytest.mark.parametrize(
    ("mask_ratio", "kept"), [(0.0, 196), (0.5, 98), (0.75, 49), (0.85, 29), (0.9, 19), (0.95, 9)]
)
def test_num_keep_counts_as_the_papers_do(mask_ratio, kept):
    assert num_keep(196, mask_ratio) == kept


def test_ratios_that_keep_nothing_are_refused():
    with pytest.raises(ValueError, match="leaves none of 4 patches"):
        num_keep(4, 0.8)
    with pytest.raises(ValueError, match="mask_ratio must lie in"):
        num_keep(196, 1.0)
    with pytest.raises(ValueError, match="num_keep must lie in"):
        random_masking(torch.zeros(1, 4), 5)
