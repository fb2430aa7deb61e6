import pytest
import torch
from tiny import FakeBatch, smooth_batch, tiny_mae

from pretrain.mae import MAE
from pretrain.mae_task import MaeTask, mean_target
from pretrain.masking import mask_noise, random_masking
from pretrain.task import ImageBatch, StepOutput, Task


def gradients(model: MAE, batches: list[FakeBatch]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    logged = 0.0
    for output in MaeTask(16).step(model, batches):
        output.loss.backward()
        logged += output.logs["loss"].item()
    return logged, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_it_is_a_task():
    task: Task[MAE, ImageBatch] = MaeTask(16)
    assert isinstance(next(iter(task.step(tiny_mae(), [smooth_batch(2)]))), StepOutput)


def test_accumulated_gradients_equal_those_of_one_batch():
    model = tiny_mae()
    batch = smooth_batch(8)
    loss, whole = gradients(model, [batch])
    parts_loss, parts = gradients(model, [batch.part(0, 4), batch.part(4, 8)])
    assert parts_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def test_a_micro_batch_runs_only_when_it_is_asked_for():
    model, calls = tiny_mae(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    outputs = MaeTask(16).step(model, [smooth_batch(1), smooth_batch(1)])
    next(outputs)
    assert len(calls) == 1


def test_a_samples_scores_do_not_depend_on_its_batch():
    model, batch = tiny_mae().eval(), smooth_batch(6)
    task = MaeTask(16)
    with torch.no_grad():
        whole = task.predict(model, batch)["loss"]
        parts = [task.predict(model, batch.part(i, i + 2))["loss"] for i in range(0, 6, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_mean_target_is_the_best_constant():
    model, batch = tiny_mae().eval(), smooth_batch(16)
    mean = mean_target(model, [batch.images[:5], batch.images[5:]])
    expected = model.target(model.patchify(batch.images)).double().mean(0).float()
    torch.testing.assert_close(mean, expected)
    assert mean.shape == (16, 192)
    mean_face = MaeTask(16, mean).predict(model, batch)["mean_face"].mean()
    for other in (torch.zeros_like(mean), mean + 0.1):
        assert mean_face < MaeTask(16, other).predict(model, batch)["mean_face"].mean()


def test_mean_face_scores_the_same_masked_patches_as_the_loss():
    model, batch = tiny_mae().eval(), smooth_batch(3)
    mean = torch.randn(16, 192, generator=torch.Generator().manual_seed(0))
    mask = random_masking(mask_noise(batch.rng, 16), 4).mask
    errors = (mean - model.target(model.patchify(batch.images))).square().mean(-1)
    expected = torch.stack([error[row].mean() for error, row in zip(errors, mask)])
    torch.testing.assert_close(MaeTask(16, mean).predict(model, batch)["mean_face"], expected)


def test_pixel_error_is_in_units_of_the_image():
    model, batch = tiny_mae(norm_pix=False).eval(), smooth_batch(3)
    with torch.no_grad():
        predicted = MaeTask(16).predict(model, batch)
        output = model(batch.images, mask_noise(batch.rng, 16), True)
    std = torch.tensor([0.229, 0.224, 0.225]).repeat(64)
    target = model.target(model.patchify(batch.images))
    errors = ((output.pred - target) * std).square().mean(-1)
    expected = torch.stack([error[row].mean() for error, row in zip(errors, output.masking.mask)])
    torch.testing.assert_close(predicted["pixel_mse"], expected, atol=1e-6, rtol=1e-4)


def test_metrics_are_means_and_the_score_falls_with_the_loss():
    figures = MaeTask(16).metrics({"loss": torch.tensor([1.0, 3.0]), "pixel_mse": torch.tensor([0.5, 0.5])})
    assert figures == {"loss": 2.0, "pixel_mse": 0.5, "score": -2.0}


def test_an_empty_training_set_has_no_mean():
    with pytest.raises(ValueError, match="at least one image"):
        mean_target(tiny_mae(), [])
