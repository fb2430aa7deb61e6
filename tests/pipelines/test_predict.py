"""`predict`: every face of every picture once, cut out as in training, and nothing that stops it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from finetune.outputs import averaged_outputs, outputs_of
from pipelines.__main__ import main
from pipelines.checkpoint import CheckpointError, write_tensors
from pipelines.config import ConfigError
from pipelines.facetable import FaceColumns, FacePrediction, FaceTable, face_table
from pipelines.models import ModelSpec, build_model, load_model, model_file
from pipelines.predict import predict
from pipelines.predictconfig import PredictConfig
from pipelines.predictor import FacePredictor, FramePrediction, align_config
from pretrain.config import EncoderConfig
from shards.align import AlignConfig, Aligner, FaceDetector, load_image
from shards.keyed import generator
from shards.labels import AU12, EXPR8, DataError
from shards.render.actions import prototype
from shards.render.faces import RenderedFaces
from shards.render.head import build_head
from shards.render.picture import View, render
from shards.render.scene import draw_frame, draw_scene
from shards.sources.media import Media, MediaFrame
from shards.template import TEMPLATE
from shards.transforms import fit
from tests.shards.sources.test_video import write_video

Picture = NDArray[np.uint8]
QUIET = PredictConfig(batch_size=4, looks=1, device="cpu", quiet=True)
ENCODER = EncoderConfig("vit_tiny_patch16_224", (32, 32), (8, 8), embed_dim=32, depth=2, num_heads=2)
PLACE = ["file", "frame", "time_s", "face", "track", "x0", "y0", "x1", "y1"]
PLACE += ["detection", "status", "expression"]


def save_model(path: Path, spec: ModelSpec, alignment: Any) -> Path:
    model = build_model(spec, torch.Generator().manual_seed(1))
    write_tensors(path, model_file(model, spec, {"alignment": alignment, "rendered": True}))
    return path


@pytest.fixture(scope="module")
def emma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny EMMA that was made for the default faces."""
    spec = ModelSpec("emma", (32, 32), EXPR8, AU12, True, ENCODER, cnn_expr=EXPR8)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return save_model(path, spec, [dict(RenderedFaces().info.alignment)])


@pytest.fixture(scope="module")
def faces() -> list[Picture]:
    """Three rendered people, (240, 240, 3), head and shoulders of air around."""
    out = []
    for number, expression in enumerate(("happiness", "neutral", "surprise")):
        rng = generator(number, "predict")
        head = build_head(generator(number, "head"))
        frame, scene = draw_frame(rng, prototype(expression).units), draw_scene(rng, False, head.skin)
        out.append(render(head, frame, scene, View(240, margin=0.5), color_only=True).color)
    return out


@pytest.fixture
def folder(faces: Sequence[Picture], tmp_path: Path) -> Path:
    """Two faces side by side, one alone, none, and two files that are no pictures."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(np.hstack(faces[:2])).save(folder / "both.png")
    Image.fromarray(faces[2]).save(folder / "sub" / "one.jpg", quality=95)
    Image.fromarray(np.full((90, 120, 3), 128, np.uint8)).save(folder / "grey.png")
    (folder / '=1+1,"x.png').write_bytes(b"no picture")
    (folder / "cut.jpg").write_bytes((folder / "sub" / "one.jpg").read_bytes()[:3000])
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def test_every_face_has_a_row_and_every_other_file_a_reason(emma: Path, folder: Path, tmp_path: Path) -> None:
    records = predict(emma, folder, tmp_path / "out.csv", tmp_path / "drawn", QUIET)
    rows = read_rows(tmp_path / "out.csv")
    assert [(row["file"], row["face"], row["status"].partition(":")[0]) for row in rows] == [
        ("'=1+1,\"x.png", "", "unreadable"),
        ("both.png", "1", "ok"),
        ("both.png", "2", "ok"),
        ("cut.jpg", "", "unreadable"),
        ("grey.png", "", "no face"),
        ("sub/one.jpg", "1", "ok"),
    ]
    names = [*PLACE, *(f"expr.{n}" for n in EXPR8), *(f"au.{n}" for n in AU12), "valence", "arousal"]
    assert list(rows[0]) == names
    assert all(rows[row][name] == "" for row in (0, 3, 4) for name in names if name not in ("file", "status"))
    first, second = records[1:3]
    assert first.box and second.box and first.box[0] < second.box[0]
    assert float(rows[1]["x0"]) == pytest.approx(first.box[0], abs=0.05)
    assert sum(float(rows[1][f"expr.{name}"]) for name in EXPR8) == pytest.approx(1, abs=1e-5)
    assert rows[1]["expression"] == max(EXPR8, key=lambda name: float(rows[1][f"expr.{name}"]))
    assert sorted(str(p.relative_to(tmp_path / "drawn")) for p in (tmp_path / "drawn").rglob("*.jpg")) == [
        "both.png.jpg",
        "grey.png.jpg",
        "sub/one.jpg",
    ]


def test_a_row_says_what_the_model_says_of_the_aligned_face(emma: Path, folder: Path) -> None:
    """Reference: detection, alignment and model by hand."""
    [record] = predict(emma, folder / "sub" / "one.jpg", config=QUIET)
    picture = load_image((folder / "sub" / "one.jpg").read_bytes())
    [alignment] = Aligner(AlignConfig(mode="detect", size=112), "cpu").align([picture])
    [face] = alignment.faces
    image = torch.from_numpy(face.image.copy()).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(image, (32, 32), mode="bicubic", antialias=True)
    with torch.inference_mode():
        out = load_model(emma).model(small)
    assert record.box == face.box and record.landmarks is not None and face.landmarks is not None
    assert np.array_equal(record.landmarks, face.landmarks)
    assert list(record.expr_probs.values()) == pytest.approx(out.expr.softmax(1)[0].tolist(), abs=1e-5)
    assert list(record.au_probs.values()) == pytest.approx(out.au.sigmoid()[0].tolist(), abs=1e-5)
    assert (record.valence, record.arousal) == pytest.approx(out.va.clamp(-1, 1)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("looks", "of_video", "expected"), [(None, False, 10), (None, True, 1), (2, True, 2)]
)
def test_a_face_in_a_picture_is_looked_at_ten_times_and_one_in_a_video_once(
    emma: Path, looks: int | None, of_video: bool, expected: int
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    frame = MediaFrame("face", 3 if of_video else None, picture=picture)
    config = PredictConfig(looks=looks, align="none", device="cpu", quiet=True)
    [found] = FacePredictor(load_model(emma), config)([frame])
    image = fit(torch.from_numpy(found.faces[0].copy()).permute(2, 0, 1), (32, 32))[None]
    with torch.inference_mode():
        out = averaged_outputs(load_model(emma).model, image, expected)
        once = averaged_outputs(load_model(emma).model, image)
    assert out.va is not None and once.va is not None
    assert (found.rows[0].valence, found.rows[0].arousal) == pytest.approx(out.va[0].tolist(), abs=1e-6)
    assert expected == 1 or abs(float(out.va[0, 0] - once.va[0, 0])) > 1e-5


def test_batches_do_not_change_what_is_said(emma: Path, folder: Path) -> None:
    def figures(batch_size: int) -> list[float | None]:
        records = predict(emma, folder, config=PredictConfig(batch_size, device="cpu", quiet=True))
        return [x for r in records for x in (*r.expr_probs.values(), *r.au_probs.values(), r.valence)]

    assert figures(1) == pytest.approx(figures(7), abs=1e-5)


def test_json_has_the_same_names_and_values(emma: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("out.csv", "out.json"):
        predict(emma, folder, tmp_path / name, config=QUIET)
    rows, objects = read_rows(tmp_path / "out.csv"), json.loads((tmp_path / "out.json").read_text())
    assert [list(entry) for entry in objects] == [list(row) for row in rows]
    assert objects[0]["file"] == '=1+1,"x.png' and objects[0]["face"] is None
    assert objects[1]["valence"] == float(rows[1]["valence"]) and objects[1]["face"] == 1


@pytest.mark.parametrize(
    ("kind", "expr", "au", "va"),
    [
        ("cotex", ("anger", "joy"), (), False),
        ("dan", EXPR8, (), False),
        ("vit", (), AU12, False),
        ("vit", (), (), True),
        ("vit", EXPR8, ("AU1",), True),
        ("emma", EXPR8, AU12, True),
    ],
)
def test_every_kind_of_model_fills_the_columns_that_it_has(
    tmp_path: Path, kind: str, expr: tuple[str, ...], au: tuple[str, ...], va: bool
) -> None:
    spec = ModelSpec(kind, (32, 32), expr, au, va, ENCODER, cnn_expr=EXPR8)
    model = save_model(tmp_path / "model.safetensors", spec, [])
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "face.png")
    [record] = predict(
        model, tmp_path / "face.png", tmp_path / "o.csv", config=PredictConfig(align="none", quiet=True)
    )
    assert record.status == "ok" and record.face == 1 and record.box is None and record.detection is None
    assert tuple(record.expr_probs) == expr and tuple(record.au_probs) == au
    assert (record.expression is None) == (not expr) and (record.valence is None) == (not va)
    [row] = read_rows(tmp_path / "o.csv")
    assert (row["valence"] == "") == (not va)
    with torch.inference_mode():
        out = outputs_of(load_model(model).model, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert [None if x is None else tuple(x.shape) for x in out] == [
        (2, len(expr)) if expr else None,
        (2, len(au)) if au else None,
        (2, 2) if va else None,
    ]


class TestAlignment:
    """A model's file says how faces are to be cut out for it."""

    def test_a_recipe_of_our_own(self) -> None:
        recipe = AlignConfig(
            mode="detect", size=96, margin=0.2, min_face=40, min_confidence=0.8, detect_side=640
        )
        align, note = align_config([recipe.recipe()], QUIET)
        assert (align.mode, align.faces, align.size, align.margin) == ("detect", "all", 96, 0.2)
        assert (align.min_face, align.min_confidence, align.detect_side) == (40, 0.8, 640) and not note

    def test_options_go_before_the_recipe(self) -> None:
        config = PredictConfig(min_confidence=0.5, detect_side=1000, faces="largest")
        align, _ = align_config([AlignConfig(mode="given").recipe()], config)
        assert (align.min_confidence, align.detect_side, align.faces) == (0.5, 1000, "largest")

    @pytest.mark.parametrize(
        "recipe",
        [
            {"size": 128, "margin": 0.1, "template": TEMPLATE.tolist(), "detector": "projected"},
            AlignConfig(mode="none", size=128).recipe({"margin": 0.1, "template": "arcface-112"}),
        ],
    )
    def test_faces_that_were_aligned_before_are_searched_for_here(self, recipe: dict[str, Any]) -> None:
        align, note = align_config([recipe], QUIET)
        assert (align.mode, align.size, align.margin) == ("detect", 128, 0.1) and not note

    @pytest.mark.parametrize(
        "recipes", [[], [{}], [AlignConfig(mode="none", size=0).recipe({"made_by": "x"})]]
    )
    def test_a_file_that_does_not_say_is_said(self, recipes: list[dict[str, Any]]) -> None:
        align, note = align_config(recipes, QUIET)
        assert (align.mode, align.size, align.margin) == ("detect", 112, 0) and "align=none" in note

    def test_several_ways_are_said(self) -> None:
        recipes = [AlignConfig(mode="detect", margin=margin).recipe() for margin in (0.2, 0.0)]
        align, note = align_config(recipes, QUIET)
        assert align.margin == 0.2 and "several ways" in note

    def test_another_template_is_refused(self) -> None:
        with pytest.raises(DataError, match="align=none"):
            align_config([{"size": 112, "template": (TEMPLATE + 9).tolist()}], QUIET)
        with pytest.raises(DataError, match="align=none"):
            align_config([{"geometry": {"size": 112, "template": "other"}}], QUIET)


class TestTable:
    """A file is whole whenever the work ends."""

    COLUMNS = FaceColumns(("a",), ())
    ROW = FacePrediction("x.jpg", face=1, expr_probs={"a": 1.0}, expression="a", status="ok")

    @pytest.mark.parametrize("suffix", ["csv", "json"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("x")])
    def test_an_early_end_leaves_whole_rows_under_another_name(
        self, tmp_path: Path, suffix: str, error: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / f"out.{suffix}"
        path.write_text("an earlier result")
        with pytest.raises((KeyboardInterrupt, DataError)), face_table(path, self.COLUMNS) as table:
            table.add([self.ROW, self.ROW])
            raise error
        partial = tmp_path / f"out.partial.{suffix}"
        rows = json.loads(partial.read_text()) if suffix == "json" else read_rows(partial)
        assert [row["file"] for row in rows] == ["x.jpg"] * 2
        assert path.read_text() == "an earlier result" and len(list(tmp_path.iterdir())) == 2
        assert "2 rows" in capsys.readouterr().err

    def test_half_a_row_is_taken_off(self, tmp_path: Path) -> None:
        class Interrupted(io.FileIO):
            interrupt = False

            def write(self, data: Any) -> int:
                if not self.interrupt:
                    return super().write(bytes(data)[:7])  # a disk may take less than it is given
                super().write(bytes(data)[:7])
                raise KeyboardInterrupt

        with Interrupted(tmp_path / "t.csv", "w+") as file:
            table = FaceTable(file, self.COLUMNS, False)
            table.add([self.ROW])
            file.interrupt = True
            with pytest.raises(KeyboardInterrupt):
                table.add([self.ROW])
            table.finish()
        assert len(read_rows(tmp_path / "t.csv")) == 1 and (tmp_path / "t.csv").read_text().endswith("\n")

    def test_no_rows_leave_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), face_table(tmp_path / "o.csv", self.COLUMNS):
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []

    def test_names_that_are_not_unicode_are_written(self, tmp_path: Path) -> None:
        with face_table(tmp_path / "o.csv", self.COLUMNS) as table:
            table.add([FacePrediction("b\udcff.jpg", status="no face")])
        assert read_rows(tmp_path / "o.csv")[0]["file"] == "b\\udcff.jpg"


def test_ctrl_c_keeps_what_was_made(
    emma: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = FacePredictor.__call__
    chunks: list[int] = []

    def interrupted(self: FacePredictor, frames: Sequence[MediaFrame]) -> list[FramePrediction]:
        chunks.append(len(frames))
        if len(chunks) == 3:
            raise KeyboardInterrupt
        return list(whole(self, frames))

    monkeypatch.setattr(FacePredictor, "__call__", interrupted)
    words = ["predict", str(emma), str(folder), "--out", "o.csv", "--batch-size", "1", "--quiet"]
    assert main(words) == 130 and chunks == [1, 1, 1]
    assert [row["file"] for row in read_rows(Path("o.partial.csv"))] == [
        "'=1+1,\"x.png",
        "both.png",
        "both.png",
    ]
    assert not Path("o.csv").exists() and "3 rows" in capsys.readouterr().err


def test_no_more_than_a_batch_of_frames_is_held(
    emma: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read is written before more is read."""
    events: list[str] = []
    whole = Media.frames_of
    monkeypatch.setattr(Media, "frames_of", lambda self, name: events.append("read") or whole(self, name))
    monkeypatch.setattr(FaceTable, "add", lambda self, rows: events.append("write"))
    predict(emma, folder, Path("o.csv"), config=PredictConfig(batch_size=2, device="cpu", quiet=True))
    assert " ".join(events) == "read read write write read read write write read write"


def test_the_command_says_what_it_did(emma: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.txt").write_text("x")
    assert main(["predict", str(emma), str(folder), "--pictures", "drawn", "--quiet", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "in.predictions.csv: 3 faces" in said and "1 without a face, 2 unreadable" in said
    assert "1 other files left out" in said and "rendered faces" in said
    assert len(read_rows(Path("in.predictions.csv"))) == 6
    assert main(["predict", str(emma), str(folder / "cut.jpg"), "--out", "c.csv", "--quiet"]) == 1
    assert read_rows(Path("c.csv"))[0]["status"].startswith("unreadable: ")


@pytest.mark.parametrize(
    ("words", "status", "named"),
    [
        (["nowhere", "IN"], 1, "nowhere"),
        (["MODEL", "nowhere"], 1, "nowhere"),
        (["MODEL", "IN", "--out", "o.txt"], 2, ".csv or .json"),
        (["MODEL", "IN", "--batch-size", "0"], 2, "batch_size=0"),
        (["MODEL", "IN", "--every", "0"], 2, "every=0: must be at least 1"),
        (["MODEL", "IN", "--pictures", "IN"], 2, "pictures="),
        (["MODEL", "IN", "--pictures", "IN/sub/x"], 2, "pictures="),
        (["MODEL", "IN/both.png", "--pictures", "IN"], 2, "pictures="),
        (["MODEL", "IN", "--detect-side", "3"], 1, "detect_side"),
        (["MODEL", "IN", "--device", "abacus"], 2, "device=abacus"),
    ],
)
def test_what_cannot_be_is_one_message(
    emma: Path,
    folder: Path,
    words: list[str],
    status: int,
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [word.replace("MODEL", str(emma)).replace("IN", str(folder)) for word in words]
    assert main(["predict", *filled, "--quiet"]) == status
    assert named in capsys.readouterr().err
    assert [path for path in Path().iterdir() if path.suffix in (".csv", ".json", ".tmp")] == []


def test_errors_of_the_call(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        predict(tmp_path / "none", folder)
    with pytest.raises(ConfigError):
        PredictConfig(faces="some")


def test_annotated_pictures_can_be_read_at_any_size(
    emma: Path, faces: Sequence[Picture], tmp_path: Path
) -> None:
    """Small pictures are enlarged, large ones shrunk; cards stand beside the picture and hide none of it."""
    Image.fromarray(faces[0]).resize((120, 120)).save(tmp_path / "small.png")
    Image.fromarray(faces[0]).resize((3000, 2600)).save(tmp_path / "large.png")
    for name, longer in (("small", 640), ("large", 1280)):
        [record] = predict(emma, tmp_path / f"{name}.png", None, tmp_path / "drawn", QUIET)
        assert record.is_face
        with Image.open(tmp_path / "drawn" / f"{name}.png.jpg") as page:
            assert longer < page.width < longer + 450 and page.height >= longer * 0.86


def test_a_video_has_a_row_for_each_frame(emma: Path, faces: Sequence[Picture], tmp_path: Path) -> None:
    empty = np.full_like(faces[0], 128)
    path = write_video(tmp_path / "clip.mp4", [*[faces[0]] * 6, empty, empty, faces[2], faces[2]])
    drawn = tmp_path / "drawn"
    every = predict(emma, path, tmp_path / "o.csv", drawn, replace(QUIET, every=1))
    assert [(r.frame, r.status) for r in every] == [
        (number, "no face" if number in (6, 7) else "ok") for number in range(10)
    ]
    assert [r.seconds for r in every] == pytest.approx([number / 8 for number in range(10)])
    assert [p.name for p in sorted((drawn / "clip.mp4").iterdir())] == ["000000.jpg", "000008.jpg"]
    assert [r.track for r in every] == [None if n in (6, 7) else 1 for n in range(10)]
    some = predict(emma, path, config=replace(QUIET, every=3))
    assert [r.status for r in some] == [r.status for r in every]
    assert all((r.detection or 0) > 0.9 for r in some if r.is_face)
    assert some[0].landmarks == every[0].landmarks and some[3].landmarks == every[3].landmarks
    assert list(some[1].expr_probs.values()) == pytest.approx(list(every[1].expr_probs.values()), abs=0.05)


def on_wall(pictures: Sequence[tuple[Picture, float, float, float]], size: tuple[int, int]) -> Picture:
    """Pictures at (x, y) of their centres and scales, on a grey that is not even."""
    wall = np.random.default_rng(0).integers(90, 160, (size[1] // 8, size[0] // 8, 3), np.uint8)
    page = Image.fromarray(wall).resize(size, Image.Resampling.BICUBIC)
    for picture, x, y, scale in pictures:
        side = round(len(picture) * scale)
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        page.paste(small, (round(x - side / 2), round(y - side / 2)))
    return np.asarray(page)


def by_frame(rows: Sequence[FacePrediction], number: int) -> list[FacePrediction]:
    return [row for row in rows if row.frame == number and row.is_face]


class TestVideo:
    """Faces are searched for in every n-th frame and followed through the others."""

    SIZE = (480, 320)

    @pytest.fixture
    def searched(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Number of frames searched."""
        counts: list[int] = []
        whole = FaceDetector.detect

        def counted(self: FaceDetector, pictures: Sequence[Picture]) -> Any:
            counts.append(len(pictures))
            return whole(self, pictures)

        monkeypatch.setattr(FaceDetector, "detect", counted)
        return counts

    def video(self, path: Path, frames: Sequence[Sequence[tuple[Picture, float, float, float]]]) -> Path:
        return write_video(path, [on_wall(pictures, self.SIZE) for pictures in frames])

    def rows(self, model: Path, path: Path, every: int) -> list[FacePrediction]:
        return predict(model, path, config=PredictConfig(every=every, device="cpu", quiet=True))

    def test_a_followed_face_is_where_a_search_finds_it(
        self, emma: Path, faces: Sequence[Picture], tmp_path: Path, searched: list[int]
    ) -> None:
        """It moves by up to 8 pixels a frame and grows by a half; its box is about 110 pixels high."""
        path = self.video(
            tmp_path / "v.mp4",
            [[(faces[0], 150 + 80 * (1 - np.cos(n / 8)), 150, 0.8 + 0.016 * n)] for n in range(25)],
        )
        every = self.rows(emma, path, 1)
        assert sum(searched) == 25
        searched.clear()
        some = self.rows(emma, path, 8)
        assert sum(searched) == 4
        assert len(some) == len(every) == 25 and {row.track for row in some} == {1}
        apart = [
            float(np.linalg.norm(np.subtract(one.landmarks, other.landmarks), axis=1).mean())
            for one, other in zip(some, every)
            if one.landmarks and other.landmarks
        ]
        assert len(apart) == 25 and np.mean(apart) < 2.5 and max(apart) < 6
        assert [distance for number, distance in enumerate(apart) if number % 8 == 0] == [0.0] * 4

    def test_with_every_frame_searched_rows_are_those_of_the_search(
        self, emma: Path, faces: Sequence[Picture], tmp_path: Path
    ) -> None:
        """Reference: the aligner alone, frame by frame."""
        path = self.video(tmp_path / "v.mp4", [[(faces[1], 150 + 9 * n, 160, 1.0)] for n in range(4)])
        aligner = Aligner(AlignConfig(mode="detect", faces="all"), "cpu")
        for row, frame in zip(self.rows(emma, path, 1), Media(path).frames_of(path.name), strict=True):
            assert frame.picture is not None
            [face] = aligner.align([frame.picture])[0].faces
            assert face.landmarks is not None
            assert (row.box, row.detection) == (face.box, face.confidence)
            assert np.array_equal(row.landmarks or (), face.landmarks)

    def test_who_leaves_is_lost_at_once_and_who_enters_is_found_at_the_next_search(
        self, emma: Path, faces: Sequence[Picture], tmp_path: Path
    ) -> None:
        away = [[(faces[0], 240.0, 160 + 18.0 * n, 0.8)] for n in range(16)]
        nobody: list[list[tuple[Picture, float, float, float]]] = [[]] * 9
        path = self.video(tmp_path / "v.mp4", [*away, *nobody, *[[(faces[2], 120.0, 150.0, 0.9)]] * 6])
        rows = self.rows(emma, path, 9)
        seen = [bool(by_frame(rows, number)) for number in range(31)]
        searched = self.rows(emma, path, 1)
        every = [bool(by_frame(searched, number)) for number in range(31)]
        assert seen[:20] == every[:20] and not any(seen[16:27]) and all(seen[27:])
        assert every[25] and not seen[25], "it entered between two searches"
        assert [row.track for row in by_frame(rows, 0)] == [1]
        # What is left of a face at the edge may be lost and found again; a newcomer never gets its number.
        before = {row.track for number in range(20) for row in by_frame(rows, number)}
        after = {row.track for number in range(27, 31) for row in by_frame(rows, number)}
        assert len(after) == 1 and not after & before
        assert {row.status for row in rows if not row.is_face} == {"no face"}

    def test_two_faces_keep_their_tracks_when_they_change_sides(
        self, emma: Path, faces: Sequence[Picture], tmp_path: Path, searched: list[int]
    ) -> None:
        """The upper goes right, the lower left; `face` counts from left to right in each picture."""
        path = self.video(
            tmp_path / "v.mp4",
            [[(faces[0], 130 + 12.0 * n, 80, 0.6), (faces[1], 350 - 12.0 * n, 240, 0.6)] for n in range(20)],
        )
        for every in (1, 7):
            rows = self.rows(emma, path, every)
            assert len(rows) == 40
            upper = [row for row in rows if row.box and row.box[1] < 100]
            lower = [row for row in rows if row.box and row.box[1] >= 100]
            assert len(upper) == len(lower) == 20
            assert {row.track for row in upper} == {1} and {row.track for row in lower} == {2}
            assert [upper[number].face for number in (0, -1)] == [1, 2]

    def test_pictures_are_searched_one_by_one(
        self, emma: Path, folder: Path, searched: list[int], tmp_path: Path
    ) -> None:
        rows = predict(emma, folder, tmp_path / "o.csv", config=QUIET)
        assert sum(searched) == 3 and {row.track for row in rows} == {None}

    def test_a_photograph_that_is_moved(self, emma: Path, shared_data: Path, tmp_path: Path) -> None:
        photo = load_image((shared_data / "photos" / "single_007.jpg").read_bytes())
        path = self.video(
            tmp_path / "v.mp4", [[(photo, 240 + 40 * np.sin(n / 6), 160, 0.3 + 0.004 * n)] for n in range(20)]
        )
        every, some = self.rows(emma, path, 1), self.rows(emma, path, 20)
        apart = np.subtract([r.landmarks for r in some], [r.landmarks for r in every])
        height = np.mean([row.box[3] - row.box[1] for row in every if row.box])
        assert np.linalg.norm(apart, axis=2).mean() < 0.02 * height


def test_photographs(emma: Path, shared_data: Path, tmp_path: Path) -> None:
    photos = shared_data / "photos"
    records = predict(emma, photos, tmp_path / "o.csv", tmp_path / "drawn", QUIET)
    of = {name: [r for r in records if r.file == f"{name}.jpg"] for name in ("group_of_six", "no_face")}
    assert [r.face for r in of["group_of_six"]] == [1, 2, 3, 4, 5, 6]
    assert [(r.status, r.face) for r in of["no_face"]] == [("no face", None)]
    single = [r for r in records if r.file.startswith(("single", "tilted"))]
    assert len(single) == 13 and all((r.detection or 0) > 0.99 for r in single)
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 15
