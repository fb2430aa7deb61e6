"""`RenderedFaces`: the embedded default data set, a source like any other.

Every sample is a pure function of (seed, split, sample): whichever process makes it, alone or among others,
its bytes are the same. People never cross splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.align.decode import encode_jpeg
from shards.keyed import generator, sample_key
from shards.labels import AU12, EXPR8, FaceLabels
from shards.records import SPLITS, Encoded, Item, Maker, SourceInfo, canonical_json, each
from shards.render import constants as c
from shards.render.actions import Expression, draw_expression
from shards.render.camera import draw_camera
from shards.render.head import Head
from shards.render.people import (
    LICENCE,
    People,
    Ref,
    build_person,
    check_counts,
    identity_name,
    num_people,
    refs,
)
from shards.render.picture import DEFAULT_MARGIN, Picture, View, render
from shards.render.scene import Frame, Scene, draw_frame, draw_scene, scene_to_json
from shards.template import template_geometry, template_points

_DETECTOR_NOISE = 1.2
"""Standard deviation of a landmark's error in pixels of a 112 frame."""

_DETECTOR_SHIFT, _DETECTOR_SCALE = 0.8, 0.02
"""Of what a detector gets wrong of all five together: standard deviation of the shift, in such pixels, and of
the scale. MTCNN's points of rendered faces lie a pixel off the mesh's own."""


def draw_labels(seed: int, split: int, sample: int, identity: str) -> tuple[Expression, FaceLabels]:
    """The expression of one sample and what the data set tells of it: some labels are kept back.

    Args:
        seed, split, sample: as in `Ref`. identity: the person's name.
    """
    key = sample_key(seed, split, sample)
    expression = draw_expression(generator(key, "expression"))
    rng = generator(key, "missing")
    no_expr, no_va, no_au = rng.random(3) < (c.MISSING["expr"], c.MISSING["va"], c.MISSING["au"])
    unit_known = rng.random(len(AU12)) >= c.MISSING["au_unit"]
    units = (
        {} if no_au else {u: s for (u, s), known in zip(expression.au_labels().items(), unit_known) if known}
    )
    labels = FaceLabels(
        expr=None if no_expr else expression.name,
        au=units,
        valence=None if no_va else round(expression.valence, 4),
        arousal=None if no_va else round(expression.arousal, 4),
        identity=identity,
        group=identity,
        extra={
            "intensity": round(expression.intensity, 3),
            "au_intensity": {u: round(float(v), 3) for u, v in zip(c.UNITS, expression.units) if v > 0.0005},
        },
    )
    return expression, labels


def _draw_jitter(rng: np.random.Generator) -> NDArray[np.float64]:
    """(5, 2) error of a detector's landmarks in pixels of a 112 frame: of each, and of all together."""
    points = template_points(112, DEFAULT_MARGIN)
    grown = (points - points.mean(0)) * (_DETECTOR_SCALE * rng.standard_normal())
    return np.asarray(
        _DETECTOR_NOISE * rng.standard_normal((5, 2)) + _DETECTOR_SHIFT * rng.standard_normal(2) + grown
    )


@dataclass(frozen=True)
class RenderedFaces:
    """Rendered, aligned, labelled faces; satisfies `shards.records.Source`.

    Attributes:
        num_train, num_val, num_test: samples of each split; 0 leaves the split out.
        num_identities: people in the train split; the others have as many samples for each person.
        seed: of everything.
        size: of the frame, pixels. margin: see `View`.
    """

    num_train: int = 6000
    num_val: int = 1000
    num_test: int = 1000
    num_identities: int = 750
    seed: int = 0
    size: int = 112
    margin: float = DEFAULT_MARGIN

    def __post_init__(self) -> None:
        check_counts(self._counts(), self.num_identities)
        if not 32 <= self.size <= 512:
            raise ValueError(f"size must be 32 to 512 pixels, got {self.size}")

    def _counts(self) -> dict[str, int]:
        return dict(zip(SPLITS, (self.num_train, self.num_val, self.num_test)))

    @cached_property
    def info(self) -> SourceInfo:
        """What the manifest says of this data set."""
        return SourceInfo(
            name="rendered-faces",
            licence=LICENCE,
            rendered=True,
            alignment={
                "mode": "rendered",
                "geometry": template_geometry(self.size, self.margin),
                "detector": {
                    "name": "projected mesh landmarks",
                    "noise_px": _DETECTOR_NOISE,
                    "shift_px": _DETECTOR_SHIFT,
                    "scale": _DETECTOR_SCALE,
                },
            },
            settings={
                "renderer": c.RENDERER_VERSION,
                "seed": self.seed,
                "counts": self._counts(),
                "num_identities": self.num_identities,
                "au_threshold": c.AU_THRESHOLD,
            },
        )

    def splits(self) -> Sequence[str]:
        """The splits that have samples."""
        return [split for split, count in self._counts().items() if count]

    def people(self, split: str) -> int:
        """How many identities the split has."""
        return num_people(self._counts(), split, self.num_identities)

    def items(self, split: str) -> Sequence[Item]:
        """All samples of one split; the people of a block take turns.

        Raises:
            ValueError: there is no such split.
        """
        found = refs(self._counts(), split, self.num_identities)
        return [Item(f"{split}-{ref.sample:07d}", ref) for ref in found]

    def open_maker(self) -> Maker:
        """Renders runs of items; keeps the heads of one block."""
        people = People(self.seed)

        def make_one(item: Item) -> Encoded:
            ref = Ref(*item.ref)
            return self._encode(item.key, ref, people.head(ref))

        return each(make_one)

    def head(self, ref: Ref) -> Head:
        """The person of one sample."""
        return build_person(self.seed, ref)

    def draw(self, ref: Ref, head: Head, expression: Expression) -> tuple[Frame, Scene, Picture, int]:
        """Frame, scene, picture (colour alone) and JPEG quality of one sample."""
        key = sample_key(self.seed, ref.split, ref.sample)
        frame = draw_frame(generator(key, "frame"), expression.units)
        scene = draw_scene(generator(key, "scene"), head.traits.wears_glasses, head.skin)
        rng = generator(key, "camera")
        camera = draw_camera(rng)
        view = View(self.size, self.margin, jitter=_draw_jitter(rng))
        picture = render(head, frame, scene, view, camera, rng, color_only=True)
        return frame, scene, picture, camera.quality

    def _encode(self, key: str, ref: Ref, head: Head) -> Encoded:
        expression, labels = draw_labels(self.seed, ref.split, ref.sample, identity_name(ref))
        frame, scene, picture, quality = self.draw(ref, head, expression)
        data: dict[str, Any] = labels.to_json()
        data["extra"] |= {
            **scene_to_json(frame, scene),
            "traits": head.traits.to_json(),
            "landmarks": np.round(picture.landmarks, 2).tolist(),
            "rendered": True,
        }
        members = {"jpg": encode_jpeg(picture.color, quality), "json": canonical_json(data)}
        return Encoded(key, members, -1 if labels.expr is None else EXPR8.index(labels.expr))
