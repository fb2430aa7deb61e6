"""What simple methods reach on the same faces, and finished runs beside them.

    python -m bench.floors [RUN …] [--smiles FOLDER]… [--shards FOLDERS]

Ridge regressions on pixels and on HOG are fitted on the labelled training faces; a pretraining RUN adds a
ridge on its frozen tokens, a finetuned RUN its own outputs. All are scored on all labelled faces of splits
val and test, people that none of them learned from: expression accuracy and macro F1, valence and arousal
CCC, with 95 % intervals over people. FOLDER holds pictures of neutral and smiling people and labels.csv
(image, expression; for a folder without one, `bench/smiles/NAME.csv`): they are found and cut out as the
training faces were, and two more columns for each folder say how well predicted valence, and the scores
happiness − neutral, tell smiling from neutral people (area under the ROC curve). A finetuned RUN looks at
these pictures ten times, as `predict` does, and at the held-out faces once, as `evaluate`; methods without a
network look once.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from finetune.metrics import accuracy, bootstrap, ccc, macro_f1
from finetune.outputs import averaged_outputs
from pipelines.checkpoint import load_encoder
from pipelines.data import make_default
from pipelines.evaluation import run_config
from pipelines.models import load_model
from pipelines.predictconfig import PredictConfig
from pipelines.predictor import align_config
from pipelines.probe import ProbeSet, load_probe_set, pixel_features, ridge_outputs, token_features
from pipelines.scores import RESAMPLES
from pretrain.hog import orientation_maps
from shards.align import Aligner, load_image
from shards.labels import EXPR8, DataError
from shards.shardset import ShardSet, open_shards
from shards.stream import decode_labels
from shards.transforms import fit

HAPPINESS, NEUTRAL = EXPR8.index("happiness"), EXPR8.index("neutral")
_SIZE = (112, 112)
_LISTS = Path(__file__).with_name("smiles")
Floats: TypeAlias = NDArray[np.float64] | NDArray[np.float32]


class Outputs(NamedTuple):
    """Of N faces: (N, 8) scores of the expressions, (N, 2) valence and arousal; None where not spoken of."""

    expr: NDArray[np.float64] | None
    va: NDArray[np.float64] | None


class Smiles(NamedTuple):
    """Faces of neutral and smiling people.

    Attributes:
        images: (N, 3, H, W) uint8.
        smiling: (N,) bool.
    """

    images: Tensor
    smiling: NDArray[np.bool_]


class Faces(NamedTuple):
    """What is fitted on and scored on; `groups` are the people of `held_out`, `smiles` named by folder."""

    train: ProbeSet
    held_out: ProbeSet
    groups: NDArray[np.str_]
    smiles: Mapping[str, Smiles]


def hog(images: Tensor, cell: int = 8, orientations: int = 9) -> Tensor:
    """Histograms of oriented gradients (Dalal & Triggs 2005): unsigned, blocks of 2 × 2 cells, L2-Hys.

    Args:
        images: (N, 3, H, W) uint8.
        cell: side of a cell in pixels.
        orientations: bins over half a turn; a gradient is shared between the two nearest.

    Returns:
        (N, (H/cell − 1)·(W/cell − 1)·4·orientations) float32.
    """
    cells = F.avg_pool2d(orientation_maps(images.float() / 255, orientations), cell)
    blocks = torch.cat(
        [cells[..., :-1, :-1], cells[..., 1:, :-1], cells[..., :-1, 1:], cells[..., 1:, 1:]], 1
    )
    blocks = F.normalize(F.normalize(blocks, dim=1, eps=1e-3).clamp(max=0.2), dim=1, eps=1e-3)
    return blocks.flatten(1)


def load_faces(shards: str, smiles: Sequence[Path] = ()) -> Faces:
    """All labelled faces, in memory.

    Raises:
        DataError: two folders of one name, which would be one column.
    """
    if len({folder.name for folder in smiles}) < len(smiles):
        raise DataError("two folders of smiles have the same name: give one of them another")
    held_out = [open_shards(shards, split) for split in ("val", "test")]
    parts = [load_probe_set(part, 10**6, _SIZE) for part in held_out]
    joined = ProbeSet(
        torch.cat([part.images for part in parts]),
        np.concatenate([part.expr for part in parts]),
        np.concatenate([part.va for part in parts]),
    )
    groups = np.concatenate([_people(part) for part in held_out])
    train = open_shards(shards, "train")
    return Faces(
        load_probe_set(train, 10**6, _SIZE),
        joined,
        groups,
        {folder.name: load_smiles(folder, train) for folder in smiles},
    )


def _people(shards: ShardSet) -> NDArray[np.str_]:
    """Who is on each face that has an expression label, in the order of `load_probe_set`."""
    found = []
    for sample in np.flatnonzero(shards.expr >= 0).tolist():
        labels = decode_labels(shards.read(sample))
        found.append(labels.identity or shards.key(sample))
    return np.array(found)


def load_smiles(folder: Path, shards: ShardSet) -> Smiles:
    """Labelled pictures of a folder, cut out as the faces of `shards` were.

    Raises:
        DataError: a picture without a face, or a folder without labels.
    """
    listed = next(
        (file for file in (folder / "labels.csv", _LISTS / f"{folder.name}.csv") if file.exists()), None
    )
    if listed is None:
        raise DataError(
            f"{folder}: no labels.csv in it (image, expression), and no bench/smiles/{folder.name}.csv"
        )
    config, _ = align_config(
        [manifest.alignment for manifest in shards.manifests], PredictConfig(faces="largest")
    )
    aligner = Aligner(config)
    with listed.open(newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = [load_image((folder / row["image"]).read_bytes()) for row in rows]
    images = []
    for row, found in zip(rows, aligner.align(pictures), strict=True):
        if not found.faces:
            raise DataError(f"{folder / row['image']}: {found.reason or 'no face'}")
        images.append(fit(torch.from_numpy(found.faces[0].image.copy()).permute(2, 0, 1), _SIZE))
    return Smiles(torch.stack(images), np.array([row["expression"] == "smiling" for row in rows]))


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties half."""
    pairs = scores[positive][:, None] - scores[~positive][None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def methods(runs: Sequence[Path], faces: Faces) -> Iterator[tuple[str, Outputs, dict[str, Outputs]]]:
    """(name, outputs on the held-out faces, outputs on each set of smiles) of each method."""
    features: dict[str, Callable[[ProbeSet], Tensor]] = {
        "ridge on pixels": pixel_features,
        "ridge on HOG": lambda probe: hog(probe.images),
    }
    finetuned = []
    for run in runs:
        if run_config(run).task == "pretrain":
            features[f"ridge on tokens of {run}"] = partial(_tokens, load_encoder(run))
        else:
            finetuned.append(run)
    others = [faces.held_out, *(_unlabelled(smiles.images) for smiles in faces.smiles.values())]
    sizes = [len(part.images) for part in others]
    for name, make in features.items():
        fitted = ridge_outputs(make(faces.train), faces.train, torch.cat([make(part) for part in others]))
        exprs, vas = (np.split(values, np.cumsum(sizes)[:-1]) for values in fitted)
        found = [Outputs(expr, va) for expr, va in zip(exprs, vas, strict=True)]
        yield name, found[0], dict(zip(faces.smiles, found[1:], strict=True))
    for run in finetuned:
        held_out, *smiles = others
        found = [_run_outputs(run, held_out.images, 1), *(_run_outputs(run, s.images, 10) for s in smiles)]
        yield str(run), found[0], dict(zip(faces.smiles, found[1:], strict=True))


def _tokens(encoder: Any, probe: ProbeSet) -> Tensor:
    return token_features(encoder, probe, torch.device("cpu"))["position"]


def _unlabelled(images: Tensor) -> ProbeSet:
    return ProbeSet(images, np.full(len(images), -1), np.full((len(images), 2), np.nan, np.float32))


@torch.inference_mode()
def _run_outputs(run: Path, images: Tensor, looks: int) -> Outputs:
    loaded = load_model(run)
    model, size = loaded.model.eval(), loaded.spec.image_size
    parts = [
        averaged_outputs(model, torch.stack([fit(image, size) for image in some]), looks)
        for some in torch.split(images, 64)
    ]
    return Outputs(_joined([part.expr_probs for part in parts]), _joined([part.va for part in parts]))


def _joined(parts: Sequence[Tensor | None]) -> NDArray[np.float64] | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known).double().numpy() if known else None


def row(found: Outputs, faces: Faces) -> str:
    """Figures on the held-out faces, each with its interval."""
    held_out = faces.held_out
    cells = []
    if found.expr is None:
        cells += [f"{'–':>20s}"] * 2
    else:
        seen, target, count = found.expr.argmax(1), held_out.expr, len(EXPR8)
        cells.append(_cell(lambda rows: accuracy(seen[rows], target[rows]), faces.groups))
        cells.append(_cell(lambda rows: macro_f1(seen[rows], target[rows], count), faces.groups))
    for column in (0, 1):
        if found.va is None:
            cells.append(f"{'–':>20s}")
            continue
        pred, truth = found.va[:, column], held_out.va[:, column]
        known = np.isfinite(truth)
        cells.append(_cell(partial(_ccc_of, pred, truth, known), faces.groups))
    return "".join(cells)


def _ccc_of(pred: Floats, truth: Floats, known: NDArray[np.bool_], rows: NDArray[np.int64]) -> float:
    return ccc(pred[rows], truth[rows], known[rows])


def _cell(figure: Callable[[NDArray[np.int64]], float], groups: NDArray[np.str_]) -> str:
    low, high = bootstrap(figure, groups, RESAMPLES, seed=0)
    return f"{figure(np.arange(len(groups))):8.3f} {low:.3f}-{high:.3f}"


def smile_cells(found: Outputs, smiles: Smiles) -> str:
    """The two areas under the curve."""
    by_valence = "–" if found.va is None else f"{auc(found.va[:, 0], smiles.smiling):.3f}"
    by_expr = "–"
    if found.expr is not None:
        by_expr = f"{auc(found.expr[:, HAPPINESS] - found.expr[:, NEUTRAL], smiles.smiling):.3f}"
    return f"{by_valence:>12s}{by_expr:>9s}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--smiles", type=Path, metavar="FOLDER", action="append", default=[])
    parser.add_argument("--shards", default="")
    arguments = parser.parse_intermixed_args()
    faces = load_faces(arguments.shards or str(make_default()), arguments.smiles)
    print(f"{len(faces.train.expr)} training faces, {len(faces.held_out.expr)} held-out faces", flush=True)
    for name, smiles in faces.smiles.items():
        print(f"{name}: {smiles.smiling.sum()} smiling, {(~smiles.smiling).sum()} neutral")
    titles = ("accuracy", "macro F1", "CCC valence", "CCC arousal")
    areas = "".join(f"{name[:7] + ' val.':>12s}{'hap−neu':>9s}" for name in faces.smiles)
    print(f"{'':32s}{''.join(f'{title:>20s}' for title in titles)}{areas}")
    for name, held_out, smiling in methods(arguments.runs, faces):
        cells = "".join(smile_cells(smiling[key], smiles) for key, smiles in faces.smiles.items())
        print(f"{name[-32:]:32s}{row(held_out, faces)}{cells}", flush=True)


if __name__ == "__main__":
    main()
