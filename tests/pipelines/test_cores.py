"""Who gets a machine's cores."""

from __future__ import annotations

import pytest
import torch

from pipelines import cores


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (2, 0), (3, 1)])
def test_an_evaluation_reads_beside_the_model_only_where_a_core_is_to_spare(
    monkeypatch: pytest.MonkeyPatch, count: int, expected: int
) -> None:
    monkeypatch.setattr(cores, "num_cores", lambda: count)
    assert cores.scoring_workers(-1, torch.device("cpu")) == expected
    assert cores.scoring_workers(2, torch.device("cpu")) == 2
