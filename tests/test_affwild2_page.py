"""docs/affwild2.md is run as it stands: every command, in order, from the official lists to the file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.__main__ import main
from pipelines.checkpoint import read_tensors
from shards.labels import AU12, EXPR8
from tests.pipelines.launched import PYTHON, environment
from tests.pipelines.tiny import TINY, TINY_MAE, TINY_RUN, last_checkpoint
from tests.shards.sources.affect_layouts import (
    HEADER,
    TEST_LIST,
    TRAINING,
    VALIDATION,
    Files,
    affectnet_files,
    affwild2_files,
    table,
)
from tests.shards.sources.layouts import celeba_files, drawn, write_files

PAGE = Path(__file__).resolve().parents[1] / "docs" / "affwild2.md"

# What is put behind a command of the page: a part of the data, and models that are trained in a second.
BUILD = ["allow_partial=true", "build.workers=1"]
RUN = ["train.epochs=0.7", "train.batch_size=0", "train.precision=fp32", "train.save_every=0"]
MORE = {
    "shards build affwild2": [*BUILD, "max_unused=0.18"],
    "shards build": BUILD,
    "pretrain": [*TINY_MAE, *RUN],
    "finetune dan_affectnet": [*TINY_RUN, *RUN, "encoder.image_size=32", "dan.num_heads=1"],
    "finetune mtl_affwild2": [*TINY, *RUN, "head.readout=flat", "head.readout_dim=4", "crop.resize=34"],
}

# Rows that cannot be used, and frames of the test list without a picture.
INVALID = "video60/00001.jpg,2.0,0.1,0" + ",0" * 12
NO_IMAGE = "video60/00002.jpg,0.2,0.1,0" + ",0" * 12
GONE = ("z-video_left/00005.jpg", "z-video_left/00009.jpg", "gone-video/00001.jpg")
FRAMES = {"z-video_left": (1, 2, 3, 4, 5, 6, 8, 9, 10, 30, 31), "z-video_right": (1, 2, 4), "a-video": (7, 8)}
NAMES = [f"{video}/{frame:05d}.jpg" for video, frames in FRAMES.items() for frame in frames] + [GONE[2]]


def annotated(video: str, frames: range, seed: int) -> list[str]:
    """Rows of one video in which all labels vary, some of them missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for frame in frames:
        valence, arousal = rng.uniform(-1, 1, 2).round(3) if frame % 5 else (-5, -5)
        units = rng.integers(0, 2, 12) if frame % 4 else [-1] * 12
        expr = rng.integers(0, 8) if frame % 6 else -1
        rows.append(f"{video}/{frame:05d}.jpg,{valence},{arousal},{expr},{','.join(map(str, units))}")
    return rows


TRAIN_ROWS = [*TRAINING, *annotated("video61", range(1, 21), 1), INVALID, NO_IMAGE]
VAL_ROWS = [
    *VALIDATION,
    *annotated("video93_left", range(1, 9), 2),
    *annotated("video94", range(3, 19, 2), 3),
]


def fixture_files() -> Files:
    """Aff-Wild2's fixture with enough frames to learn from and to tune on."""
    files = affwild2_files()
    rows = {"training_set_annotations.txt": TRAIN_ROWS, "validation_set_annotations.txt": VAL_ROWS}
    files |= {name: table(lines) for name, lines in rows.items()} | {TEST_LIST: table(NAMES)}
    frames = [row.split(",")[0] for row in (*TRAIN_ROWS, *VAL_ROWS) if row != NO_IMAGE]
    for seed, name in enumerate(frames):
        files.setdefault(f"cropped_aligned/{name}", drawn(100 + seed, (112, 112)))
    for seed, name in enumerate(name for name in NAMES if name not in GONE):
        files[f"cropped_aligned_2022_MTL_test/{name}"] = drawn(200 + seed, (112, 112))
    return files


def commands_of(page: Path) -> list[list[str]]:
    """The words of every command in a page's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def expanded(words: list[str], more_of: Mapping[str, list[str]]) -> list[str]:
    """A command's words without `faceprior`, with a test's own settings, and `~` as a shell reads it."""
    assert words[0] == "faceprior", f"{words}: the page is to use faceprior alone"
    text = " ".join(words[1:])
    more = next((settings for start, settings in more_of.items() if text.startswith(start)), [])
    return [str(Path(word).expanduser()) if word.startswith("~") else word for word in (*words[1:], *more)]


@dataclass(frozen=True)
class Done:
    """The page, followed.

    Attributes:
        folder: where it was.
        said: what each command printed, by its words.
    """

    folder: Path
    said: Mapping[str, str]

    def csv(self, run: str, split: str = "test") -> dict[str, dict[str, str]]:
        """name -> row of predictions/<split>.csv."""
        text = (self.folder / "runs/mtl" / run / "predictions" / f"{split}.csv").read_text()
        return {row["name"]: row for row in csv.DictReader(text.splitlines())}

    def submitted(self) -> dict[str, list[str]]:
        """name -> fields behind it in the submission."""
        lines = (self.folder / "predictions.txt").read_text().splitlines()[1:]
        return {line.split(",")[0]: line.split(",")[1:] for line in lines}


def call(*words: str) -> tuple[int, str]:
    """A command in this process: its status, and what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(list(words))
    return status, said.getvalue()


def launch(folder: Path, *words: str) -> tuple[int, str]:
    """A command in a process of its own."""
    command = [*PYTHON, "-m", "pipelines", *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def released_mae(run: Path, path: Path) -> None:
    """A .pth as MAE's authors hand theirs out, of a pretrained run."""
    torch.save({"model": read_tensors(last_checkpoint(run) / "model.safetensors").tensors}, path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Every command of the page, in order; the last two in processes of their own."""
    folder = tmp_path_factory.mktemp("page")
    home = folder / "home"
    write_files(home / "affwild2", fixture_files())
    write_files(home / "affectnet", affectnet_files())
    write_files(home / "celeba", celeba_files(20))
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(home))
        patch.setattr("pipelines.report.write_report", lambda runs: runs[0] / "report.html")
        torch.set_num_threads(1)
        for words in commands_of(PAGE):
            if words[1] == "import":
                released_mae(folder / "runs/pretrain/celeba", folder / words[2])
            own = expanded(words, MORE)
            status, text = launch(folder, *own) if own[0] == "submission" else call(*own)
            assert status == 0, f"{' '.join(words)}\n{text}"
            said[" ".join(words[1:])] = text
    return Done(folder, said)


def test_what_the_page_says_is_written_is_there(done: Done) -> None:
    named = set(
        re.findall(r"`((?:data|runs)/[\w./]+|[\w.]+\.safetensors|predictions\.txt)`", PAGE.read_text())
    )
    assert len(named) > 15
    inside = {"encoder.safetensors"}  # of a checkpoint
    assert [name for name in sorted(named - inside) if not (done.folder / name).exists()] == []
    assert list(done.folder.glob("runs/pretrain/celeba/checkpoints/step-*/encoder.safetensors"))
    imported = read_tensors(done.folder / "mae.safetensors").tensors
    encoder = read_tensors(
        last_checkpoint(done.folder / "runs/pretrain/celeba") / "encoder.safetensors"
    ).tensors
    assert all(torch.equal(imported[name], tensor) for name, tensor in encoder.items())
    members = json.loads((done.folder / "runs/mtl/soup/run.json").read_text())["soup"]["members"]
    assert 1 <= len(members) <= 2 and members[0].startswith("runs/mtl/emma_")


def test_the_manifests_account_for_every_row_of_the_lists(done: Done) -> None:
    expected = {
        "train": (len(TRAIN_ROWS), {"invalid": 1, "no image": 1}),
        "val": (len(VAL_ROWS), {}),
        "test": (len(NAMES), {"no image": len(GONE)}),
    }
    for split, (rows, unusable) in expected.items():
        manifest = json.loads((done.folder / "data/affwild2" / split / "manifest.json").read_text())
        counts = manifest["build"]["settings"]["counts"][split]
        assert (counts["rows"], counts["unusable"], counts["dropped"]) == (rows, unusable, {})
        assert counts["used"] == manifest["num_samples"] == rows - sum(unusable.values())
    (said,) = [text for words, text in done.said.items() if words.startswith("shards build affwild2")]
    assert "valence must be a number in [-1, 1], got '2.0'" in said and "'video60/00002.jpg'" in said


def test_missing_labels_are_missing_in_the_predictions(done: Done) -> None:
    rows = done.csv("emma_1", "val")
    assert sorted(rows) == sorted(row.split(",")[0] for row in VAL_ROWS)
    for line in VAL_ROWS:
        name, valence, _, expr, unit, *_ = line.split(",")
        row = rows[name]
        labelled = float(valence) != -5
        assert (row["valence"] != "") == (row["arousal"] != "") == labelled
        assert not labelled or float(row["valence"]) == pytest.approx(float(valence), abs=1e-6)
        assert row["expr"] == ("" if expr == "-1" else EXPR8[int(expr)])
        assert row["au.AU1"] == ("" if unit == "-1" else unit)
        assert row["group"] == name.split("/")[0] and int(row["frame"]) == int(name[-9:-4])


def test_the_file_has_every_frame_of_the_list_in_order_and_only_valid_values(done: Done) -> None:
    lines = (done.folder / "predictions.txt").read_text().split("\n")
    assert lines[0] == HEADER == "image,valence,arousal,expression,aus" and lines[-1] == ""
    assert [line.split(",")[0] for line in lines[1:-1]] == NAMES
    for valence, arousal, expr, *units in done.submitted().values():
        assert -1 <= float(valence) <= 1 and -1 <= float(arousal) <= 1
        assert expr in set("01234567") and len(units) == 12 and set(units) <= {"0", "1"}


def test_frames_without_a_picture_are_filled_by_the_stated_rule(done: Done) -> None:
    rows = done.submitted()
    assert rows["z-video_left/00005.jpg"] == rows["z-video_left/00004.jpg"]  # 6 is as near: the earlier
    assert rows["z-video_left/00009.jpg"] == rows["z-video_left/00008.jpg"]
    seen = np.array([[float(v) for v in rows[name]] for name in NAMES if name not in GONE])
    valence, arousal, expr, *units = (float(v) for v in rows["gone-video/00001.jpg"])
    np.testing.assert_allclose([valence, arousal], seen[:, :2].mean(0), atol=1.1e-6)
    assert expr == np.bincount(seen[:, 2].astype(int)).argmax()
    assert units == (seen[:, 3:].mean(0) > 0.5).astype(float).tolist()
    (said,) = [text for words, text in done.said.items() if "--tuned" in words]
    assert "17 rows, 14 predicted; 2 from the nearest frame (at most 1 away); 1 of videos without" in said
    assert "thresholds of action units: as tuned on val" in said


def test_the_ensemble_is_the_mean_by_hand(done: Done) -> None:
    for split in ("val", "test"):
        one, two, mean = (done.csv(run, split) for run in ("emma_1", "emma_2", "mean"))
        outputs = [column for column in next(iter(mean.values())) if column.startswith("pred.")]
        assert len(outputs) == 22 and one.keys() == two.keys() == mean.keys()
        pairs = [(one[name][column], two[name][column]) for name in mean for column in outputs]
        found = [float(mean[name][column]) for name in mean for column in outputs]
        by_hand = [(float(first) + float(second)) / 2 for first, second in pairs]
        np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-15)
        assert any(first != second for first, second in pairs)


def test_tuned_smoothing_and_thresholds_reach_the_file_by_frame_number_and_unit(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smoothing and thresholds that are sure to change something, in place of those that were chosen."""
    kept = {
        name: json.loads((done.folder / f"runs/mtl/mean/{name}.json").read_text())
        for name in ("smoothing", "thresholds")
    }
    assert kept["smoothing"]["split"] == kept["thresholds"]["split"] == "val"
    kept["smoothing"]["smoothing"] |= {"kind": "gaussian", "width": 2.0}
    before, video = done.csv("mean"), "z-video_left"
    frames = [frame for frame in FRAMES[video] if f"{video}/{frame:05d}.jpg" not in GONE]

    def smoothed(frame: int, column: str) -> float:
        near = [other for other in frames if abs(other - frame) <= 8]
        weights = [np.exp(-((other - frame) ** 2) / 8) for other in near]
        return float(
            np.average([float(before[f"{video}/{o:05d}.jpg"][column]) for o in near], weights=weights)
        )

    limits = {
        unit: smoothed(10, f"pred.au.{unit}") + (1e-6 if i % 2 else -1e-6) for i, unit in enumerate(AU12)
    }
    kept["thresholds"]["units"] = [{"au": unit, "threshold": limit} for unit, limit in limits.items()]
    for name, content in kept.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.chdir(done.folder)
    out = tmp_path / "file.txt"
    status, said = call(
        "submission",
        "runs/mtl/mean/predictions/test.csv",
        f"home/affwild2/{TEST_LIST}",
        str(out),
        "--tuned",
        str(tmp_path),
    )
    assert status == 0 and "smoothing as tuned on val: gaussian, sigma 2 frames" in said
    rows = {line.split(",")[0]: line.split(",")[1:] for line in out.read_text().splitlines()}
    for frame in frames:
        row = rows[f"{video}/{frame:05d}.jpg"]
        for place, column in enumerate(("pred.valence", "pred.arousal")):
            assert float(row[place]) == pytest.approx(smoothed(frame, column), abs=5.1e-7)
        best = max(EXPR8, key=lambda name: smoothed(frame, f"pred.expr.{name}"))
        assert int(row[2]) == EXPR8.index(best)
    assert rows[f"{video}/00010.jpg"][3:] == ["0" if i % 2 else "1" for i in range(12)]


@pytest.mark.parametrize("fault", ["a deleted row", "two swapped rows", "a NaN"])
def test_the_check_ends_with_1_and_names_the_fault(
    done: Done, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (done.folder / "predictions.txt").read_text().splitlines()
    if fault == "a deleted row":
        said = f"line 5: {lines.pop(4).split(',')[0]}: missing row"
    elif fault == "two swapped rows":
        lines[7], lines[8] = lines[8], lines[7]
        said = "reordered row: belongs in line"
    else:
        fields = lines[6].split(",")
        lines[6] = ",".join([fields[0], "nan", *fields[2:]])
        said = f"line 7: {fields[0]}: valence 'nan' is not a finite number"
    (tmp_path / "file.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(done.folder)
    words = ("runs/mtl/mean/predictions/test.csv", f"home/affwild2/{TEST_LIST}", str(tmp_path / "file.txt"))
    status, text = call("submission", *words, "--check")
    assert status == 1 and said in text and "file.txt: 1 fault(s)" in text


def test_a_folder_in_which_nothing_was_tuned_is_refused(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder)
    words = ("runs/mtl/mean/predictions/test.csv", f"home/affwild2/{TEST_LIST}", str(tmp_path / "file.txt"))
    status, text = call("submission", *words, "--tuned", "runs/dan/affectnet")
    assert status == 2 and "--tuned runs/dan/affectnet: nothing was tuned there" in text
    assert not (tmp_path / "file.txt").exists()


def test_an_ensemble_is_not_tuned_on_a_split_without_labels(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder)
    words = ("runs/mtl/emma_1/predictions/test.csv", "runs/mtl/emma_2/predictions/test.csv")
    status, text = call("ensemble", *words, "--out", str(tmp_path / "mean.csv"), "--tune", str(tmp_path))
    assert status == 1 and "split 'test': no sample has a label of what was predicted" in text
    assert not (tmp_path / "thresholds.json").exists() and not (tmp_path / "smoothing.json").exists()
