"""The commands around training: shards, import, report; each as a user would call it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.dan import AFFECTNET8, DAN, CenteredDAN, DANConfig
from pipelines.__main__ import main
from pipelines.checkpoint import load_encoder, read_tensors
from pipelines.models import load_model
from shards.shardset import open_shards
from tests.pipelines.tiny import TINY_MAE, last_checkpoint, train
from tests.shards.faces import smooth_jpeg

ROOT = Path(__file__).resolve().parents[2]


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for i in range(60):
        (folder / f"face {i:02d}.jpg").write_bytes(smooth_jpeg(i))
    return folder


@pytest.mark.reports
def test_a_folder_becomes_shards_and_the_shards_a_run(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert (
        run("shards", "build", "folder", pictures, out, "align.mode=none", "align.size=0", "build.workers=1")
        == 0
    )
    shards = open_shards(str(out), "train")
    assert len(shards) + len(open_shards(str(out), "val")) == 60
    assert run("pretrain", "pretrain_demo", *TINY_MAE, f"data.shards={out}", "run=r", "train.epochs=1") == 0
    assert run("report", "r") == 0 and run("doctor", out) == 0


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("--help", 0),
        ("predict --help", 0),
        ("slurm --help", 0),
        ("pretrain optm.base_lr=1", 2),
        ("finetune mtl_demo train.epoch=1", 2),
        ("slurm pretrain_demo --qos", 2),
    ],
)
def test_help_and_a_misspelt_word_are_answered_before_torch_is_loaded(words: str, status: int) -> None:
    code = (
        "import sys; from pipelines.__main__ import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as stop: status = stop.code\n"
        "print(status, sorted({'torch', 'timm', 'torchvision'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, *words.split()]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert shown.stdout.splitlines()[-1] == f"{status} []", shown.stderr
    assert status == 0 or "did you mean" in shown.stderr or "unrecognized" in shown.stderr


def test_parts_are_merged_by_command(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("align.mode=none", "build.workers=1", "build.shard_size=10")
    for part in ("1/2", "2/2"):
        assert (
            run("shards", "build", "folder", pictures, tmp_path / "s", *settings, f"build.part={part}") == 0
        )
    assert "part made" in capsys.readouterr().out
    assert run("shards", "merge", tmp_path / "s", "build.max_quarantined=2") == 1
    assert "must be from 0 to 1" in capsys.readouterr().err
    assert run("shards", "merge", tmp_path / "s", "build.max_quarantined=0") == 0
    assert "train:" in capsys.readouterr().out


def test_what_was_found_and_passed_over_is_said(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "labels.csv").write_text("file,expr\n" + "".join(f"face {i:02d},fear\n" for i in range(60)))
    (pictures / "more.heic").touch()
    assert (
        run("shards", "build", "folder", pictures, tmp_path / "s", "align.mode=none", "build.workers=1") == 0
    )
    said = capsys.readouterr().err
    assert "labels.csv: expr 60; columns kept as extra: none" in said and "1 .heic" in said
    assert run("shards", "build", "folder", pictures, tmp_path / "s", "align.mode=none") == 0
    assert "already made; build.again=true" in capsys.readouterr().err


@pytest.mark.reports
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("shards", "build", "celebra", "x", "y"), "did you mean 'celeba'"),
        (("shards", "build", "folder", "nowhere", "y"), "nowhere"),
        (("shards", "build", "folder", "nowhere", "y", "align.sise=3"), "align.size"),
        (("shards", "merge", "nowhere"), "no parts"),
        (("shards", "index", "nowhere"), "no .tar"),
        (("import", "nowhere.pth", "x.safetensors"), "no such file"),
        (("report", "nowhere"), "no run there"),
        (("doctor", "nowhere"), "nowhere"),
    ],
)
def test_errors_name_the_thing(
    words: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) in (1, 2)
    message = capsys.readouterr().err
    assert named in message and "Traceback" not in message


def test_a_released_checkpoint_is_imported_and_starts_a_run(
    finished: Path, smooth: Path, tmp_path: Path
) -> None:
    """As the released MAE's files are: tensors under `model`, and an argparse.Namespace beside them."""
    tensors = read_tensors(last_checkpoint(finished) / "model.safetensors").tensors
    torch.save({"model": tensors, "args": argparse.Namespace(lr=1.0), "epoch": 3}, tmp_path / "mae.pth")
    assert run("import", tmp_path / "mae.pth", tmp_path / "mae.safetensors") == 0
    assert (
        train(smooth, tmp_path / "r", "init=mae.safetensors", "optim.base_lr=0", "train.stop_at_step=1") == 0
    )
    ours, theirs = load_encoder(tmp_path / "r").state_dict(), load_encoder(finished).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("count", "options", "names"),
    [
        (8, [], AFFECTNET8),
        (3, ["--classes", "sad, angry,neutral"], ("sad", "angry", "neutral")),
    ],
)
def test_a_released_dan_becomes_what_emma_takes(
    tmp_path: Path, count: int, options: list[str], names: tuple[str, ...]
) -> None:
    """As DAN's files are: the weights under `model_state_dict`, their names as DataParallel says them."""
    dan = DAN(DANConfig(count)).eval()
    state = {f"module.{name}": tensor for name, tensor in dan.state_dict().items()}
    torch.save({"iter": 5, "model_state_dict": state, "optimizer_state_dict": {}}, tmp_path / "dan.pth")
    assert run("import", tmp_path / "dan.pth", tmp_path / "dan.safetensors", *options) == 0
    loaded = load_model(tmp_path / "dan.safetensors")
    assert (loaded.spec.kind, loaded.spec.expr, loaded.spec.image_size) == ("dan", names, (224, 224))
    assert isinstance(loaded.model, CenteredDAN)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded.model.dan(images).logits, dan(images).logits)


def test_a_dan_of_unknown_classes_or_of_other_tensors_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = DAN(DANConfig(7)).state_dict()
    torch.save({"model_state_dict": state}, tmp_path / "seven.pth")
    assert run("import", tmp_path / "seven.pth", tmp_path / "x.safetensors") == 1
    assert "a DAN of 7 classes, and 0 are named: give --classes" in capsys.readouterr().err
    torch.save({"model_state_dict": {**state, "extra": torch.ones(1)}}, tmp_path / "more.pth")
    classes = ["--classes", "a,b,c,d,e,f,g"]
    assert run("import", tmp_path / "more.pth", tmp_path / "x.safetensors", *classes) == 1
    assert "unknown extra" in capsys.readouterr().err
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    assert run("import", tmp_path / "other.pth", tmp_path / "x.safetensors", *classes) == 1
    assert "not a DAN" in capsys.readouterr().err and not (tmp_path / "x.safetensors").exists()


def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return (Path.touch, (Path("pwned"),))  # type: ignore[return-value]

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    assert run("import", tmp_path / "evil.pth", tmp_path / "x.safetensors") == 1
    assert not Path("pwned").exists() and not (tmp_path / "x.safetensors").exists()
    assert "nothing in it was run" in capsys.readouterr().err


def test_dry_run_says_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pretrain", "--dry-run", "pretrain_demo", *TINY_MAE, "train.batch_size=8") == 0
    text = capsys.readouterr().out
    for said in ("trainable", "8 × 2 accumulated = 16", "learning rate", "images/s", "GiB", "to be rendered"):
        assert said in text
    assert list(tmp_path.iterdir()) == []
