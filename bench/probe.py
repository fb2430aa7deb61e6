"""What a pretrained encoder is worth with few labels: ridge probes on tokens, a random encoder and pixels.

    python -m bench.probe RUN [RUN …]

Fits on n labelled training faces, spread evenly over the people, and scores on all held-out faces of the
splits val and test; the ridge strength is chosen on the last fifth of the n. The random encoder has the run's
architecture. Each row is one n: expression accuracy, valence CCC, arousal CCC.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from pipelines.checkpoint import load_encoder
from pipelines.data import default_set, make_default
from pipelines.evaluation import run_config
from pipelines.probe import ProbeSet, load_probe_set, pixel_features, probe_scores, token_features
from pretrain.encoder import build_encoder
from shards.shardset import open_shards

COUNTS = (300, 600, 1500, 3000, 6000)
_SHOWN = ("ridge_expr", "ridge_valence", "ridge_arousal")


def main(runs: list[str]) -> None:
    """Prints the table of each run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for run in map(Path, runs):
        config = run_config(run)
        if not config.data.shards:
            make_default()
        names, size = config.data.shards or str(default_set()), config.encoder.image_size
        train = load_probe_set(open_shards(names, "train"), max(COUNTS), size)
        held_out = _joined(
            [load_probe_set(open_shards(names, split), 10**6, size) for split in ("val", "test")]
        )
        random = build_encoder(config.encoder, torch.Generator().manual_seed(config.seed)).to(device)
        encoders = {"tokens": load_encoder(run).to(device), "random": random}
        features = {
            name: [token_features(encoder, faces, device)["position"] for faces in (train, held_out)]
            for name, encoder in encoders.items()
        }
        features["pixels"] = [pixel_features(faces) for faces in (train, held_out)]
        print(f"{run}: {len(held_out.expr)} held-out faces")
        print(f"{'labels':>7s}" + "".join(f"{name:>26s}" for name in features))
        for count in COUNTS:
            rows = torch.linspace(0, len(train.expr) - 1, min(count, len(train.expr))).round().long()
            part = ProbeSet(train.images[rows], train.expr[rows.numpy()], train.va[rows.numpy()])
            cells = []
            for fitted, scored in features.values():
                scores = probe_scores(fitted[rows], part, scored, held_out)
                cells.append("   ".join(f"{scores[name]:.3f}" for name in _SHOWN))
            print(f"{len(rows):7d}" + "".join(f"{cell:>26s}" for cell in cells), flush=True)


def _joined(sets: list[ProbeSet]) -> ProbeSet:
    return ProbeSet(
        torch.cat([part.images for part in sets]),
        np.concatenate([part.expr for part in sets]),
        np.concatenate([part.va for part in sets]),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
