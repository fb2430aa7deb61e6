"""`faceprior soup`: the mean of weights is a run like any other, and says what it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.__main__ import main
from pipelines.checkpoint import load_encoder
from pipelines.models import load_model
from tests.pipelines.tiny import TINY
from tests.shards.faces import smooth_jpeg

ENTRIES = ("a", "b", "c")
SETTINGS = [*TINY, "head.readout=flat", "head.readout_dim=4", "train.epochs=1", "train.save_every=3"]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def state(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(path).model.state_dict())


def made_of(path: Path) -> dict[str, object]:
    return dict(json.loads((path / "run.json").read_text())["soup"])


def score_of(path: Path) -> float:
    return float(json.loads((path / "scores" / "val.json").read_text())["headline"]["score"]["value"])


@pytest.fixture(scope="module")
def runs(smooth: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trainings from one encoder in which only seed and drop path differ, and an alien."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("pipelines.report.write_report", lambda runs: runs[0] / "report.html")
        config = folder / "mtl_tiny.yaml"
        config.write_text("task: mtl\nmodel: vit\n")
        more = [*SETTINGS, f"data.shards={smooth}", f"init={finished}"]
        for seed, name in enumerate(ENTRIES):
            drop_path = f"encoder.drop_path_rate={0.1 * seed}"
            assert run("finetune", config, *more, drop_path, f"seed={seed}", f"run={name}") == 0
        assert run("finetune", config, *more, "head.hidden_dim=8", "run=other") == 0
    return folder


@pytest.fixture(autouse=True)
def beside_the_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


@pytest.mark.reports
def test_all_weights_are_the_means_and_the_soup_is_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    assert run("soup", "a", "b", "--out", out) == 0
    assert f"{out}: mean of the weights of 2 of 2" in capsys.readouterr().out
    one, two, soup = state(Path("a")), state(Path("b")), state(out)
    for name, tensor in soup.items():
        expected = ((one[name].double() + two[name].double()) / 2).to(tensor.dtype)
        assert torch.equal(tensor, expected), name
    assert any(not torch.equal(one[name], soup[name]) for name in soup)
    encoder = load_encoder(out).state_dict()
    assert all(torch.equal(tensor, soup[f"encoder.{name}"]) for name, tensor in encoder.items())
    members = made_of(out)["members"]
    assert isinstance(members, list) and [member.split(" ")[0] for member in members] == ["a", "b"]
    assert "step 6" in members[0]
    assert run("evaluate", out) == 0 and (out / "predictions" / "val.csv").is_file()
    assert run("report", out, "a") == 0 and "macro F1" in (out / "report.html").read_text()
    assert not (tmp_path / "runs").exists()


def test_a_greedy_soup_is_scored_as_it_will_be_and_beats_its_members(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    assert run("soup", *ENTRIES, "--out", out, "--greedy", "val") == 0
    said = capsys.readouterr().out
    facts = made_of(out)
    scores, score = facts["scores"], facts["score"]
    assert isinstance(scores, dict) and isinstance(score, float) and facts["chosen_on"] == "val"
    for name in (*ENTRIES, out):
        assert run("evaluate", name) == 0
    for name in ENTRIES:
        assert scores[name] == pytest.approx(score_of(Path(name)), abs=1e-6)
        assert scores[name] <= score
    assert score == pytest.approx(score_of(out), abs=1e-6)
    members = [str(member).split(" ")[0] for member in facts["members"]]  # type: ignore[attr-defined]
    assert members[0] == max(scores, key=lambda name: scores[name])
    expected = np.mean([state(Path(name))["encoder.cls_token"].double().numpy() for name in members], 0)
    np.testing.assert_allclose(state(out)["encoder.cls_token"].numpy(), expected, rtol=0, atol=1e-7)
    assert f"the mean: {score:.4f} on val, where it was chosen: too high to report" in said
    for name in ENTRIES:
        assert f"  {name}: {scores[name]:.4f}{'' if name in members else ', left out'}\n" in said


def test_epochs_of_one_run_make_a_soup(tmp_path: Path) -> None:
    epochs = [Path("a/checkpoints/step-00000003"), Path("a/checkpoints/step-00000006")]
    assert run("soup", *epochs, "--out", tmp_path / "soup") == 0
    one, two, soup = state(epochs[0]), state(epochs[1]), state(tmp_path / "soup")
    name = "encoder.pos_embed"
    assert not torch.equal(one[name], two[name])
    assert torch.equal(soup[name], ((one[name].double() + two[name].double()) / 2).float())


def test_a_training_does_not_go_on_from_a_soup(
    smooth: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    assert run("soup", "a", "b", "--out", out) == 0
    settings = [*SETTINGS, f"data.shards={smooth}", f"init={finished}", "encoder.drop_path_rate=0.0"]
    assert run("finetune", "mtl_tiny.yaml", *settings, "seed=0", f"run={out}") == 1
    assert "holds weights alone, no training to go on with" in capsys.readouterr().err


def test_what_has_no_mean_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "soup"
    for words, status, said in (
        (("a", "other"), 1, "a and other are not built alike and have no mean: head is HeadConfig("),
        (("a", "b", "a"), 2, "a is there twice"),
        (("a", "nowhere"), 1, "nowhere: no checkpoint there"),
        (("nowhere", "a"), 2, "nowhere: no run there"),
        (("a", "b", "--greedy", "test"), 1, "no finished shards for 'test'"),
    ):
        assert run("soup", *words, "--out", out) == status
        assert said in capsys.readouterr().err and not out.exists()
    assert run("soup", "a", "b", "--out", "c") == 2
    assert "c: there is a run already; give another --out" in capsys.readouterr().err


def test_a_split_without_labels_chooses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        (tmp_path / "faces").mkdir(exist_ok=True)
        (tmp_path / "faces" / f"{number}.jpg").write_bytes(smooth_jpeg(number))
    (tmp_path / "faces" / "labels.csv").write_text(
        "file,split\n" + "".join(f"{n}.jpg,val\n" for n in range(4))
    )
    build = ("shards", "build", "folder", tmp_path / "faces", tmp_path / "set", "align.mode=none")
    assert run(*build, "align.size=0", "build.workers=1") == 0
    capsys.readouterr()
    words = ("a", "b", "--greedy", "val", "--shards", tmp_path / "set")
    assert run("soup", *words, "--out", tmp_path / "soup") == 1
    assert "split val has no label of what these models predict" in capsys.readouterr().err
    assert not (tmp_path / "soup").exists()
