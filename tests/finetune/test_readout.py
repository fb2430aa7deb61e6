"""What each readout keeps of the tokens, and that masked tokens are read as the same places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetune.config import HeadConfig
from finetune.readout import Readout, build_head

KINDS = ("cls", "mean", "attention", "flat")
DIM, LENGTH = 8, 6


def readout(kind: str, prefix: int = 1) -> Readout:
    generator = torch.Generator().manual_seed(0)
    made = Readout(HeadConfig(kind, readout_dim=3), DIM, LENGTH, prefix, generator)
    if kind == "attention":
        nn.init.normal_(made.places, generator=generator)
    return made


def tokens(count: int = 4, prefix: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randn(count, prefix + length, DIM, generator=torch.Generator().manual_seed(1))


def masked(whole: Tensor, ids_keep: Tensor, prefix: int = 1) -> Tensor:
    """The prefix and the kept patch tokens."""
    patches = whole[:, prefix:].gather(1, ids_keep[..., None].expand(-1, -1, DIM))
    return torch.cat([whole[:, :prefix], patches], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [1, 5])
def test_with_every_patch_kept_in_any_order_it_is_the_full_readout(kind: str, prefix: int):
    read, whole = readout(kind, prefix), tokens(prefix=prefix)
    generator = torch.Generator().manual_seed(2)
    ids_keep = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(4)])
    expected = read(whole)
    assert expected.shape == (4, read.num_features)
    torch.testing.assert_close(read(masked(whole, ids_keep, prefix), ids_keep), expected)


def test_cls_and_mean_are_what_they_say():
    whole = tokens(prefix=3)
    assert torch.equal(readout("cls", 3)(whole), whole[:, 0])
    torch.testing.assert_close(readout("mean", 3)(whole), whole[:, 3:].sum(1) / LENGTH)


def test_flat_keeps_each_place_and_masked_places_are_empty():
    read, whole = readout("flat"), tokens()
    places = read(whole).view(4, LENGTH, 3)
    for place in range(LENGTH):
        torch.testing.assert_close(places[:, place], read.project(whole[:, 1 + place]))
    ids_keep = torch.tensor([[5, 0], [1, 2], [3, 4], [0, 1]])
    kept = read(masked(whole, ids_keep), ids_keep).view(4, LENGTH, 3)
    for row, ids in enumerate(ids_keep.tolist()):
        for place in range(LENGTH):
            expected = places[row, place] * LENGTH / 2 if place in ids else torch.zeros(3)
            torch.testing.assert_close(kept[row, place], expected)


def test_attention_is_a_softmax_over_the_kept_places_alone():
    read, whole = readout("attention"), tokens()
    ids_keep = torch.tensor([[5, 0], [1, 2], [3, 4], [0, 1]])
    found = read(masked(whole, ids_keep), ids_keep).view(4, 3, DIM)
    for row, ids in enumerate(ids_keep.tolist()):
        patches = whole[row, 1:][ids]
        for query in range(3):
            scores = patches @ read.queries[query] / DIM**0.5 + read.places[query, ids]
            torch.testing.assert_close(found[row, query], scores.exp() @ patches / scores.exp().sum())


def test_only_readouts_that_keep_places_see_tokens_change_places():
    whole = tokens()
    moved = torch.cat([whole[:, :1], whole[:, 1:].flip(1)], dim=1)
    for kind in KINDS:
        read = readout(kind)
        same = torch.allclose(read(whole), read(moved), atol=1e-6)
        assert same == (kind in ("cls", "mean")), kind


@pytest.mark.parametrize("kind", ["attention", "flat"])
def test_every_parameter_learns_and_weights_come_from_the_generator(kind: str):
    read = readout(kind)
    read(tokens()).square().sum().backward()
    assert all(param.grad is not None and param.grad.any() for param in read.parameters())
    torch.testing.assert_close(dict(read.named_parameters()), dict(readout(kind).named_parameters()))


def test_the_head_is_emmas_or_one_linear_layer():
    head = build_head(DIM, 20, 512, torch.Generator().manual_seed(0))
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert head[0].weight.shape == (512, DIM) and head[2].weight.shape == (20, 512)
    assert not head[2].bias.any()
    (single,) = build_head(DIM, 20, 0)
    assert single.weight.shape == (20, DIM)


def test_an_unknown_readout_is_refused():
    with pytest.raises(ValueError, match=r"head\.readout='max': use one of cls, mean, attention, flat"):
        Readout(HeadConfig("max"), DIM, LENGTH)
