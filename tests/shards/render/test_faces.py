"""The rendered data set as a source: same bytes, disjoint people, the promised labels."""

from __future__ import annotations

import io
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from shards.align import AlignConfig
from shards.labels import AU12, EXPR8, FaceLabels
from shards.records import Encoded
from shards.render import RenderedFaces
from shards.render import constants as c
from shards.render.faces import draw_labels
from shards.template import relative_geometry

AFFWILD2_AU_RATES = {
    "AU1": 0.123, "AU2": 0.060, "AU4": 0.155, "AU6": 0.263, "AU7": 0.398, "AU10": 0.346,
    "AU12": 0.247, "AU15": 0.029, "AU23": 0.030, "AU24": 0.026, "AU25": 0.632, "AU26": 0.082,
}  # fmt: skip
NUM_LABELS = 6000


@pytest.fixture(scope="module")
def faces() -> RenderedFaces:
    return RenderedFaces(num_train=40, num_val=6, num_test=6, num_identities=10, seed=3)


@pytest.fixture(scope="module")
def made(faces: RenderedFaces) -> list[Encoded]:
    return [face for face in faces.open_maker()(faces.items("train")) if isinstance(face, Encoded)]


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, np.ndarray, FaceLabels]]:
    pairs = [draw_labels(0, 0, sample, "somebody") for sample in range(NUM_LABELS)]
    return [(expression.name, expression.units, labels) for expression, labels in pairs]


def test_bytes_do_not_depend_on_order_or_company(faces: RenderedFaces, made: list[Encoded]) -> None:
    items = faces.items("train")
    chosen = [17, 3, 30]
    again = pickle.loads(pickle.dumps(faces)).open_maker()([items[n] for n in chosen])
    for n, face in zip(chosen, again):
        assert isinstance(face, Encoded)
        assert (face.key, dict(face.members)) == (made[n].key, dict(made[n].members))


def test_another_seed_gives_other_faces(faces: RenderedFaces, made: list[Encoded]) -> None:
    other = RenderedFaces(num_train=40, num_val=6, num_test=6, num_identities=10, seed=4)
    (face,) = other.open_maker()(other.items("train")[:1])
    assert isinstance(face, Encoded)
    assert face.members["jpg"] != made[0].members["jpg"]


def test_every_item_becomes_one_sample_with_a_unique_key(faces: RenderedFaces, made: list[Encoded]) -> None:
    assert [face.key for face in made] == [item.key for item in faces.items("train")]
    keys = [item.key for split in faces.splits() for item in faces.items(split)]
    assert len(set(keys)) == len(keys) == 52


@pytest.mark.parametrize(("count", "people"), [(40, 10), (41, 10), (7, 3), (33, 17), (5, 20)])
def test_samples_are_spread_evenly_over_people(count: int, people: int) -> None:
    faces = RenderedFaces(num_train=count, num_val=0, num_test=0, num_identities=people)
    items = faces.items("train")
    per_person = Counter(item.ref.identity for item in items)
    assert len(items) == count
    assert len(per_person) == faces.people("train") == min(count, people)
    assert max(per_person.values()) - min(per_person.values()) <= 1


def test_people_do_not_cross_splits(faces: RenderedFaces) -> None:
    people: dict[str, set[str]] = {}
    shapes = {}
    for split in faces.splits():
        out = list(faces.open_maker()(faces.items(split)[:6]))
        people[split] = {
            json.loads(face.members["json"])["identity"] for face in out if isinstance(face, Encoded)
        }
        shapes[split] = faces.head(faces.items(split)[0].ref).neutral[:100]
    assert not people["train"] & people["val"]
    assert not people["train"] & people["test"]
    assert not people["val"] & people["test"]
    assert not np.allclose(shapes["train"], shapes["val"], atol=1e-3)
    assert not np.allclose(shapes["val"], shapes["test"], atol=1e-3)


def test_stored_faces_are_pictures_with_readable_labels(faces: RenderedFaces, made: list[Encoded]) -> None:
    for face in made:
        with Image.open(io.BytesIO(face.members["jpg"])) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (112, 112))
        labels = FaceLabels.from_json(json.loads(face.members["json"]))
        assert face.expr == (-1 if labels.expr is None else EXPR8.index(labels.expr))
        assert set(labels.au) <= set(AU12)
        landmarks = np.array(labels.extra["landmarks"])
        assert landmarks.shape == (5, 2)
        assert landmarks.min() >= 0
        assert landmarks.max() <= 112
        assert labels.extra["rendered"] is True
        for unit, state in labels.au.items():
            assert state == (labels.extra["au_intensity"].get(unit, 0) >= c.AU_THRESHOLD)


def test_the_source_says_what_it_is(faces: RenderedFaces) -> None:
    info = faces.info
    assert info.rendered
    assert info.label_space.expr == EXPR8
    assert info.label_space.au == AU12
    assert info.alignment["geometry"]["size"] == 112
    assert info.alignment["geometry"]["margin"] == faces.margin
    assert info.settings["seed"] == 3
    assert info.settings["counts"] == {"train": 40, "val": 6, "test": 6}
    json.dumps(info.settings | info.alignment)


def test_where_its_faces_lie_is_said_as_of_real_ones() -> None:
    """One schema: sets that were aligned in the same way are seen to be, however they were made."""
    aligned = relative_geometry(AlignConfig(mode="given", size=160).recipe())
    assert aligned is not None
    assert relative_geometry(RenderedFaces().info.alignment) == aligned
    assert relative_geometry(RenderedFaces(margin=0.2).info.alignment) != aligned


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="got 7"):
        RenderedFaces(size=7)
    with pytest.raises(ValueError, match="positive"):
        RenderedFaces(num_train=-1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RenderedFaces(num_identities=0)
    with pytest.raises(ValueError, match="no split 'dev'"):
        RenderedFaces().items("dev")


def test_expressions_come_at_their_rates(drawn: list[tuple[str, np.ndarray, FaceLabels]]) -> None:
    counts = Counter(name for name, _, _ in drawn)
    for name in EXPR8:
        assert counts[name] / NUM_LABELS == pytest.approx(c.EXPR_PRIOR[name], abs=0.02)


@pytest.mark.parametrize("unit", AU12)
def test_the_tables_give_the_wanted_unit_rate(unit: str) -> None:
    rate = sum(c.EXPR_PRIOR[name] * c.AU_GIVEN_EXPR[unit][name] for name in EXPR8)
    assert rate == pytest.approx(AFFWILD2_AU_RATES[unit], abs=0.004)


def test_drawn_units_come_at_the_wanted_rates(drawn: list[tuple[str, np.ndarray, FaceLabels]]) -> None:
    active = np.mean([units[: len(AU12)] >= c.AU_THRESHOLD for _, units, _ in drawn], axis=0)
    wanted = np.array([AFFWILD2_AU_RATES[unit] for unit in AU12])
    np.testing.assert_allclose(active, wanted, atol=0.02)


def test_labels_are_kept_back_at_the_stated_rates(drawn: list[tuple[str, np.ndarray, FaceLabels]]) -> None:
    labels = [label for _, _, label in drawn]
    assert np.mean([x.expr is None for x in labels]) == pytest.approx(c.MISSING["expr"], abs=0.012)
    assert np.mean([x.valence is None for x in labels]) == pytest.approx(c.MISSING["va"], abs=0.014)
    assert np.mean([not x.au for x in labels]) == pytest.approx(c.MISSING["au"], abs=0.015)
    absent = np.mean([1 - len(x.au) / 12 for x in labels if x.au])
    assert absent == pytest.approx(c.MISSING["au_unit"], abs=0.004)
    assert all((x.valence is None) == (x.arousal is None) for x in labels)
