"""Rendered samples as they were when RENDERER_VERSION or CLIPS_VERSION was last raised: change is meant, and
said.

To write them anew: `python -m tests.shards.render.test_golden`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.frames import decode_plane
from shards.records import Encoded
from shards.render import RenderedClips, RenderedFaces
from shards.render import constants as c

GOLDEN = Path(__file__).with_name("golden_faces.json")
GOLDEN_CLIP = Path(__file__).with_name("golden_clip.json")
TOLERANCES = {".colours": 1.0, ".landmarks": 0.02, ".millimetres": 2.0, ".centi_kelvin": 2.0}
VERTICES = [0, 500, 1000, 2000, 4000]
FACES = RenderedFaces(num_train=2, num_val=0, num_test=0, num_identities=2)
CLIPS = RenderedClips(1, 0, 0, num_identities=1, fps=10.0, num_frames=3, size=48)
CLIP_VERSIONS = [c.RENDERER_VERSION, c.CLIPS_VERSION]


def described() -> list[dict[str, Any]]:
    """What two samples are: labels, landmarks, a few vertices of the head, and colours on a 4×4 grid."""
    items = FACES.items("train")
    out = []
    for item, made in zip(items, FACES.open_maker()(items)):
        assert isinstance(made, Encoded)
        with Image.open(io.BytesIO(made.members["jpg"])) as image:
            pixels = np.asarray(image, np.float64)
        out.append(
            {
                "labels": json.loads(made.members["json"]),
                "vertices": FACES.head(item.ref).neutral[VERTICES].astype(float).round(5).tolist(),
                "colours": pixels.reshape(4, 28, 4, 28, 3).mean((1, 3)).round(1).tolist(),
            }
        )
    return out


def described_clip() -> dict[str, Any]:
    """What a clip is: labels, and of its last frame colours, mm in the middle, and centi-kelvin."""
    (made,) = CLIPS.open_maker()(CLIPS.items("train"))
    assert isinstance(made, Encoded)
    with Image.open(io.BytesIO(made.members["color.0002.jpg"])) as image:
        pixels = np.asarray(image, np.float64)
    depth, thermal = (decode_plane(made.members[f"{name}.0002.png"], name) for name in ("depth", "thermal"))
    middles = np.median(depth.reshape(4, 12, 4, 12).swapaxes(1, 2).reshape(4, 4, 144), axis=2)
    return {
        "labels": json.loads(made.members["json"]),
        "colours": pixels.reshape(4, 12, 4, 12, 3).mean((1, 3)).round(1).tolist(),
        "millimetres": middles[:, 1:3].astype(float).tolist(),
        "centi_kelvin": thermal.reshape(4, 6, 4, 6).mean((1, 3)).round(1).tolist(),
    }


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of plain JSON values by its path."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in flat(value[key], f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{name}[{i}]").items()}
    return {name: value}


def test_a_renderer_of_this_version_gives_these_faces() -> None:
    golden = json.loads(GOLDEN.read_bytes())
    said = "raise RENDERER_VERSION if this change of the faces is meant, and write the golden file anew"
    assert golden["version"] == c.RENDERER_VERSION, said
    compare(described(), golden["faces"], said)


def test_a_renderer_of_these_versions_gives_this_clip() -> None:
    golden = json.loads(GOLDEN_CLIP.read_bytes())
    said = "raise CLIPS_VERSION if this change of the clips is meant, and write the golden file anew"
    assert golden["versions"] == CLIP_VERSIONS, said
    compare(described_clip(), golden["clip"], said)


def compare(found: Any, wanted: Any, said: str) -> None:
    """Plain JSON values, floats to what another machine's rounding may change."""
    found, wanted = flat(found), flat(wanted)
    assert found.keys() == wanted.keys(), said
    for name, value in wanted.items():
        if isinstance(value, float):
            tolerance = next((t for part, t in TOLERANCES.items() if part in name), 1e-3)
            assert found[name] == pytest.approx(value, abs=tolerance), f"{name}: {said}"
        else:
            assert found[name] == value, f"{name}: {said}"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"version": c.RENDERER_VERSION, "faces": described()}) + "\n")
    GOLDEN_CLIP.write_text(json.dumps({"versions": CLIP_VERSIONS, "clip": described_clip()}) + "\n")
