"""`RenderedClips`: the default clips of colour, depth and thermal video, a source like any other.

Every clip is a pure function of (seed, split, clip), as the faces are. Part of its arousal shows in the
thermal camera alone, and some clips are dark to the colour camera: so depth and heat have something to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards.align.decode import encode_jpeg
from shards.config import MODALITIES
from shards.frames import ZERO_CELSIUS_CK, encode_plane, frame_extension
from shards.keyed import generator, mix, sample_key
from shards.labels import ClipLabels
from shards.records import SPLITS, Encoded, Item, LabelSpace, Maker, SourceInfo, canonical_json, each
from shards.render import constants as c
from shards.render.camera import Camera, UInt8, UInt16, draw_camera, take_thermal
from shards.render.head import Head
from shards.render.motion import Motion, draw_motion
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
from shards.render.picture import DEFAULT_MARGIN, View, render
from shards.render.scene import Scene, draw_scene
from shards.template import template_geometry

_CLIPS = 2**22
"""Added to a split's number where the key is a clip's and not a face's."""


@dataclass(frozen=True)
class Setting:
    """Where a clip is taken, and with what: the same for all its frames.

    Attributes:
        scene: surroundings. camera: of colour and depth; what it says of heat goes for the thermal one.
        dark: the colour pictures are.
        depth_shift, thermal_shift: right and down, how far these cameras are off the colour one, as fractions
            of the frame.
    """

    scene: Scene
    camera: Camera
    dark: bool
    depth_shift: tuple[float, float]
    thermal_shift: tuple[float, float]


class Shot(NamedTuple):
    """One frame of a clip.

    Attributes:
        color: (S, S, 3) uint8. depth: (S, S) uint16 mm, 0 = hole.
        thermal: (S', S') uint16 centi-kelvin, S' = `THERMAL_SHARE` * S.
    """

    color: UInt8
    depth: UInt16
    thermal: UInt16


@dataclass(frozen=True)
class RenderedClips:
    """Rendered, aligned clips with valence and arousal of each frame; satisfies `shards.records.Source`.

    Each frame is aligned for itself by one recipe, with a tracker's small and smooth errors.

    Attributes:
        num_train, num_val, num_test: clips of each split; 0 leaves the split out.
        num_identities: people in the train split; the others have as many clips for each person.
        seed: of everything.
        num_frames: of a clip. fps: frames a second.
        size: of the frame, pixels. margin: see `View`.
    """

    num_train: int = 500
    num_val: int = 100
    num_test: int = 100
    num_identities: int = 500
    seed: int = 0
    num_frames: int = 10
    fps: float = 5.0
    size: int = 64
    margin: float = DEFAULT_MARGIN

    def __post_init__(self) -> None:
        check_counts(self._counts(), self.num_identities)
        if not 2 <= self.num_frames <= 3000 or not 1 <= self.fps <= 100:
            raise ValueError(
                f"a clip has 2 to 3000 frames at 1 to 100 a second, got {self.num_frames} at {self.fps:g}"
            )
        if not 32 <= self.size <= 512:
            raise ValueError(f"size must be 32 to 512 pixels, got {self.size}")

    def _counts(self) -> dict[str, int]:
        return dict(zip(SPLITS, (self.num_train, self.num_val, self.num_test)))

    @cached_property
    def info(self) -> SourceInfo:
        """What the manifest says of this data set."""
        return SourceInfo(
            name="rendered-clips",
            licence=LICENCE,
            kind="clips",
            rendered=True,
            label_space=LabelSpace((), (), True),
            alignment={
                "mode": "rendered",
                "geometry": template_geometry(self.size, self.margin),
                "detector": {"name": "projected mesh landmarks, tracked", "noise_px": c.TRACKER_JITTER},
            },
            settings={
                "renderer": c.RENDERER_VERSION,
                "clips": c.CLIPS_VERSION,
                "seed": self.seed,
                "counts": self._counts(),
                "num_identities": self.num_identities,
                "num_frames": self.num_frames,
                "fps": self.fps,
            },
        )

    def splits(self) -> Sequence[str]:
        """The splits that have clips."""
        return [split for split, count in self._counts().items() if count]

    def people(self, split: str) -> int:
        """How many identities the split has."""
        return num_people(self._counts(), split, self.num_identities)

    def items(self, split: str) -> Sequence[Item]:
        """All clips of one split; the people of a block take turns.

        Raises:
            ValueError: there is no such split.
        """
        found = refs(self._counts(), split, self.num_identities)
        return [Item(f"{split}-clip-{ref.sample:05d}", ref) for ref in found]

    def open_maker(self) -> Maker:
        """Renders runs of items; keeps the heads of one block."""
        people = People(self.seed)

        def make_one(item: Item) -> Encoded:
            ref = Ref(*item.ref)
            return self._encode(item.key, ref, people.head(ref))

        return each(make_one)

    def head(self, ref: Ref) -> Head:
        """The person of one clip."""
        return build_person(self.seed, ref)

    def motion(self, ref: Ref) -> Motion:
        """What the person of one clip does."""
        return draw_motion(generator(self._key(ref), "motion"), self.num_frames, self.fps)

    def setting(self, ref: Ref, head: Head) -> Setting:
        """Where and with what cameras one clip is taken."""
        key = self._key(ref)
        rng = generator(key, "camera")
        camera = draw_camera(rng)
        dark = bool(rng.random() < c.DARK_SHARE)
        exposure, noise = rng.uniform(*c.DARK_EXPOSURE), rng.uniform(*c.DARK_NOISE)
        if dark:
            camera = replace(camera, exposure=float(exposure), lift=0.0, noise=float(noise))
        depth, thermal = (c.MISREGISTRATION * rng.standard_normal((2, 2))).tolist()
        return Setting(
            scene=draw_scene(generator(key, "scene"), head.traits.wears_glasses, head.skin),
            camera=camera,
            dark=dark,
            depth_shift=(depth[0], depth[1]),
            thermal_shift=(thermal[0], thermal[1]),
        )

    def shots(self, ref: Ref, head: Head, motion: Motion, setting: Setting) -> Iterator[Shot]:
        """The frames of one clip, in order. The noise of each depends on its number, not on what it shows."""
        camera = replace(setting.camera, thermal_noise_c=0.0)
        for number in range(len(motion)):
            key = mix(self._key(ref), number)
            view = View(self.size, self.margin, jitter=motion.jitter[number])
            picture = render(
                head, motion.frame(number), setting.scene, view, camera, generator(key, "sensor")
            )
            assert picture.depth is not None
            assert picture.thermal is not None
            yield Shot(
                picture.color,
                _beside(picture.depth, setting.depth_shift),
                _by_thermal_camera(picture.thermal, setting, generator(key, "thermal")),
            )

    def _key(self, ref: Ref) -> int:
        return sample_key(self.seed, _CLIPS + ref.split, ref.sample)

    def _encode(self, key: str, ref: Ref, head: Head) -> Encoded:
        motion, setting = self.motion(ref), self.setting(ref, head)
        members: dict[str, bytes] = {}
        for number, shot in enumerate(self.shots(ref, head, motion, setting)):
            stored = (encode_jpeg(shot.color, setting.camera.quality), *map(encode_plane, shot[1:]))
            for modality, data in zip(MODALITIES, stored):
                members[frame_extension(modality, number)] = data
        valence, arousal = (np.round(values, 4).tolist() for values in motion.affect())
        scene = setting.scene
        labels = ClipLabels(
            num_frames=len(motion),
            fps=self.fps,
            valence=valence,
            arousal=arousal,
            identity=identity_name(ref),
            group=key,
            extra={
                "rendered": True,
                "dark": setting.dark,
                "autonomic": np.round(motion.autonomic, 4).tolist(),
                "light": motion.first.light.name,
                "glasses": scene.glasses is not None,
                "occluder": scene.occluder.kind if scene.occluder else None,
                "traits": head.traits.to_json(),
            },
        )
        return Encoded(key, members | {"json": canonical_json(labels.to_json())})


def _beside(depth: UInt16, shift: tuple[float, float]) -> UInt16:
    """(H, W) as a camera beside the other sees it, to the nearest pixel: values stay what they are."""
    height, width = depth.shape
    rows = np.clip(np.arange(height) - round(shift[1] * height), 0, height - 1)
    columns = np.clip(np.arange(width) - round(shift[0] * width), 0, width - 1)
    return np.asarray(depth[rows[:, None], columns])


def _by_thermal_camera(thermal: UInt16, setting: Setting, rng: np.random.Generator) -> UInt16:
    """(H, W) centi-kelvin as a smaller sensor with its own noise sees them from beside."""
    size, edge = len(thermal), len(thermal) // 8
    side = round(size * c.THERMAL_SHARE)
    step, (right, down) = size / side, setting.thermal_shift
    # Continued at its edges, for beyond them the shift finds nothing.
    celsius = np.pad((thermal.astype(np.float32) - ZERO_CELSIUS_CK) / 100, edge, mode="edge")
    small = Image.fromarray(celsius).transform(
        (side, side),
        Image.Transform.AFFINE,
        (step, 0.0, edge - right * size, 0.0, step, edge - down * size),
        Image.Resampling.BILINEAR,
    )
    return take_thermal(np.asarray(small, np.float32), setting.camera, rng)
