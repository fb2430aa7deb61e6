"""Stochastic depth (Huang et al. 2016) whose choices come from each sample's random key.

timm's DropPath draws from torch's global generator, so what is dropped would depend on the batch a sample is
in. Here a sample loses the same branches in any layout of the same run, and in a second pass over it.
"""

from __future__ import annotations

from torch import Tensor, nn

from shards import keyed


class KeyedDropPath(nn.Module):
    """A residual branch that is dropped for some samples of a training batch, and scaled up for the rest.

    `set_drop_paths` decides for which, before every forward pass.

    Args:
        drop_prob: share of samples that lose the branch, in [0, 1).

    Raises:
        ValueError: a share out of range.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {drop_prob}")
        self.drop_prob = drop_prob
        self.factors: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D): times 0 or 1/(1 − drop_prob), sample by sample; in eval mode unchanged."""
        if not self.training:
            return branch
        if self.factors is None or len(self.factors) != len(branch):
            raise ValueError("drop path needs the samples' random keys: call set_drop_paths before the model")
        return branch * self.factors.to(branch.dtype)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


def set_drop_paths(module: nn.Module, keys: Tensor | None, view: int = 0) -> None:
    """Decides what the next training pass of `module` drops.

    Args:
        module: holds KeyedDropPath modules, or none.
        keys: (B,) int64, the samples' random keys; None will do where nothing is dropped.
        view: which of several models or passes over the same samples.

    Raises:
        ValueError: no keys, and something to drop: what an earlier batch lost would be dropped again.
    """
    paths = [part for part in module.modules() if isinstance(part, KeyedDropPath)]
    if not paths or not module.training:
        return
    if keys is None:
        raise ValueError("drop path needs the samples' random keys: pass them in training")
    uniform = keyed.uniform_noise(keys, f"drop_path.{view}" if view else "drop_path", len(paths))
    for path, draws in zip(paths, uniform.unbind(1), strict=True):
        path.factors = ((draws >= path.drop_prob).float() / (1 - path.drop_prob))[:, None, None]
