"""Every number that decides what the rendered people look like, feel and radiate.

These are choices, not measurements. They were set by eye and by the rates of Aff-Wild2; nothing here may be
quoted as a fact about real faces. Lengths are in decimetres (the mesh's unit), angles in radians,
temperatures in degrees Celsius, colours in sRGB 0..255 unless a name says otherwise.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from shards.labels import EXPR8

RENDERER_VERSION: Final = 4
"""Raised whenever the same settings no longer give the same bytes."""

# --- Action units ---------------------------------------------------------------------------------

UNITS: Final = (
    "AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26",
    "AU5", "AU9", "AU17", "AU20", "AU43",
)  # fmt: skip
"""The twelve labelled units in label order, then five that expressions use and nobody labels."""

UNIT_SHAPES: Final = MappingProxyType(
    {
        "AU1": {"browInnerUp": 2.0},
        "AU2": {"browOuterUp*": 1.5},
        "AU4": {"browDown*": 1.2},
        "AU6": {"cheekSquint*": 0.9},
        "AU7": {"eyeSquint*": 1.35, "eyeBlink*": 0.2},
        "AU10": {"mouthUpperUp*": 1.25},
        "AU12": {"mouthSmile*": 0.9, "mouthUpperUp*": 0.3, "mouthLowerDown*": 0.08},
        "AU15": {"mouthFrown*": 1.35},
        "AU23": {"mouthRollUpper": 0.55, "mouthRollLower": 0.75, "mouthPucker": 0.55},
        "AU24": {"mouthPress*": 1.0, "mouthRollUpper": 0.35, "mouthRollLower": 0.35},
        "AU25": {"mouthLowerDown*": 1.2, "mouthUpperUp*": 0.6},
        "AU26": {"jawOpen": 0.55},
        "AU5": {"eyeWide*": 1.2},
        "AU9": {"noseSneer*": 1.3},
        "AU17": {"mouthShrugLower": 1.1},
        "AU20": {"mouthStretch*": 1.1},
        "AU43": {"eyeBlink*": 1.0},
    }
)
"""Unit -> face-unit shapes of the mesh and their weight at full intensity; `*` stands for Left and Right."""

UNIT_WINDOWS: Final = MappingProxyType(
    {
        "AU1": (-0.02, 9.0, 0.08),
        "AU2": (0.02, 9.0, 0.08),
        "AU4": (0.00, 0.42, 0.14),
        "AU6": (-0.62, 0.10, 0.14),
        "AU7": (-0.22, 0.12, 0.08),
        "AU10": (-0.85, -0.22, 0.10),
        "AU12": (-0.98, -0.20, 0.14),
        "AU15": (-1.00, -0.45, 0.12),
        "AU23": (-1.00, -0.50, 0.07),
        "AU24": (-1.00, -0.50, 0.07),
        "AU25": (-1.10, -0.42, 0.10),
        "AU5": (-0.12, 0.14, 0.08),
    }
)
"""Unit -> (bottom, top, softness) in height above the eyes; the shapes' faint tails outside are cut."""

WRINKLES: Final = MappingProxyType(
    {
        "forehead_middle": {"AU1": 1.0, "AU2": 0.15},
        "forehead_sides": {"AU2": 1.0, "AU1": 0.1},
        "glabella": {"AU4": 1.0, "AU9": 0.3},
        "crows_feet": {"AU6": 1.0},
        "lower_lid": {"AU7": 0.9, "AU6": 0.5},
        "nasolabial": {"AU10": 0.8, "AU12": 0.9, "AU9": 0.3},
        "nose_root": {"AU9": 1.0},
        "cheek_bulge": {"AU6": 1.0},
        "mouth_corner": {"AU12": 0.8, "AU20": 0.6},
        "marionette": {"AU15": 1.0},
        "chin": {"AU17": 1.0, "AU15": 0.25},
        "lip_lines": {"AU23": 1.0},
        "lip_press": {"AU24": 1.0},
        "lip_shadow": {"AU25": 0.7, "AU26": 0.5},
    }
)
"""Painted fold -> how much each unit deepens it."""

WRINKLE_DEPTH: Final = 0.45
"""Of a fold at full intensity, before age: colour is multiplied by exp(-depth * profile)."""

WRINKLE_TINT: Final = (0.8, 1.0, 1.05)
"""How much of that red, green and blue get: skin in a fold is redder, not greyer."""

FOLD_GAIN: Final = (0.6, 1.2, 0.5)
"""How deep a person's folds get: uniform between the first two, plus the third at full age."""

FOLD_REST: Final = (0.03, 0.10, 0.6)
"""Mean depth of a fold at rest, what full age adds to that mean, and the most; exponential, each fold by
itself: strangers' faces have folds that no unit drew."""

PROPORTIONS: Final = MappingProxyType(
    {
        "head/head-scale-vert-decr": (0.0, 0.8),
        "nose/nose-trans-up": (0.0, 0.8),
        "nose/nose-point-up": (0.0, 0.6),
        "nose/nose-base-up": (0.0, 0.6),
        "mouth/mouth-trans-up": (-0.3, 0.3),
        "mouth/mouth-upperlip-height-decr": (0.0, 1.0),
        "mouth/mouth-lowerlip-height-decr": (0.0, 1.1),
    }
)
"""Target of the mesh -> range of its weight in a person.

The mesh's average face is longer than people are: MTCNN finds its mouth 1.15 and its nose .66 eye distances
below the eyes; in photographs it is 1.0 to 1.1 and .5 to .6, so that real mouths at rest lie where smiles of
that face do."""

RESTING: Final = MappingProxyType(
    {
        "AU1": 0.20, "AU2": 0.20, "AU4": 0.25, "AU5": 0.13, "AU7": 0.13, "AU9": 0.18, "AU12": 0.06,
        "AU15": 0.12, "AU17": 0.10,
    }
)  # fmt: skip
"""Unit -> standard deviation of how far a person's face at rest lies along it, either way, cut at twice that.

No label counts it. Where all faces rest alike, a stranger's low or heavy brow reads as a frown: see
docs/results.md for what that costs on photographs."""

MAX_ASYMMETRY: Final = 0.2
"""Standard deviation of the difference between a unit's two sides is half of this fraction."""

# --- Expressions ----------------------------------------------------------------------------------

EXPR_PRIOR: Final = MappingProxyType(
    {
        "neutral": 0.30,
        "anger": 0.04,
        "disgust": 0.04,
        "fear": 0.04,
        "happiness": 0.17,
        "sadness": 0.12,
        "surprise": 0.09,
        "other": 0.20,
    }
)

AU_THRESHOLD: Final = 0.35
"""A unit is labelled 1 where its intensity is at least this."""

#                 neutral anger disgust fear happiness sadness surprise other
_AU_GIVEN_EXPR: Final = {
    "AU1": (0.020, 0.03, 0.02, 0.50, 0.020, 0.34, 0.45, 0.050),
    "AU2": (0.010, 0.01, 0.01, 0.25, 0.020, 0.01, 0.41, 0.030),
    "AU4": (0.030, 0.80, 0.50, 0.40, 0.002, 0.45, 0.01, 0.120),
    "AU6": (0.100, 0.15, 0.30, 0.10, 0.850, 0.15, 0.05, 0.220),
    "AU7": (0.330, 0.80, 0.60, 0.35, 0.500, 0.45, 0.06, 0.420),
    "AU10": (0.220, 0.50, 0.85, 0.35, 0.550, 0.33, 0.15, 0.330),
    "AU12": (0.060, 0.02, 0.04, 0.10, 0.950, 0.04, 0.07, 0.250),
    "AU15": (0.005, 0.03, 0.08, 0.01, 0.001, 0.14, 0.00, 0.030),
    "AU23": (0.010, 0.35, 0.03, 0.03, 0.002, 0.02, 0.00, 0.040),
    "AU24": (0.010, 0.25, 0.04, 0.01, 0.002, 0.025, 0.00, 0.040),
    "AU25": (0.530, 0.50, 0.65, 0.88, 0.800, 0.48, 0.92, 0.580),
    "AU26": (0.020, 0.04, 0.03, 0.30, 0.050, 0.02, 0.425, 0.060),
    "AU5": (0.020, 0.45, 0.02, 0.75, 0.020, 0.01, 0.75, 0.050),
    "AU9": (0.010, 0.12, 0.80, 0.03, 0.020, 0.02, 0.00, 0.060),
    "AU17": (0.030, 0.25, 0.45, 0.03, 0.010, 0.55, 0.00, 0.150),
    "AU20": (0.010, 0.05, 0.05, 0.70, 0.010, 0.05, 0.02, 0.060),
    "AU43": (0.040, 0.01, 0.04, 0.01, 0.040, 0.06, 0.00, 0.050),
}
AU_GIVEN_EXPR: Final = MappingProxyType({unit: dict(zip(EXPR8, row)) for unit, row in _AU_GIVEN_EXPR.items()})
"""Unit -> expression -> probability that the unit is at or above `AU_THRESHOLD`.

Under `EXPR_PRIOR` they give the units' rates in Aff-Wild2.
"""

EXPR_UNITS: Final = MappingProxyType(
    {
        "neutral": {},
        "anger": {"AU4": 1.0, "AU5": 0.5, "AU7": 0.8, "AU23": 0.9, "AU24": 0.7, "AU10": 0.3},
        "disgust": {"AU9": 1.0, "AU10": 0.9, "AU15": 0.6, "AU17": 0.5, "AU4": 0.4},
        "fear": {
            "AU1": 1.0, "AU2": 0.7, "AU4": 0.6, "AU5": 1.0, "AU7": 0.3, "AU20": 0.9, "AU25": 0.6, "AU26": 0.5,
        },
        "happiness": {"AU6": 0.8, "AU12": 1.0, "AU25": 0.6},
        "sadness": {"AU1": 1.0, "AU4": 0.6, "AU15": 1.0, "AU17": 0.6},
        "surprise": {"AU1": 1.0, "AU2": 1.0, "AU5": 0.9, "AU25": 0.8, "AU26": 1.0},
        "other": {"AU12": 0.4, "AU15": 0.4, "AU24": 0.5, "AU17": 0.3},
    }
)  # fmt: skip
"""Expression -> the units of its prototype (after EMFACS) and how typical they are."""

BLEND_RATE: Final = 0.25
"""How often a second expression tints the first, below the labelling threshold."""

VALENCE: Final = MappingProxyType(
    {
        "AU1": -0.20, "AU2": 0.35, "AU4": -0.55, "AU5": -0.05, "AU6": 0.30, "AU7": -0.10, "AU9": -0.60,
        "AU10": -0.15, "AU12": 1.00, "AU15": -0.60, "AU17": -0.25, "AU20": -0.45, "AU23": -0.35,
        "AU24": -0.30, "AU25": 0.05, "AU26": 0.15, "AU43": -0.05,
    }
)  # fmt: skip
AROUSAL: Final = MappingProxyType(
    {
        "AU1": 0.05, "AU2": 0.45, "AU4": 0.15, "AU5": 0.65, "AU6": 0.15, "AU7": 0.15, "AU9": 0.35,
        "AU10": 0.15, "AU12": 0.20, "AU15": -0.55, "AU17": -0.35, "AU20": 0.45, "AU23": 0.45, "AU24": 0.25,
        "AU25": 0.10, "AU26": 0.35, "AU43": -0.60,
    }
)  # fmt: skip
VA_BIAS: Final = (0.0, -0.22)
"""valence, arousal = tanh(bias + sum of weight * intensity)."""

MISSING: Final = MappingProxyType({"expr": 0.05, "va": 0.08, "au": 0.10, "au_unit": 0.02})
"""Fraction of samples without expression, without valence and arousal, without all units; of single units."""

# --- People ---------------------------------------------------------------------------------------

SKIN_TONES: Final = (
    (250, 216, 198), (240, 196, 170), (222, 170, 136), (190, 134, 100), (146, 96, 70), (104, 67, 50),
)  # fmt: skip
HAIR_COLOURS: Final = (
    (38, 32, 30), (58, 42, 34), (92, 64, 44), (128, 92, 60), (178, 142, 94), (150, 148, 146), (112, 58, 36),
)  # fmt: skip
HAIR_ODDS: Final = (0.26, 0.22, 0.18, 0.12, 0.08, 0.09, 0.05)
IRIS_COLOURS: Final = (
    (96, 60, 36), (72, 46, 30), (140, 110, 62), (96, 140, 178), (104, 136, 96), (132, 144, 152),
)  # fmt: skip
SCLERA: Final = (232, 226, 220)
TEETH: Final = (244, 238, 228)
TEETH_SHADE: Final = (0.5, 0.55)
"""Light on the hindmost teeth, and what the foremost get on top."""
TONGUE: Final = (168, 84, 84)
MOUTH_CAVITY: Final = (70, 24, 24)

BROW_LIFT: Final = (-0.03, 0.04)
BROW_ARCH: Final = (0.005, 0.10)
BROW_SLOPE: Final = 0.03
BROW_WIDTH: Final = (0.5, 1.8)
"""Of the painted brows: height, arch and outward rise in dm (the rise as a standard deviation), factor on
their width."""

SOCKET_SHADE: Final = (0.0, 0.55)
"""How dark the hollows beside the nose bridge are: deep-set eyes or flat ones."""

# --- Temperatures (degrees Celsius) ---------------------------------------------------------------

SKIN_C: Final = 34.2
SKIN_SPREAD_C: Final = 0.4
CANTHUS_C: Final = 1.0
NOSE_TIP_C: Final = -1.6
CHEEK_C: Final = -0.7
FOREHEAD_C: Final = 0.4
EAR_C: Final = -1.2
CHIN_C: Final = -0.4
NECK_C: Final = 0.6
EYE_C: Final = -0.6
MOUTH_C: Final = 36.0
HAIR_C: Final = 29.0
GLASSES_C: Final = 27.5
CLOTHES_C: Final = 28.0
AROUSED_NOSE_C: Final = -1.2
AROUSED_EYES_C: Final = 0.5
BREATH_C: Final = 0.35
EMISSIVITY: Final = 0.98
GRAZING_EMISSIVITY_LOSS: Final = 0.10

# --- Clips (seconds, Hz; shares of the frame's side) ----------------------------------------------

CLIPS_VERSION: Final = 1
"""As `RENDERER_VERSION`, of what clips add to the faces."""

HOLD_S: Final = (0.8, 2.4)
CHANGE_S: Final = (0.3, 0.9)
"""How long an expression is held, and how long one takes to become the next (onset, offset)."""

TALK_RATE: Final = 0.4
TALK_S: Final = (0.8, 2.5)
TALK_HZ: Final = (1.5, 3.5)
"""How many clips have somebody talk, for how long, and how fast the jaw goes."""

BLINK_HZ: Final = 0.3
BLINK_S: Final = 0.35
GAZE_S: Final = (0.4, 1.6)
BREATH_HZ: Final = (0.2, 0.3)

AUTONOMIC_CHANGE_S: Final = (1.0, 3.0)
AUTONOMIC_LAG_S: Final = 0.6
"""How long the autonomic state takes to change, and how long after it the skin shows it."""

AUTONOMIC_GAIN: Final = 2.5
"""How many times as strongly as by `AROUSED_NOSE_C` and `AROUSED_EYES_C` the skin of a clip shows the full
state: a small set must show plainly what it is to teach."""

AROUSAL_FROM_UNITS: Final = 0.6
AROUSAL_FROM_AUTONOMIC: Final = 0.4
"""arousal = first * (what `actions.affect` says of the units) + second * (2 * autonomic state - 1)."""

TRACKER_JITTER: Final = 0.6
"""Standard deviation of a landmark's error in a tracked clip, pixels of a 112 frame; it wanders smoothly."""

DARK_SHARE: Final = 0.3
DARK_EXPOSURE: Final = (0.01, 0.05)
DARK_NOISE: Final = (8.0, 14.0)
"""Fraction of clips whose colour is dark; factor on their exposure; noise, as `Camera.noise`."""

THERMAL_SHARE: Final = 0.5
"""Side of the thermal camera's pictures as a fraction of the others'."""

MISREGISTRATION: Final = 0.008
"""Standard deviation of the shift between cameras, in x and y, constant in a clip."""
