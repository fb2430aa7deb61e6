"""Windows: an evaluation covers every frame by its plan; training's windows lie where the clip has room."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from shards.config import ClipConfig
from shards.keyed import sample_key
from shards.windows import draw_start, lag_frames, plan_windows, window_frames


@pytest.mark.parametrize(("length", "stride"), [(8, 4), (8, 8), (5, 3), (1, 1), (16, 1)])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("lag", [0, 4])
def test_an_evaluation_sees_every_frame_of_every_clip(length: int, stride: int, step: int, lag: int) -> None:
    config = ClipConfig(num_frames=length, stride=stride, frame_step=step)
    for count in range(1, 60):
        starts = plan_windows(count, config)
        assert len(set(starts)) == len(starts)
        windows = [window_frames(start, count, lag, config) for start in starts]
        seen = {frame for window in windows for frame in window.labels[window.inside].tolist()}
        assert seen == set(range(count))
        if count >= length * step:
            assert all(window.inside.all() for window in windows)


def test_the_plan_is_the_one_that_is_stated() -> None:
    assert plan_windows(32, ClipConfig(num_frames=16, stride=8)) == [0, 8, 16]
    assert plan_windows(35, ClipConfig(num_frames=16, stride=8)) == [0, 8, 16, 19]
    assert plan_windows(9, ClipConfig(num_frames=16, stride=8)) == [0]
    assert plan_windows(9, ClipConfig(num_frames=2, stride=2, frame_step=2)) == [0, 4, 6, 1, 5]


def test_windows_of_a_training_lie_anywhere_in_the_clip() -> None:
    config = ClipConfig(num_frames=4, stride=4, frame_step=2)
    starts = Counter(draw_start(sample_key(0, epoch, 3), 12, 0, config) for epoch in range(600))
    assert sorted(starts) == list(range(6)) and min(starts.values()) > 60
    assert {draw_start(sample_key(0, epoch, 3), 5, 0, config) for epoch in range(20)} == {0}
    keys = [sample_key(1, epoch, 9) for epoch in range(20)]
    assert [draw_start(key, 90, 0, config) for key in keys] == [
        draw_start(key, 90, 0, config) for key in keys
    ]


def test_a_lag_pairs_labels_with_earlier_pictures() -> None:
    config = ClipConfig(num_frames=4, stride=4, lag_seconds=0.3)
    assert lag_frames(config, 10.0) == 3 and lag_frames(config, 25.0) == 8
    found = window_frames(5, 20, 3, config)
    assert found.labels.tolist() == [5, 6, 7, 8] and found.pictures.tolist() == [2, 3, 4, 5]
    first = window_frames(1, 20, 3, config)
    assert first.pictures.tolist() == [0, 0, 0, 1] and first.held.tolist() == [True, True, False, False]
    starts = {draw_start(sample_key(0, epoch, 3), 20, 3, config) for epoch in range(400)}
    assert starts == set(range(3, 17))
    assert {draw_start(sample_key(0, epoch, 3), 6, 3, config) for epoch in range(40)} == {2}


def test_windows_that_would_leave_frames_out_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clip\.stride=9 is more than clip\.num_frames=8"):
        ClipConfig(num_frames=8, stride=9)
    for name in ("num_frames", "stride", "frame_step"):
        with pytest.raises(ValueError, match=rf"clip\.{name}=0: must be 1 or more"):
            ClipConfig(**{name: 0})
    for modalities in ((), ("sound",), ("color", "color")):
        with pytest.raises(ValueError, match=r"clip\.modalities=.*one or more of color, depth, thermal"):
            ClipConfig(modalities=modalities)
    with pytest.raises(ValueError, match=r"clip\.lag_seconds=-1"):
        ClipConfig(lag_seconds=-1)
    assert np.array_equal(ClipConfig(modalities=("thermal",)).modalities, ("thermal",))
