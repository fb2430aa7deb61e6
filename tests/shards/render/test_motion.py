"""Motion: smooth, in range, and an arousal of which the face's muscles are only one part."""

from __future__ import annotations

import numpy as np
import pytest

from shards.keyed import generator
from shards.render import constants as c
from shards.render.actions import affect
from shards.render.motion import Motion, draw_motion

NUM, FRAMES, FPS = 60, 48, 10.0


@pytest.fixture(scope="module")
def motions() -> list[Motion]:
    return [draw_motion(generator(n, "motion"), FRAMES, FPS) for n in range(NUM)]


def test_the_same_key_gives_the_same_motion(motions: list[Motion]) -> None:
    again = draw_motion(generator(5, "motion"), FRAMES, FPS)
    for name in ("units", "autonomic", "pose", "gaze", "light", "distance", "breath", "jitter"):
        np.testing.assert_array_equal(getattr(again, name), getattr(motions[5], name))
        assert not np.array_equal(getattr(again, name), getattr(motions[6], name))


def test_everything_stays_in_its_range(motions: list[Motion]) -> None:
    for motion in motions:
        valence, arousal = motion.affect()
        for values, low, high in (
            (motion.units, 0, 1), (motion.felt, 0, 1), (motion.autonomic, 0, 1), (motion.skin, 0, 1),
            (motion.breath, -1, 1), (valence, -1, 1), (arousal, -1, 1), (motion.light, 0.8, 1.2),
        ):  # fmt: skip
            assert len(values) == FRAMES
            assert np.min(values) >= low
            assert np.max(values) <= high


def test_expressions_change_smoothly_and_often(motions: list[Motion]) -> None:
    """At 10 frames a second a whole onset takes three frames or more."""
    assert max(np.abs(np.diff(motion.felt, axis=0)).max() for motion in motions) < 0.6
    assert np.mean([np.ptp(motion.felt, axis=0).max() > 0.3 for motion in motions]) > 0.8
    assert max(np.abs(np.diff(motion.autonomic)).max() for motion in motions) < 0.2
    assert max(np.abs(np.diff(motion.pose, axis=0)).max() for motion in motions) < 0.12
    spread = np.std([motion.jitter for motion in motions])
    assert spread == pytest.approx(c.TRACKER_JITTER, rel=0.1)


def test_some_talk_and_all_blink_without_a_word_to_the_labels(motions: list[Motion]) -> None:
    jaw, lid = c.UNITS.index("AU26"), c.UNITS.index("AU43")
    extra = np.array([motion.units - motion.felt for motion in motions])
    assert 0.15 < np.mean(extra[:, :, jaw].max(axis=1) > 0.2) < 0.6
    assert 0.5 < np.mean(extra[:, :, lid].max(axis=1) > 0.5) < 0.95
    for motion in motions[:5]:
        wanted = [affect(units)[0] for units in motion.felt]
        np.testing.assert_allclose(motion.affect()[0], wanted)


def test_arousal_has_two_parts_of_about_equal_weight(motions: list[Motion]) -> None:
    arousal = np.array([motion.affect()[1] for motion in motions])
    of_units = np.array([[affect(units)[1] for units in motion.felt] for motion in motions])
    autonomic = np.array([motion.autonomic for motion in motions])
    stated = c.AROUSAL_FROM_UNITS * of_units + c.AROUSAL_FROM_AUTONOMIC * (2 * autonomic - 1)
    np.testing.assert_allclose(arousal, stated)
    for part in (of_units, autonomic):
        assert 0.4 < np.corrcoef(arousal.ravel(), part.ravel())[0, 1] < 0.9
    assert abs(np.corrcoef(of_units.ravel(), autonomic.ravel())[0, 1]) < 0.3


def test_the_skin_follows_the_autonomic_state_by_its_lag(motions: list[Motion]) -> None:
    late = round(c.AUTONOMIC_LAG_S * FPS)
    for motion in motions:
        np.testing.assert_allclose(motion.skin[late:], motion.autonomic[:-late], atol=1e-9)
        assert motion.frame(7).autonomic == c.AUTONOMIC_GAIN * motion.skin[7]
