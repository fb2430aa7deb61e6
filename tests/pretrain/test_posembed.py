import pytest
import torch

from pretrain.posembed import interpolate_table, sincos_table


def test_sincos_matches_the_golden_numbers():
    table = sincos_table(768, (14, 14))
    assert table.shape == (197, 768)
    assert table.dtype == torch.float32
    assert not table[0].any()
    assert table.double().sum().item() == pytest.approx(69594.49385916878, abs=1e-2)
    assert table[1, :4].tolist() == [0, 0, 0, 0]
    assert table[2, [0, 1, 192, 384, 576]].tolist() == pytest.approx(
        [0.8414709848078965, 0.8152506496736778, 0.5403023058681398, 0, 1]
    )
    assert table[15, [0, 192, 384, 576]].tolist() == pytest.approx(
        [0, 1, 0.8414709848078965, 0.5403023058681398]
    )
    assert table[196].double().sum().item() == pytest.approx(316.94696767911483, abs=1e-3)


def test_a_grid_need_not_be_square():
    table = sincos_table(16, (2, 5), num_prefix_tokens=0)
    assert table.shape == (10, 16)
    assert torch.equal(table[1, :8], table[6, :8])  # same column
    assert torch.equal(table[1, 8:], table[4, 8:])  # same row


@pytest.mark.parametrize(
    ("side", "total", "absolute", "first", "middle"),
    [
        (7, 17398.62341100505, 21072.53286010927, 0.41437676548957825, 0.1257043331861496),
        (16, 90885.46538933807, 110069.80941705691, -0.03466753661632538, -0.06781691312789917),
    ],
)
def test_interpolation_matches_the_golden_numbers(side, total, absolute, first, middle):
    table = interpolate_table(sincos_table(768, (14, 14)), (14, 14), (side, side))
    assert table.shape == (1 + side * side, 768)
    assert table.double().sum().item() == pytest.approx(total, rel=1e-5)
    assert table.double().abs().sum().item() == pytest.approx(absolute, rel=1e-5)
    assert table[1, 0].item() == pytest.approx(first, abs=1e-5)
    assert table[1 + side // 2, 16].item() == pytest.approx(middle, abs=1e-5)


def test_interpolation_keeps_the_prefix_and_leaves_an_equal_grid_alone():
    table = torch.randn(1, 3 + 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate_table(table, (2, 3), (2, 3), 3), table)
    moved = interpolate_table(table, (2, 3), (4, 4), 3)
    assert moved.shape == (1, 19, 8)
    assert torch.equal(moved[:, :3], table[:, :3])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_table(30, (2, 2))
    with pytest.raises(ValueError, match="a position table of 197 rows"):
        interpolate_table(torch.zeros(197, 8), (7, 7), (14, 14))
