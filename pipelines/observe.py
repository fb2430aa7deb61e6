"""What a pretraining run measures and draws of itself: held-out error, probe faces, ridge and kNN probes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pipelines.cores import loader_workers
from pipelines.evaluate import predict_split
from pipelines.pictures import grid_picture, save_picture, to_pixels
from pipelines.probe import load_probe_set, pixel_features, probe_scores, token_features
from pipelines.stage import Context
from pretrain.encoder import build_encoder
from pretrain.mae import MAE
from pretrain.mae_task import MaeTask, mean_target
from pretrain.masking import mask_noise
from shards.align import FaceDetector
from shards.shardset import ShardSet
from shards.stream import eval_batches

_MEAN_FACES = 1000
_SOUGHT = 5
"""In so many times as many pasted faces as are drawn, a face is looked for."""


class MAEObserver:
    """Evaluation of a pretraining run on faces that it does not learn from."""

    def __init__(self, context: Context, model: MAE) -> None:
        self._context = context
        self._model = model
        self._mean_target: torch.Tensor | None = None
        self._reference: dict[str, float] | None = None

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Held-out error in every process; pictures and probes in the main one.

        Returns:
            `val_loss`, `val_mean_face`, `val_pixel_mse`, `faces_found` of `faces_sought`,
            `probe.<features>.<score>`.
        """
        val = self._context.splits.val
        if val is None:
            return {}
        self._model.eval()
        values = self._held_out(val)
        if self._context.processes.is_main:
            values |= self._draw(val, step)
            values |= self._probe(val)
        self._context.processes.barrier()
        return values

    def _held_out(self, val: ShardSet) -> dict[str, float]:
        """Means over the held-out samples, the same to the last bit for any number of processes."""
        context, config = self._context, self._context.config
        if self._mean_target is None:
            spread = _spread(len(context.splits.train), _MEAN_FACES)
            self._mean_target = self._mean_of(context.splits.train, spread)
        task = MaeTask(self._model.num_patches, self._mean_target)
        columns = predict_split(
            lambda batch: task.predict(self._model, batch),
            val,
            self._model.image_size,
            config.eval.batch_size,
            context.processes,
            context.device,
            loader_workers(config.data.num_workers, context.device),
            _spread(len(val), config.eval.max_samples or len(val)),
            with_labels=False,
            seed=config.seed,
        )
        return {f"val_{name}": float(values.mean()) for name, values in columns.items()}

    def _mean_of(self, shards: ShardSet, samples: list[int]) -> torch.Tensor:
        context = self._context
        workers = loader_workers(context.config.data.num_workers, context.device)
        batches = eval_batches(
            shards, 64, self._model.image_size, num_workers=workers, samples=samples, with_labels=False
        )
        return mean_target(self._model, (b.images[: b.num_valid].to(context.device) for b in batches))

    def _draw(self, val: ShardSet, step: int) -> dict[str, float]:
        """Probe faces as a picture; counts those of five times as many whose pasted version MTCNN finds.

        Ten faces alone say little: of a share of 0.97, one in thirty such counts is 8 or less.
        """
        drawn = min(self._context.config.eval.pictures, len(val))
        if not drawn:
            return {}
        spread = _spread(len(val), _SOUGHT * drawn)
        count = len(spread)
        batch = next(eval_batches(val, count, self._model.image_size, samples=spread, with_labels=False))
        batch = batch.to(self._context.device)
        output = self._model(batch.images, mask_noise(batch.rng, self._model.num_patches), predict_all=True)
        shown = self._model.reconstruct(output, batch.images)
        chosen = _spread(count, drawn)
        columns = [(name, images[chosen]) for name, images in shown._asdict().items()]
        save_picture(
            grid_picture(columns, per_row=2), self._context.run.pictures / f"reconstructions-{step:08d}.png"
        )
        found = FaceDetector().detect(list(to_pixels(shown.pasted)))
        return {"faces_found": float(sum(len(faces) > 0 for faces in found)), "faces_sought": float(count)}

    def _probe(self, val: ShardSet) -> dict[str, float]:
        """Ridge and kNN on labels: this encoder, and once a random one and pixels beside it."""
        config, device = self._context.config, self._context.device
        if not (config.eval.probe_train and config.eval.probe_val):
            return {}
        size = self._model.image_size
        train_set = load_probe_set(self._context.splits.train, config.eval.probe_train, size)
        val_set = load_probe_set(val, config.eval.probe_val, size)
        if len(train_set.expr) < 50 or not len(val_set.expr):
            return {}
        kinds = {}
        train_tokens = token_features(self._model.encoder, train_set, device)
        val_tokens = token_features(self._model.encoder, val_set, device)
        for name in train_tokens:
            kinds[name] = (train_tokens[name], val_tokens[name])
        scores = {k: probe_scores(a, train_set, b, val_set) for k, (a, b) in kinds.items()}
        if self._reference is None:
            random = build_encoder(config.encoder, torch.Generator().manual_seed(config.seed)).to(device)
            features = [token_features(random, s, device)["position"] for s in (train_set, val_set)]
            pixels = [pixel_features(s) for s in (train_set, val_set)]
            self._reference = _flat(
                {
                    "random.position": probe_scores(features[0], train_set, features[1], val_set),
                    "pixels": probe_scores(pixels[0], train_set, pixels[1], val_set),
                }
            )
        return _flat(scores) | self._reference


def _spread(num_samples: int, count: int) -> list[int]:
    """`count` samples at most, spread evenly over a split: neighbours are often of one person or video."""
    chosen: list[int] = np.linspace(0, num_samples - 1, min(count, num_samples)).round().astype(int).tolist()
    return chosen


def _flat(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"probe.{kind}.{name}": value for kind, row in scores.items() for name, value in row.items()}
