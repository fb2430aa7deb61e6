"""What an evaluation of clips leaves for the report: figures by hand, pictures only where that is allowed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import clip_views
from pipelines.clip_charts import recording_curves
from pipelines.clip_views import (
    _attention_strips,
    attention_on_regions,
    clip_errors,
    head_shares,
    leave_out,
    save_clip_views,
)
from pipelines.predictions import build_predictions
from pipelines.predictions_csv import write_csv
from pipelines.score_pages import score_pages
from shards.shardset import ShardSet, open_shards
from shards.template import template_geometry
from tests.pipelines.tiny_mran import build, predictor_of, spec_of
from tests.shards.made_clips import made_clips

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = made_clips(tmp_path_factory.mktemp("clips") / "set", counts={"val": 5})
    return open_shards(str(folder), "val")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The same without depth; half of each thermal picture is warmer than 30 degrees."""
    left_out = frozenset((n, f"depth.{f:04d}.png") for n in range(5) for f in range(14))
    folder = made_clips(tmp_path_factory.mktemp("warm") / "set", counts={"val": 5}, left_out=left_out)
    return open_shards(str(folder), "val")


def test_attention_on_the_head_by_hand() -> None:
    """Of four places the upper left is head, the lower left half, and half of the lower right is unknown."""
    depth = torch.full((4, 4), 3.0)
    depth[:2, :2], depth[2:, 0], depth[2:, 2] = -0.5, 2.9, 0.0
    attention = torch.tensor([[2.5, 0.5], [1.0, 0.0]])
    found = head_shares(attention[None, None], depth[None, None, None], "depth")
    assert found.shape == (1, 1, 2)
    assert found[0, 0].tolist() == pytest.approx([(2.5 + 0.5) / 4.0, 1.5 / 3.5])
    warm = head_shares(attention[None, None], torch.where(depth < 3, 0.2, -1.0)[None, None, None], "thermal")
    assert warm[0, 0].tolist() == pytest.approx([(2.5 + 0.5) / 4.0, (1 + 0.5 + 0.5) / 4])
    nothing = head_shares(attention[None, None], torch.zeros(1, 1, 1, 4, 4), "depth")
    assert nothing.tolist() == [[[0.0, 0.0]]]


def test_clips_are_ranked_by_their_labelled_frames() -> None:
    columns = {
        "sample": torch.tensor([0.0, 0.0, 2.0, 3.0]),
        "va": torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.2, 0.2], [0.0, 0.0]]),
        "va_target": torch.tensor([[0.0, torch.nan], [0.0, 0.5], [0.2, 0.2], [torch.nan, torch.nan]]),
    }
    assert clip_errors(columns) == {0: pytest.approx((0.5 / 3) ** 0.5), 2: 0.0}


def test_a_modality_that_is_left_out_is_as_one_that_is_not_there(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_views, "_RESAMPLES", 5)
    spec = spec_of()
    predictor, model = predictor_of(shards, spec), build(spec)
    rows = leave_out(predictor, model, predictor.columns(model), list(range(len(shards))))
    names = [(), ("color",), ("depth",), ("thermal",), ("depth", "thermal")]
    assert [row.without for row in rows] == names
    left_out = frozenset((n, f"thermal.{f:04d}.png") for n in range(5) for f in range(14))
    cold = open_shards(str(made_clips(tmp_path / "cold", counts={"val": 5}, left_out=left_out)), "val")
    without = leave_out(predictor_of(cold, spec), model, predictor_of(cold, spec).columns(model), range(5))
    assert without[0].ccc_valence == pytest.approx(rows[3].ccc_valence, abs=1e-6)
    means = [(row.ccc_valence + row.ccc_arousal) / 2 for row in rows]
    assert rows[3].change.value == pytest.approx(means[3] - means[0])
    assert rows[1].ccc_valence == rows[1].ccc_arousal == 0  # without colour nothing moves


def test_the_files_and_the_page_made_of_them(
    warm: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_views, "_RESAMPLES", 5)
    spec, folder = spec_of(), tmp_path / "predictions"
    predictor, model = predictor_of(warm, spec), build(spec)
    columns = predictor.columns(model)
    save_clip_views(folder, predictor, model, columns)
    write_csv(predictor.predictions(columns), folder / "val.csv")
    data = json.loads((folder / "val.clips.json").read_text())
    assert data["num_clips"] == 5 and data["attention"][0]["by"] == "thermal"
    [page] = score_pages(tmp_path)
    assert [table.header[0] for table in page.tables] == ["without", "region"]
    assert [row[0] for row in page.tables[0].rows][-1] == "depth and thermal"
    titles = [
        title.partition(",")[0].partition(":")[0] for title, png in page.pictures if png[:4] == b"\x89PNG"
    ]
    assert titles == [
        "valence and arousal",
        "all recordings",
        "attention",
        "the worst clips (by RMSE)",
    ]
    assert page.recordings[0][0] == "valence, CCC"
    closed = [replace(manifest, licence="for research alone") for manifest in warm.manifests]
    private = ShardSet(warm.folders)
    private.manifests = closed
    save_clip_views(folder, predictor_of(private, spec), model, columns, leaving_out=False)
    assert sorted(path.name for path in folder.iterdir()) == ["val.clips.json", "val.csv"]
    assert len(score_pages(tmp_path)[0].tables) == 1


def aligned(shards: ShardSet) -> ShardSet:
    """The same shards, their faces by the template."""
    known = ShardSet(shards.folders)
    recipe = {"geometry": template_geometry(112, 0.1)}
    known.manifests = [replace(manifest, alignment=recipe) for manifest in shards.manifests]
    return known


def test_colour_alone_has_nothing_to_leave_out_but_a_head_to_look_at(warm: ShardSet) -> None:
    spec = spec_of(guidance="none")
    spec = replace(spec, clip=replace(spec.clip, modalities=("color",)))
    predictor, model = predictor_of(aligned(warm), spec), build(spec)
    assert len(leave_out(predictor, model, predictor.columns(model), [0, 1])) == 1
    face, head = attention_on_regions(predictor, model, [1])
    assert (face.region, face.by, head.region, head.by) == ("face", "alignment", "head", "thermal")
    assert 0 < head.area < 1 and 0.2 < face.area < 0.5 and face.num_frames >= head.num_frames
    assert head.ratio.value == pytest.approx(head.attention / head.area, rel=0.2)
    assert np.isfinite([head.ratio.low, head.ratio.high]).all()


def test_a_frame_without_depth_is_measured_by_its_warmth_whatever_else_is_in_the_batch(
    warm: ShardSet, tmp_path: Path
) -> None:
    """The made depth is head all over, which says nothing: of the first clip no frame counts."""
    left_out = frozenset((1, f"depth.{f:04d}.png") for f in range(14))
    folder = made_clips(tmp_path / "mixed", counts={"val": 2}, left_out=left_out)
    model = build(spec_of())
    mixed = attention_on_regions(predictor_of(open_shards(str(folder), "val"), spec_of()), model, [0, 1])[-1]
    alone = attention_on_regions(predictor_of(warm, spec_of()), model, [1])[-1]
    assert mixed.region == alone.region == "head"
    assert (mixed.by, mixed.num_frames) == ("thermal", alone.num_frames)


def test_attention_is_drawn_over_the_frames_that_are_named_also_with_a_lag(shards: ShardSet) -> None:
    spec = spec_of()
    late = replace(spec, clip=replace(spec.clip, lag_seconds=0.4))
    [plain], [lagging] = (_attention_strips(predictor_of(shards, s), build(spec), [3]) for s in (spec, late))
    assert plain.frames == lagging.frames
    np.testing.assert_array_equal(plain.pictures, lagging.pictures)


def test_clips_without_labels_are_not_gone_through_again(
    warm: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_views, "_LEFT_OUT_FRAMES", 1)  # the first clip alone
    monkeypatch.setattr(clip_views, "may_be_shown", lambda _: False)
    predictor, model = predictor_of(warm, spec_of()), build(spec_of())
    columns = {name: values.clone() for name, values in predictor.columns(model).items()}
    columns["va_target"][columns["sample"] == 0] = torch.nan
    save_clip_views(tmp_path, predictor, model, columns)
    data = json.loads((tmp_path / "val.clips.json").read_text())
    assert (data["num_clips"], data["left_out"]) == (1, [])


def test_names_are_drawn_as_they_are() -> None:
    """matplotlib would take what stands between two dollars for a formula, and stop at this one."""
    curve = np.zeros((3, 2))
    found = build_predictions("val", "abc", group=["a$x_$b"] * 3, frame=range(3), va=curve, va_pred=curve)
    assert recording_curves(found)[1][:4] == b"\x89PNG"
