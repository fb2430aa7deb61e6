"""docs/rig.md is run as it stands: every command, in order, from a rig's folder to scores."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.frames import decode_plane
from shards.manifest import load_manifest
from shards.shardset import open_shards
from tests.pipelines.tiny import TINY
from tests.shards.sources.clip_layouts import Files, png16, rig_files, rig_landmarks, rig_thermal
from tests.shards.sources.layouts import write_files
from tests.test_affwild2_page import call, commands_of, expanded

PAGE = Path(__file__).resolve().parents[1] / "docs" / "rig.md"
NUM_FRAMES = 12
SPLITS = ("train", "train", "train", "val", "test")

# What is put behind a command of the page: a model that takes a few steps in seconds.
MORE = {
    "shards build": ["build.workers=1", "clip_frames=6", "max_unused=0.05"],
    "finetune": [
        *TINY,
        "init=random",
        "mran.dim=4",
        "mran.hidden_dim=4",
        "mran.volume_dims=[4]",
        "mran.tuned_blocks=1",
        "clip.num_frames=3",
        "clip.frame_step=1",
        "clip.stride=2",
        "train.global_batch_size=4",
        "train.batch_size=0",
        "train.epochs=1",
        "train.precision=fp32",
        "train.save_every=0",
    ],
}


def fixture_files() -> Files:
    """Five recordings of five people; a colour picture and ratings are missing, a thermal one is damaged."""
    files = rig_files(len(SPLITS), NUM_FRAMES)
    names = [f"r{n}" for n in range(len(SPLITS))]
    rows = [f"{name},person {name},{split}" for name, split in zip(names, SPLITS)]
    files["recordings.csv"] = "\n".join(["recording,subject,split", *rows]) + "\n"
    files |= {f"{name}/landmarks.csv": rig_landmarks(NUM_FRAMES, faceless=(2,)) for name in names}
    times = [f"{n:04d}.jpg,{n / 30:.4f}" for n in range(NUM_FRAMES) if n != 7]
    files["r0/color.csv"] = "\n".join(["file,seconds", *times]) + "\n"
    files["r1/thermal/1.png"] = png16(rig_thermal(1, 1))[:70]
    return files


@dataclass(frozen=True)
class Done:
    """The page, followed: where, and what each command printed, by its words."""

    folder: Path
    said: Mapping[str, str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Every command of the page, in order."""
    folder = tmp_path_factory.mktemp("rig_page")
    write_files(folder / "home" / "rig", fixture_files())
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        patch.setattr("pipelines.report.write_report", lambda runs: runs[0] / "report.html")
        torch.set_num_threads(1)
        for words in commands_of(PAGE):
            status, text = call(*expanded(words, MORE))
            assert status == 0, f"{' '.join(words)}\n{text}"
            said[" ".join(words[1:])] = text
    return Done(folder, said)


def test_what_the_page_says_is_written_is_there(done: Done) -> None:
    named = set(re.findall(r"`((?:data|runs)/(?:rig|mran)[\w./]*)`", PAGE.read_text()))
    assert len(named) == 7
    assert [name for name in sorted(named) if not (done.folder / name).exists()] == []
    assert sorted(path.name for path in (done.folder / "look").iterdir()) == [f"r{n}.png" for n in range(5)]


def test_every_frame_and_rating_is_accounted_for(done: Done) -> None:
    manifest = load_manifest(done.folder / "data/rig/train")
    counts = manifest.build["settings"]["counts"]["train"]
    frames, labels = counts["frames"], counts["labels"]
    assert (frames["rows"], frames["used"], frames["unusable"]) == (36, 35, {"no picture": 1})
    assert counts["pictures"] == {"color: not in its table": 1}
    assert labels["used"] + labels["dropped"]["outside the video"] == 3 * 2 * (NUM_FRAMES + 6)
    # Thermal picture 1 of r1, at .121 s, is damaged: the nearest to frames 2 to 5, of which 2 has no face.
    assert manifest.build["frames"] == {
        "no landmarks": 3,
        "no picture": 1,
        "thermal: damaged picture": 3,
        "with color": 32,
        "with depth": 32,
        "with thermal": 29,
    }


def test_heat_in_the_shards_is_that_of_the_rig(done: Done) -> None:
    shards = open_shards(str(done.folder / "data/rig"), "val")
    plane = decode_plane(shards.read(0).members["thermal.0000.png"], "x")
    rows, columns = (
        np.floor((np.arange(112) + 4 - first) / step + 0.5).astype(int) for first, step in ((1.5, 4), (1, 3))
    )
    assert np.array_equal(plane, 4 * rig_thermal(0, 3)[rows[:, None], columns[None, :]])


def test_every_frame_of_the_test_is_predicted_once(done: Done) -> None:
    for run in ("rig", "color"):
        text = (done.folder / "runs/mran" / run / "predictions/test.csv").read_text()
        rows = list(csv.DictReader(text.splitlines()))
        assert [(row["group"], int(row["frame"])) for row in rows] == [("r4", n) for n in range(NUM_FRAMES)]
        assert all(abs(float(row["pred.valence"])) <= 1 for row in rows)
        assert float(rows[5]["valence"]) == pytest.approx(0.02 * 5 - 0.2, abs=1e-6)
    config = json.loads((done.folder / "runs/mran/rig/run.json").read_text())
    assert config and any("ccc" in text.lower() for words, text in done.said.items() if "evaluate" in words)
