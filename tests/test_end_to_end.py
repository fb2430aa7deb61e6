"""From the official layouts to an encoder, through the command line, as a user would."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipelines.checkpoint import load_encoder
from shards.shardset import open_shards
from tests.pipelines.launched import ACCELERATE, PYTHON, environment
from tests.pipelines.tiny import TINY_MAE, losses
from tests.shards.sources.layouts import celeba_files, img2dataset_tar, write_files, write_zip


def run(folder: Path, *words: str) -> str:
    """Runs a command in `folder`; fails with its output."""
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.e2e
def test_celeba_zip_and_img2dataset_tars_to_an_encoder(tmp_path: Path) -> None:
    files = celeba_files(40)
    pictures = {name: data for name, data in files.items() if name.endswith(".jpg")}
    lists = {name: data for name, data in files.items() if not name.endswith(".jpg")}
    write_files(tmp_path / "celeba", lists)
    write_zip(tmp_path / "celeba" / "img_align_celeba.zip", pictures)
    urls = {f"{i:09d}": f"https://example.org/{i}.jpg" for i in range(24)}
    img2dataset_tar(tmp_path / "web" / "00000.tar", urls)

    build = [*PYTHON, "-m", "pipelines", "shards", "build"]
    said = run(tmp_path, *build, "celeba", "celeba", "shards/celeba", "allow_partial=true", "build.workers=1")
    assert "train: 38 faces of 38" in said
    said = run(tmp_path, *build, "tars", "web", "shards/web", "align.mode=none", "build.workers=1")
    assert "train:" in said
    count = len(open_shards([tmp_path / "shards/celeba", tmp_path / "shards/web"], "train"))
    assert 38 < count < 62

    train = [*ACCELERATE, "--cpu", "-m", "pipelines", "pretrain", "pretrain_demo", *TINY_MAE]
    run(tmp_path, *train, "data.shards=shards/celeba,shards/web", "run=r", "train.epochs=3")
    assert load_encoder(tmp_path / "r") is not None
    seen = losses(tmp_path / "r")
    assert len(seen) == -(-3 * count // 16) and seen[len(seen)] < seen[1]


@pytest.mark.e2e
def test_foreign_tars_are_indexed_and_trained_on_where_they_lie(tmp_path: Path) -> None:
    urls = {f"{i:09d}": f"https://example.org/{i}.jpg" for i in range(32)}
    img2dataset_tar(tmp_path / "web" / "00000.tar", urls)
    run(tmp_path, *PYTHON, "-m", "pipelines", "shards", "index", "web")
    run(
        tmp_path,
        *PYTHON,
        "-m",
        "pipelines",
        "pretrain",
        "pretrain_demo",
        *TINY_MAE,
        "data.shards=web",
        "run=r",
    )
    assert len(losses(tmp_path / "r")) == 8
