"""Masked-autoencoder pretraining as a Task, and the mean face it has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pretrain.mae import MAE, MAEOutput, patch_losses
from pretrain.masking import mask_noise
from pretrain.patches import gather_patches
from pretrain.task import ImageBatch, ParamRule, StepOutput, is_undecayed


class MaeTask:
    """Pretraining: masks come from each sample's random key, whatever batch it is in.

    Args:
        num_patches: L of the model.
        mean_target: (L, P) mean of the training set's targets in the loss's own space (`mean_target`), or
            None to leave the mean face unscored.
    """

    def __init__(self, num_patches: int, mean_target: Tensor | None = None) -> None:
        self.num_patches = num_patches
        self.mean_target = mean_target

    def step(self, model: nn.Module, batches: Sequence[ImageBatch]) -> Iterator[StepOutput]:
        """Yields each micro-batch's loss over their number; see `Task.step`."""
        for batch in batches:
            output: MAEOutput = model(batch.images, mask_noise(batch.rng, self.num_patches))
            loss = output.loss / len(batches)
            logs = {"loss": loss.detach()}
            if output.hog_loss is not None:
                logs["loss_hog"] = output.hog_loss.detach() / len(batches)
            yield StepOutput(loss, logs)

    def predict(self, model: MAE, batch: ImageBatch) -> dict[str, Tensor]:
        """Scores each sample; all (B,) float32.

        Returns:
            loss: in the loss's own space.
            pixel_mse: over the masked patches, norm_pix undone, pixels in [0, 1].
            mean_face: the mean target's loss on the same masked patches, if a mean target was given.
        """
        output: MAEOutput = model(batch.images, mask_noise(batch.rng, self.num_patches))
        ids_masked = output.masking.ids_masked
        patches = gather_patches(model.patchify(batch.images), ids_masked)
        pixels = model.pixels.undo_patches(model.pixels.patches(patches))
        scores = {
            "loss": output.losses,
            "pixel_mse": patch_losses(model.to_pixels(output.pred, patches), pixels),
        }
        if self.mean_target is not None:
            mean_face = self.mean_target.to(ids_masked.device)[ids_masked]
            scores["mean_face"] = patch_losses(mean_face, output.target)
        return scores

    def param_rules(self) -> Sequence[ParamRule]:
        """Weight decay on everything but biases and one-dimensional parameters; one learning rate."""
        return [ParamRule(is_undecayed, decay=False)]

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the split; `score` is the negative loss."""
        figures = {name: float(values.double().mean()) for name, values in predictions.items()}
        return {**figures, "score": -figures["loss"]}


@torch.no_grad()
def mean_target(model: MAE, image_batches: Iterable[Tensor]) -> Tensor:
    """The mean of the targets, patch by patch: the best constant prediction.

    Args:
        model: says what a target is.
        image_batches: batches (B, 3, H, W) on the model's device.

    Returns:
        (L, P) float32 on that device, accumulated in float64.

    Raises:
        ValueError: there is no image.
    """
    total, count = None, 0
    for images in image_batches:
        batch_sum = model.target(model.patchify(images)).double().sum(dim=0)
        total = batch_sum if total is None else total + batch_sum
        count += len(images)
    if total is None or count == 0:
        raise ValueError("the mean target needs at least one image: the training set is empty")
    return (total / count).float()
