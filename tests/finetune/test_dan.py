"""DAN against the released implementation's numbers and names, and what freezing it promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from finetune.dan import (
    AFFECTNET8,
    DAN,
    CenteredDAN,
    DANConfig,
    class_order,
    freeze,
    load_released,
)
from finetune.losses import affinity_sum, cross_entropy_sum, partition_loss
from shards.labels import EXPR8
from tests.pretrain.fill import fill_vector

LOGITS = (
    (-122.60908508300781, 30.598833084106445, 24.357524871826172, 219.11424255371094),
    (15.109225273132324, -3.5422582626342773, -59.1911735534668, 9.731161117553711),
    (-123.09764862060547, 31.880571365356445, 24.426559448242188, 221.6271209716797),
    (15.929834365844727, -1.988148808479309, -61.05219268798828, 5.918715000152588),
    (-122.98268127441406, 27.35963249206543, 26.785533905029297, 223.11631774902344),
    (19.60242462158203, -8.966839790344238, -63.530677795410156, 5.807153224945068),
    (-123.83827209472656, 25.59065818786621, 27.159278869628906, 229.2895050048828),
    (23.286771774291992, -3.579508066177368, -61.52458953857422, 8.883352279663086),
)


def filled_state(dan: DAN) -> dict[str, Tensor]:
    """The golden fill: by name; BatchNorm's scales around 1, its variances from 1 on."""
    state = {}
    for name, old in dan.state_dict().items():
        values = fill_vector(name, old.numel(), 0.05).view(old.shape)
        if name.endswith("running_var"):
            values = 1 + values.abs()
        elif name.endswith(".weight") and old.ndim == 1:
            values = 1 + values
        state[name] = values.to(old.dtype)
    return state


@pytest.fixture(scope="module")
def golden() -> DAN:
    dan = DAN(DANConfig(8))
    load_released(dan, {f"module.{name}": tensor for name, tensor in filled_state(dan).items()})
    return dan.eval()


def images(count: int, size: int = 224) -> Tensor:
    return fill_vector("img", count * 3 * size * size, 1.0).view(count, 3, size, size)


def smooth(count: int, size: int) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") * 255).byte()


@torch.no_grad()
def test_logits_and_losses_are_those_of_the_released_dan(golden: DAN):
    output = golden(images(4))
    torch.testing.assert_close(output.logits, torch.tensor(LOGITS).view(4, 8), atol=1e-4, rtol=1e-6)
    target, seen = torch.tensor([0, 3, 7, 2]), torch.ones(4, dtype=torch.bool)
    centers = fill_vector("centers", 8 * 512, 1).view(8, 512)
    affinity = affinity_sum(output.features, target, seen, centers) / 4
    assert affinity.item() == pytest.approx(1.7683384418487549, abs=1e-5)
    assert partition_loss(output.heads).item() == pytest.approx(0.004437955562025309, abs=1e-7)
    entropy = cross_entropy_sum(output.logits, target, seen) / 4
    assert entropy.item() == pytest.approx(190.29067993164062, rel=1e-6)


@torch.no_grad()
def test_features_and_heads_are_those_of_the_released_dan(golden: DAN):
    output = golden(images(2))
    assert output.features.shape == (2, 512, 7, 7) and output.heads.shape == (2, 4, 512)
    assert output.features.double().sum().item() == pytest.approx(18324.597889081124, rel=1e-6)
    assert output.heads.double().sum().item() == pytest.approx(-89064.7930617331, rel=1e-6)


def test_sizes_are_those_of_the_released_dan():
    with torch.device("meta"):
        dan = DAN(DANConfig(8))
    assert sum(param.numel() for param in dan.parameters()) == 19_724_248
    state = dan.state_dict()
    assert len(state) == 275
    assert sum(t.numel() for t in state.values()) - 19_724_248 == 24_249
    assert {"features.0.weight", "features.7.1.bn2.running_var", "fc.bias", "bn.weight"} <= state.keys()
    assert {"cat_head3.sa.conv_3x1.0.weight", "cat_head0.ca.attention.3.bias"} <= state.keys()


@torch.no_grad()
def test_uint8_and_normalised_float_images_agree_at_112(golden: DAN):
    raw = smooth(2, 112)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    floats = (raw / 255 - mean[:, None, None]) / std[:, None, None]
    output = golden(raw)
    assert output.features.shape == (2, 512, 4, 4) and output.logits.shape == (2, 8)
    torch.testing.assert_close(output.logits, golden(floats).logits, atol=1e-3, rtol=1e-5)


def test_random_weights_come_from_the_generator():
    one, two, other = (DAN(DANConfig(7, 2), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    states = [model.state_dict() for model in (one, two, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    random = [name for name, tensor in states[0].items() if not torch.equal(tensor, states[2][name])]
    assert {"features.0.weight", "cat_head1.ca.attention.0.weight", "fc.weight", "fc.bias"} <= set(random)
    assert one.fc.weight.shape == (7, 512) and not hasattr(one, "cat_head2")


def test_heads_are_log_probabilities_over_the_heads_and_a_single_head_is_left_alone():
    two = DAN(DANConfig(3, 2), generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        heads = two(smooth(2, 64)).heads
        torch.testing.assert_close(heads.exp().sum(1), torch.ones(2, 512))
        one = DAN(DANConfig(3, 1), generator=torch.Generator().manual_seed(0)).eval()
        output = one(smooth(2, 64))
    torch.testing.assert_close(output.heads[:, 0], one.cat_head0(output.features))
    with pytest.raises(ValueError, match="1 class and 1 head"):
        DAN(DANConfig(3, 0))


def test_strange_checkpoints_are_refused_by_name():
    dan = DAN(DANConfig(3, 1))
    before = {name: tensor.clone() for name, tensor in dan.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    extra = {**state, "head.bias": torch.zeros(1)}
    del extra["fc.bias"]
    with pytest.raises(ValueError, match=r"missing fc\.bias, unknown head\.bias; .*model_state_dict"):
        load_released(dan, extra)
    with pytest.raises(ValueError, match=r"fc\.weight \(8, 512\) instead of \(3, 512\).*num_classes"):
        load_released(dan, {**state, "fc.weight": torch.zeros(8, 512)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in dan.state_dict().items())
    load_released(dan, state)
    assert torch.equal(dan.fc.bias, state["fc.bias"])


def test_every_parameter_learns_and_the_centres_with_them():
    model = CenteredDAN(
        DAN(DANConfig(3, 2), generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    )
    target, seen = torch.tensor([0, 1, 2, 0]), torch.ones(4, dtype=torch.bool)
    output = model(smooth(4, 64))
    assert output.centers.shape == (3, 512)
    loss = cross_entropy_sum(output.dan.logits, target, seen)
    loss = loss + affinity_sum(output.dan.features, target, seen, output.centers)
    (loss + partition_loss(output.dan.heads)).backward()
    assert [name for name, param in model.named_parameters() if param.grad is None] == []
    assert {name.partition(".")[0] for name in model.state_dict()} == {"dan", "centers"}


class Owner(nn.Module):
    """A model that holds a DAN."""

    def __init__(self, dan: DAN) -> None:
        super().__init__()
        self.dan = dan
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize("copied", [False, True])
def test_a_frozen_dan_keeps_its_statistics_under_a_training_owner(copied: bool):
    owner = Owner(freeze(DAN(DANConfig(3, 1))))
    if copied:
        owner = copy.deepcopy(owner)
    owner.train()
    for module in owner.modules():
        module.train()
    before = {name: tensor.clone() for name, tensor in owner.dan.state_dict().items()}
    output = owner.dan(smooth(2, 64))
    assert owner.training and owner.head.training
    assert not any(module.training for module in owner.dan.modules())
    assert not output.logits.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in owner.dan.state_dict().items())
    assert {name for name, param in owner.named_parameters() if param.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_frozen_weights_may_leave_the_statistics_to_move():
    owner = Owner(freeze(DAN(DANConfig(3, 1)), statistics=False)).train()
    before = owner.dan.bn.running_mean.clone()
    output = owner.dan(smooth(2, 64))
    assert not output.logits.requires_grad
    assert not torch.equal(owner.dan.bn.running_mean, before)


def test_classes_are_matched_by_name():
    assert class_order(AFFECTNET8, EXPR8) == [0, 4, 5, 6, 3, 2, 1, None]
    assert class_order(("Anger", "HAPPINESS"), ("happy", "anger")) == [1, 0]
    with pytest.raises(ValueError, match="twice"):
        class_order(("happy", "happiness"), EXPR8)
