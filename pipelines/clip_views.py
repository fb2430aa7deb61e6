"""What an evaluation of clips leaves for the report beside its csv, made while model and clips are at hand.

    predictions/SPLIT.clips.json      figures with modalities left out, and how much attention is on the face
    predictions/SPLIT.attention.png   attention over the colour frames   } where the clips' licence
    predictions/SPLIT.strips.png      the worst clips as film strips     } allows their pictures

Attention on a region: of each frame, the share of its attention that lies there, divided by the region's
share of the area; 1 = no more than if it were spread evenly. The face is an oval from brows to chin, known
where the alignment is (`template.face_oval`). The head is what is less than 300 mm behind the face by the
depth camera (hair, neck and shoulders count), or where there is no depth, what is warmer than 30 °C. Pixels
that the camera does not know, or that are as the scale's zero, are left out of both shares, and frames that
are head all over, or nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from finetune.metrics import bootstrap, bootstrap_difference
from pipelines.clip_charts import AttentionStrip, FilmStrip, attention_sheet, film_strips
from pipelines.clip_scoring import clip_predictions, predict_clips
from pipelines.mistakes import may_be_shown
from pipelines.predictions import Predictions
from pipelines.scores import Estimate, figures_of, groups_of
from pipelines.split_predictor import SplitPredictor
from shards import transforms
from shards.clips import ClipBatch, clip_eval_batches, eval_windows
from shards.config import MODALITIES
from shards.files import write_atomic
from shards.frames import frame_extensions
from shards.planes import DEPTH_LIMIT
from shards.shardset import ShardSet
from shards.template import face_oval, relative_geometry

_LEFT_OUT_FRAMES = 2000  # looked at with each modality left out: so many clips, spread over the split
_ATTENTION_FRAMES = 500
_RESAMPLES = 200
_SHOWN_CLIPS, _SHOWN_STEPS = 4, 6
_WORST, _STRIP_FRAMES = 3, 10
_CCC = ("ccc_valence", "ccc_arousal")


@dataclass(frozen=True)
class LeftOut:
    """Figures with some modalities left out at the test alone; the model learned with them.

    Attributes:
        without: their names; () = nothing left out.
        ccc_valence, ccc_arousal: over all frames together.
        change: of the mean CCC against nothing left out, with its interval over recordings.
    """

    without: tuple[str, ...]
    ccc_valence: float
    ccc_arousal: float
    change: Estimate


@dataclass(frozen=True)
class RegionAttention:
    """Attention on a part of the picture, over frames.

    Attributes:
        region: "face" or "head".
        ratio: share of attention by share of area, with its interval over clips.
        attention, area: the mean shares, in [0, 1].
        by: what says where it is: "depth" or "thermal", or both; "alignment" for the face.
        num_frames: of which this is the mean; one that is in two windows counts twice.
    """

    region: str
    ratio: Estimate
    attention: float
    area: float
    by: str
    num_frames: int


def save_clip_views(
    folder: Path,
    predictor: SplitPredictor,
    model: nn.Module,
    columns: Mapping[str, Tensor],
    leaving_out: bool = True,
) -> None:
    """Makes the files of one split; the main process writes. All processes call this.

    Args:
        folder: predictions/ of the run.
        predictor: of clips.
        model: an MRAN, on the predictor's device.
        columns: what it said of every frame, see `clip_scoring.join_windows`.
        leaving_out: measure what each modality is worth, for which the model goes through clips again.
    """
    split, shards = predictor.split, predictor.shards
    clips = _spread(predictor, _LEFT_OUT_FRAMES)
    chosen = torch.from_numpy(np.isin(columns["sample"].numpy(), clips))
    labelled = bool(torch.isfinite(columns["va_target"][chosen]).any())
    left_out = leave_out(predictor, model, columns, clips) if labelled and leaving_out else []
    if not predictor.processes.is_main:
        return
    regions = attention_on_regions(predictor, model, _spread(predictor, _ATTENTION_FRAMES))
    data = {
        "num_clips": len(clips),
        "left_out": [asdict(row) for row in left_out],
        "attention": [asdict(region) for region in regions],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{split}.clips.json", (json.dumps(data, indent=1) + "\n").encode())
    pictures = {f"{split}.attention.png": b"", f"{split}.strips.png": b""}
    if may_be_shown(shards):
        errors = clip_errors(columns)
        ranked = sorted(errors, key=lambda clip: errors[clip])
        drawn = _evenly(ranked or np.unique(columns["sample"].numpy()).astype(int).tolist(), _SHOWN_CLIPS)
        pictures[f"{split}.attention.png"] = attention_sheet(_attention_strips(predictor, model, drawn))
        worst = ranked[::-1][:_WORST]
        if worst:
            strips = [_film_strip(shards, columns, clip, errors[clip]) for clip in worst]
            pictures[f"{split}.strips.png"] = film_strips(strips)
    for name, png in pictures.items():
        if png:
            write_atomic(folder / name, png)
        else:  # none of an earlier evaluation, of other clips, is to stand for it
            (folder / name).unlink(missing_ok=True)


def clip_errors(columns: Mapping[str, Tensor]) -> dict[int, float]:
    """RMSE of each clip over its labelled frames, valence and arousal together; clips without label not."""
    sample, wrong = columns["sample"].numpy(), (columns["va"] - columns["va_target"]).numpy() ** 2
    found = {}
    for clip in np.unique(sample).astype(int).tolist():
        own = wrong[sample == clip]
        if np.isfinite(own).any():
            found[clip] = float(np.sqrt(np.nanmean(own)))
    return found


def leave_out(
    predictor: SplitPredictor, model: nn.Module, columns: Mapping[str, Tensor], clips: Sequence[int]
) -> list[LeftOut]:
    """What each modality is worth to a trained model: it goes through the clips again without it.

    Args:
        predictor, model, columns: as for `save_clip_views`.
        clips: which.

    Returns:
        Nothing left out first; then each modality, and where two guide, both. In every process.
    """
    used = predictor.spec.clip.modalities
    guides = tuple(name for name in used if name != "color")
    choices: list[tuple[str, ...]] = [(name,) for name in used] if guides else []
    choices += [guides] if len(guides) > 1 else []
    whole = torch.from_numpy(np.isin(columns["sample"].numpy(), clips))
    all_of = _predictions(predictor, {name: values[whole] for name, values in columns.items()})
    rows = [_left_out((), all_of, all_of)]
    for without in choices:
        found = predict_clips(
            partial(_predict_without, predictor, model, without),
            predictor.spec,
            predictor.shards,
            predictor.batch_size,
            predictor.processes,
            predictor.device,
            predictor.num_workers,
            clips,
        )
        rows.append(_left_out(without, _predictions(predictor, found), all_of))
    return rows


@torch.inference_mode()
def _predict_without(
    predictor: SplitPredictor, model: nn.Module, without: Sequence[str], batch: ClipBatch
) -> Mapping[str, Tensor]:
    hidden = {name: torch.zeros_like(batch.valid[name]) for name in without if name in batch.valid}
    return predictor.task.predict(model, replace(batch, valid={**batch.valid, **hidden}))


def _predictions(predictor: SplitPredictor, columns: Mapping[str, Tensor]) -> Predictions:
    return clip_predictions(predictor.split, predictor.shards, columns)


def _left_out(without: Sequence[str], found: Predictions, all_of: Predictions) -> LeftOut:
    every = np.arange(len(found))
    figures, whole = figures_of(found), figures_of(all_of)
    values = [figures[name](every) if name in figures else float("nan") for name in _CCC]
    if not without:
        return LeftOut((), values[0], values[1], Estimate(0.0, 0.0, 0.0))
    score, before = figures["score"], whole["score"]
    low, high = bootstrap_difference(score, before, groups_of(found)[0], _RESAMPLES, seed=0)
    return LeftOut(tuple(without), values[0], values[1], Estimate(score(every) - before(every), low, high))


@torch.inference_mode()
def attention_on_regions(
    predictor: SplitPredictor, model: nn.Module, clips: Sequence[int]
) -> list[RegionAttention]:
    """See above; over all windows of some clips, so that a frame counts in each that it is in.

    Returns:
        The face, where the alignment says where it is, and the head, where a camera does.
    """
    geometry = relative_geometry(predictor.shards.manifests[0].alignment)
    found = {region: _Shares() for region in ("face", "head")}
    for batch in _windows(predictor, clips):
        left = batch.valid["color"].clone()
        left[batch.num_valid :] = False
        attention = model(batch.images, batch.valid, batch.rng).attention
        if geometry is not None:
            oval = torch.from_numpy(face_oval(geometry, *attention.shape[-2:])).to(attention)
            shares = (attention * oval).sum((-2, -1)) / attention.sum((-2, -1)).clamp(min=1e-12)
            both = torch.stack([shares, oval.mean().expand_as(shares)], dim=-1)
            found["face"].add(both, left, batch.keys, "alignment")
        for by in ("depth", "thermal"):
            counts = left & batch.valid[by]
            left &= ~counts
            both = head_shares(attention, batch.images[by], by)
            found["head"].add(both, counts & (both[..., 1] > 0) & (both[..., 1] < 1), batch.keys, by)
    return [shares.estimate(region) for region, shares in found.items() if shares.owners]


class _Shares:
    """Shares of attention and area of one region, gathered over batches."""

    def __init__(self) -> None:
        self.values: list[NDArray[np.float64]] = []
        self.owners: list[str] = []
        self.by: set[str] = set()

    def add(self, shares: Tensor, counts: Tensor, keys: Sequence[str], by: str) -> None:
        """Adds (B, T, 2) shares where (B, T) `counts` says so."""
        if not counts.any():
            return
        self.values.append(shares[counts].double().cpu().numpy())
        self.owners += [keys[row] for row in counts.nonzero()[:, 0].tolist()]
        self.by.add(by)

    def estimate(self, region: str) -> RegionAttention:
        """Over all that was added; there must be some."""
        values = np.concatenate(self.values)
        ratios = values[:, 0] / values[:, 1]
        low, high = bootstrap(
            lambda rows: float(ratios[rows].mean()), np.array(self.owners), _RESAMPLES, seed=0
        )
        means = values.mean(0)
        ratio = Estimate(float(ratios.mean()), low, high)
        by = " or ".join(sorted(self.by))
        return RegionAttention(region, ratio, float(means[0]), float(means[1]), by, len(ratios))


def head_shares(attention: Tensor, planes: Tensor, by: str) -> Tensor:
    """How much of the attention, and of the area, is on the head.

    Args:
        attention: (B, T, h, w), not negative.
        planes: (B, T, 1, H, W) on the scales of `shards.planes`, 0 = not known.
        by: "depth" or "thermal".

    Returns:
        (B, T, 2) shares in [0, 1]; 0 where nothing is known.
    """
    known = (planes != 0).float()
    on_head = known * ((planes < DEPTH_LIMIT) if by == "depth" else (planes > 0))
    size = (attention.shape[-2], attention.shape[-1])
    known, on_head = (
        functional.adaptive_avg_pool2d(mask.flatten(0, 1), size).view_as(attention)
        for mask in (known, on_head)
    )
    parts = [
        (weight * on_head).sum((-2, -1)) / (weight * known).sum((-2, -1)).clamp(min=1e-12)
        for weight in (attention, torch.ones_like(attention))
    ]
    return torch.stack(parts, dim=-1)


def _windows(predictor: SplitPredictor, clips: Sequence[int]) -> Iterator[ClipBatch]:
    """Windows of clips with all their modalities, also those that the model does not look at.

    Without a lag, so that `frames` are those of the pictures, and none is held.
    """
    config = replace(predictor.spec.clip, modalities=MODALITIES, lag_seconds=0.0)
    size = predictor.spec.image_size
    for batch in clip_eval_batches(
        predictor.shards, predictor.batch_size, size, config, samples=clips, num_workers=0
    ):
        yield batch.to(predictor.device)


@torch.inference_mode()
def _attention_strips(
    predictor: SplitPredictor, model: nn.Module, clips: Sequence[int]
) -> list[AttentionStrip]:
    """The middle window of each clip."""
    strips = []
    for clip in clips:
        windows = eval_windows(predictor.shards, predictor.spec.clip, [clip])
        middle = len(windows) // 2
        for number, batch in enumerate(_windows(predictor, [clip])):
            row = middle - number * predictor.batch_size
            if not 0 <= row < batch.num_valid:
                continue
            out = model(batch.images, batch.valid, batch.rng)
            seen = batch.inside[row].nonzero()[:, 0].tolist()
            steps = _evenly(seen, _SHOWN_STEPS)
            strips.append(
                AttentionStrip(
                    batch.keys[row],
                    batch.frames[row, steps].tolist(),
                    batch.images["color"][row, steps].permute(0, 2, 3, 1).cpu().numpy(),
                    out.attention[row, steps].float().cpu().numpy(),
                )
            )
    return strips


def _film_strip(shards: ShardSet, columns: Mapping[str, Tensor], clip: int, error: float) -> FilmStrip:
    own = (columns["sample"] == clip).nonzero()[:, 0]
    frames = columns["frame"][own].long().numpy()
    places = _evenly(list(range(len(frames))), _STRIP_FRAMES)
    pictures = [_color(shards, clip, int(frames[place] - frames[0])) for place in places]
    pred, target = columns["va"][own].clamp(-1, 1).numpy(), columns["va_target"][own].numpy()
    shown = [int(frames[place]) for place in places]
    return FilmStrip(shards.key(clip), error, frames, pred, target, shown, pictures)


def _color(shards: ShardSet, clip: int, frame: int) -> NDArray[np.uint8] | None:
    """(H, W, 3) of a frame, counted within its clip; None if there is none."""
    raw = shards.read(clip, frame_extensions("color", frame))
    for name, data in raw.members.items():
        picture: Any = transforms.decode(data, f"{raw.where}: member {name}").permute(1, 2, 0).numpy()
        return np.asarray(picture, np.uint8)
    return None


def _spread(predictor: SplitPredictor, max_frames: int) -> list[int]:
    """Clips spread evenly over the split, whose windows hold about so many frames together."""
    count, config = len(predictor.shards), predictor.spec.clip
    total = len(eval_windows(predictor.shards, config)) * config.num_frames
    return _evenly(list(range(count)), max(1, min(count, count * max_frames // total)))


def _evenly(values: Sequence[int], count: int) -> list[int]:
    """Up to `count` of them, spread evenly, the first and the last with them."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[place] for place in places.tolist()]
