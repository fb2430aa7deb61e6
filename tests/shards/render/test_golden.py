"""Two rendered samples as they were when RENDERER_VERSION was last raised: change is meant, and said.

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

from shards.records import Encoded
from shards.render import RenderedFaces
from shards.render import constants as c

GOLDEN = Path(__file__).with_name("golden_faces.json")
VERTICES = [0, 500, 1000, 2000, 4000]
FACES = RenderedFaces(num_train=2, num_val=0, num_test=0, num_identities=2)


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
    found, wanted = flat(described()), flat(golden["faces"])
    assert found.keys() == wanted.keys(), said
    for name, value in wanted.items():
        if isinstance(value, float):
            tolerance = 1.0 if ".colours" in name else 0.02 if ".landmarks" in name else 1e-3
            assert found[name] == pytest.approx(value, abs=tolerance), f"{name}: {said}"
        else:
            assert found[name] == value, f"{name}: {said}"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"version": c.RENDERER_VERSION, "faces": described()}) + "\n")
