"""What may change from frame to frame (`Frame`) and what stays for a picture or a clip (`Scene`).

A clip is a sequence of `Frame`s over one `Head` and one `Scene`: smooth unit intensities, pose, gaze and
light in, smooth pictures out. Nothing in a frame is random; what is random is drawn here once, from a
generator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shards.render import constants as c
from shards.render.geometry import Float32, linear_rgb


@dataclass(frozen=True)
class Pose:
    """Of the head, in radians: yaw > 0 turns towards the image's right, pitch > 0 down, roll > 0 tilts."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class Light:
    """One key light and what comes from everywhere.

    Attributes:
        direction: towards the key light, camera axes (right, up, towards the camera); any length.
        key, ambient: linear RGB; a face under key (1, 1, 1) and ambient (0, 0, 0) is fully lit where it
            faces it.
        name: the light in one word, for reports.
    """

    direction: tuple[float, float, float] = (0.25, 0.5, 1.0)
    key: tuple[float, float, float] = (0.75, 0.75, 0.75)
    ambient: tuple[float, float, float] = (0.35, 0.35, 0.35)
    name: str = "studio"


@dataclass(frozen=True)
class Frame:
    """Everything about one head at one instant.

    Attributes:
        units: (17,) intensities 0..1, order of `constants.UNITS`. asymmetry: (17,) left minus right,
            fraction.
        pose, light: see there. gaze: right and up, as sines. distance: camera to eyes, dm.
        autonomic: arousal of the skin's blood flow, 1 for the change that the constants state, seen by the
            thermal camera alone (nose tip cools, eye region warms); the caller lets it lag. breath: -1 in ..
            1 out.
    """

    units: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(c.UNITS)))
    asymmetry: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(c.UNITS)))
    pose: Pose = Pose()
    light: Light = Light()
    gaze: tuple[float, float] = (0.0, 0.0)
    distance: float = 7.0
    autonomic: float = 0.0
    breath: float = 0.0


@dataclass(frozen=True)
class Glasses:
    """Worn glasses: sizes in dm, rim colour linear RGB, lens tint as the fraction of light that passes."""

    radius: tuple[float, float]
    squareness: float
    rim: float
    colour: tuple[float, float, float]
    passes: float


@dataclass(frozen=True)
class Occluder:
    """Something in the way: a polygon with round corners, `points` (N, 2) as fractions of the frame."""

    kind: str
    points: NDArray[np.float64]
    colour: tuple[float, float, float]
    celsius: float
    nearer_mm: float


@dataclass(frozen=True)
class Scene:
    """What surrounds the head.

    Attributes:
        backdrop: (h, w, 3) uint8 sRGB, stretched smoothly over the frame. wall_mm: its distance beyond the
            head.
        room_c: temperature of the background. glasses, occluder: None if absent.
    """

    backdrop: NDArray[np.uint8] = field(default_factory=lambda: np.full((1, 1, 3), 150, np.uint8))
    wall_mm: float = 1200.0
    room_c: float = 23.5
    glasses: Glasses | None = None
    occluder: Occluder | None = None


def draw_pose(rng: np.random.Generator) -> Pose:
    """Mostly towards the camera, at most about 40 degrees away."""
    yaw, pitch, roll = rng.standard_normal(3) * (0.32, 0.18, 0.10)
    return Pose(
        float(np.clip(yaw, -0.65, 0.65)), float(np.clip(pitch, -0.40, 0.40)), float(np.clip(roll, -0.3, 0.3))
    )


def draw_light(rng: np.random.Generator) -> Light:
    """Warm to cool, hard to soft, from any side in front, now and then dim."""
    azimuth, height = float(np.clip(rng.normal(0, 0.85), -1.5, 1.5)), float(rng.uniform(-0.2, 1.2))
    contrast = float(rng.uniform(0.2, 1.0))
    warmth = float(rng.normal(0, 1))
    tint = np.array([1 + 0.12 * warmth, 1.0, 1 - 0.14 * warmth])
    other = np.array([1 - 0.06 * warmth, 1.0, 1 + 0.08 * warmth])
    level = float(np.exp(rng.normal(0, 0.12)))
    key = level * 0.95 * contrast * np.clip(tint, 0.6, 1.4)
    ambient = level * (0.78 - 0.55 * contrast) * np.clip(other, 0.7, 1.3)
    side = "front" if abs(azimuth) < 0.4 else ("left" if azimuth < 0 else "right")
    return Light(
        (float(np.sin(azimuth)), height, float(np.cos(azimuth))),
        (float(key[0]), float(key[1]), float(key[2])),
        (float(ambient[0]), float(ambient[1]), float(ambient[2])),
        f"{side}-{'hard' if contrast > 0.6 else 'soft'}",
    )


def draw_backdrop(rng: np.random.Generator, side: int = 56) -> NDArray[np.uint8]:
    """(h, w, 3) sRGB, at most `side` wide: a graded wall, perhaps furniture, perhaps blurred clutter."""
    grey, saturation = rng.uniform(30, 235), rng.uniform(5, 45)
    corners = np.clip(grey + rng.normal(0, 30, (2, 2, 1)) + rng.normal(0, saturation, (1, 1, 3)), 0, 255)
    image = Image.fromarray(corners.astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 8)) if rng.random() < 0.7 else 0):
        x, y = rng.uniform(-0.2, 1, 2) * side
        w, h = rng.uniform(0.05, 0.7, 2) * side
        fill = tuple(int(v) for v in np.clip(rng.uniform(20, 240) + rng.normal(0, 22, 3), 0, 255))
        shape = draw.ellipse if rng.random() < 0.25 else draw.rectangle
        shape((x, y, x + w, y + h), fill=fill)
    if rng.random() < 0.35:
        blobs = rng.uniform(0, 255, (7, 7, 1)) + rng.normal(0, 30, (7, 7, 3))
        grain = Image.fromarray(np.clip(blobs, 0, 255).astype(np.uint8))
        clutter = grain.resize((side, side), Image.Resampling.BICUBIC)
        image = Image.blend(image, clutter, float(rng.uniform(0.1, 0.4)))
    blur = int(rng.integers(8, side + 1))
    if rng.random() < 0.6:
        image = image.resize((blur, blur), Image.Resampling.BOX)
    return np.asarray(image)


def draw_glasses(rng: np.random.Generator) -> Glasses:
    """Rims of any common shape; lenses clear or, seldom, a little tinted."""
    dark = rng.random() < 0.7
    colour = linear_rgb(
        np.clip((rng.uniform(12, 60) if dark else rng.uniform(80, 180)) + rng.normal(0, 15, 3), 5, 255)
    )
    return Glasses(
        radius=(float(rng.uniform(0.20, 0.245)), float(rng.uniform(0.15, 0.21))),
        squareness=float(rng.uniform(2.0, 4.5)),
        rim=float(rng.uniform(0.012, 0.03)),
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
        passes=float(rng.uniform(0.6, 0.85) if rng.random() < 0.15 else rng.uniform(0.9, 1.0)),
    )


def draw_occluder(rng: np.random.Generator, skin: Float32) -> Occluder:
    """A hand or a thing that enters from the side or from below and covers a small part of the face."""
    hand = rng.random() < 0.5
    edge = float(rng.uniform(0.15, 0.85))
    entry = rng.integers(0, 3)
    reach, width = float(rng.uniform(0.12, 0.30)), float(rng.uniform(0.10, 0.28))
    lean = float(rng.normal(0, 0.12))
    across = np.array([-width / 2, -width / 2 + lean, width / 2 + lean, width / 2]) + edge
    inward = np.array([-0.1, reach, reach * rng.uniform(0.7, 1.1), -0.1])
    points = [(inward, across), (1 - inward, across), (across, 1 - inward)][int(entry)]
    colour = skin * 0.9 if hand else linear_rgb(rng.uniform(15, 230, 3))
    return Occluder(
        kind="hand" if hand else "object",
        points=np.stack(points, axis=1),
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
        celsius=float(rng.uniform(31, 34) if hand else rng.uniform(22, 27)),
        nearer_mm=float(rng.uniform(30, 120)),
    )


def draw_scene(rng: np.random.Generator, wears_glasses: bool, skin: Float32) -> Scene:
    """A place: backdrop, room temperature, glasses for those who wear them, seldom something in the way."""
    return Scene(
        backdrop=draw_backdrop(rng),
        wall_mm=float(rng.uniform(400, 2500)),
        room_c=float(rng.normal(23.0, 1.2)),
        glasses=draw_glasses(rng) if wears_glasses and rng.random() < 0.6 else None,
        occluder=draw_occluder(rng, skin) if rng.random() < 0.08 else None,
    )


def draw_frame(rng: np.random.Generator, units: NDArray[np.float64], autonomic: float = 0.0) -> Frame:
    """A still: pose, light, gaze, distance and the two sides' difference around given units (17,)."""
    side = rng.normal(0, c.MAX_ASYMMETRY / 2, len(units))
    gaze = rng.normal(0, 0.12, 2)
    return Frame(
        units=units,
        asymmetry=np.clip(side, -2 * c.MAX_ASYMMETRY, 2 * c.MAX_ASYMMETRY),
        pose=draw_pose(rng),
        light=draw_light(rng),
        gaze=(float(np.clip(gaze[0], -0.35, 0.35)), float(np.clip(0.7 * gaze[1], -0.2, 0.2))),
        distance=float(rng.uniform(5.5, 13.0)),
        autonomic=autonomic,
        breath=float(rng.uniform(-1, 1)),
    )


def scene_to_json(frame: Frame, scene: Scene) -> dict[str, Any]:
    """Pose, light and what is in the way, as plain JSON values."""
    return {
        "pose": [round(angle, 4) for angle in (frame.pose.yaw, frame.pose.pitch, frame.pose.roll)],
        "light": frame.light.name,
        "glasses": scene.glasses is not None,
        "occluder": scene.occluder.kind if scene.occluder else None,
    }
