"""Randomness is a function of its key alone, the same in Python, numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shards import keyed


def test_python_numpy_and_torch_agree_to_the_bit() -> None:
    keys = np.array([0, 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0], np.uint64)
    for value in (0, 1, 7, 2**31, 2**32 - 1):
        python = [keyed.mix(int(k), value) for k in keys]
        assert keyed.mix_array(keys, value).tolist() == python
        tensor = keyed.mix_tensor(keyed.to_tensor(keys), value)
        assert tensor.numpy().view(np.uint64).tolist() == python
        by_tensor = keyed.mix_tensor(keyed.to_tensor(keys), torch.full((5,), value, dtype=torch.int64))
        assert torch.equal(by_tensor, tensor)


def test_known_value_of_the_hash() -> None:
    """SplitMix64's published first output for seed 0: the format of every run depends on it."""
    assert keyed.mix(0, 0) == 0xE220A8397B1DCDAF


def test_uniforms_are_uniform_and_streams_differ() -> None:
    draws = np.array([keyed.uniforms(keyed.sample_key(3, 0, i), "crop", 4) for i in range(5000)])
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.02 and np.abs(draws.var(0) - 1 / 12).max() < 0.005
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.05
    assert keyed.uniforms(5, "crop", 1)[0] != keyed.uniforms(5, "flip", 1)[0]


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_permutation_holds_every_number_once(count: int) -> None:
    assert sorted(keyed.permutation(9, count).tolist()) == list(range(count))


def test_device_noise_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    keys = keyed.to_tensor(np.array([11, 22, 33], np.uint64))
    whole = keyed.noise(keys, "mask", 50)
    assert torch.equal(whole[1:2], keyed.noise(keys[1:2], "mask", 50))
    assert int(whole.min()) >= 0
    uniform = keyed.uniform_noise(keys, "mask", 2000)
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1 and abs(float(uniform.mean()) - 0.5) < 0.02
