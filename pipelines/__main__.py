"""The command line: `faceprior COMMAND …` = `python -m pipelines COMMAND …`.

Each command is one function here that parses and one elsewhere that works; what a command needs is imported
when it is asked for, so that `--help` and a misspelt setting answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from pipelines.config import ConfigError, check_schedule, load_config

Arguments = argparse.Namespace
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run = Callable[[Arguments], int]
DEFAULT_CONFIG = "pretrain_demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; errors that a user can mend are one message, not a traceback.

    Args:
        argv: words after the program's name; None = those of this process.

    Returns:
        Exit status: 0 done, 1 data or disk, 2 settings, 128 + signal when stopped.
    """
    parser = argparse.ArgumentParser(
        prog="faceprior", description="A facial prior, learned once and reused for every affect task."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_pretrain,
        _add_finetune,
        _add_evaluate,
        _add_predict,
        _add_ensemble,
        _add_soup,
        _add_submission,
        _add_shards,
        _add_doctor,
        _add_import,
        _add_report,
        _add_slurm,
    ):
        add(commands)
    arguments, rest = parser.parse_known_args(argv)
    if rest:  # settings behind an option: argparse does not join them to those before it
        if not hasattr(arguments, "settings") or not all("=" in word and word[0] != "-" for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.settings = [*arguments.settings, *rest]
    try:
        status = int(arguments.run_command(arguments))
        _leave_processes()
        return status
    except ConfigError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except _user_errors() as error:
        return _fail(error, 1)
    except RuntimeError as error:
        from pipelines.processes import plain_error

        return _fail(plain_error(error), 1)


def _leave_processes() -> None:
    if "torch" in sys.modules:
        from pipelines.processes import leave

        leave()


def _fail(error: object, status: int) -> int:
    print(f"faceprior: {error}", file=sys.stderr, flush=True)
    return status


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors whose message names the thing and the remedy."""
    from pipelines.checkpoint import CheckpointError
    from pipelines.loop import NonFiniteError
    from shards.labels import DataError

    return CheckpointError, DataError, NonFiniteError


def _command(commands: Commands, name: str, text: str, example: str, run: Run) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=f"example: faceprior {example}")
    parser.set_defaults(run_command=run)
    return parser


def _add_demo(commands: Commands) -> None:
    text = "all stages on rendered faces, in minutes, and one page of what came out"
    parser = _command(commands, "demo", text, "demo", _demo)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of every stage")


def _demo(arguments: Arguments) -> int:
    from pipelines.demo import run_demo

    return run_demo(arguments.settings)


def _add_pretrain(commands: Commands) -> None:
    parser = _command(
        commands,
        "pretrain",
        "learn a facial prior from unlabelled faces (MAE)",
        "pretrain pretrain_demo data.shards=data/celeba train.epochs=50",
        _pretrain,
    )
    _add_training_arguments(parser, "*")


def _add_training_arguments(parser: argparse.ArgumentParser, count: str) -> None:
    parser.add_argument(
        "settings", nargs=count, metavar="CONFIG key=value", help="YAML file or its name; settings"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, time it, write nothing"
    )


def _pretrain(arguments: Arguments) -> int:
    settings = list(arguments.settings)
    name = settings.pop(0) if settings and "=" not in settings[0] else DEFAULT_CONFIG
    config = load_config(name, settings)
    _check_task(config.task, ("pretrain",), "pretrain", name)
    check_schedule(config)
    from pipelines.dryrun import dry_run
    from pipelines.pretraining import build_parts, build_trainable
    from pipelines.stage import run_stage

    if arguments.dry_run:
        return dry_run(config, Path(name).stem, build_trainable)
    return run_stage(config, Path(name).stem, build_parts)


def _check_task(task: str, allowed: Sequence[str], command: str, name: str) -> None:
    if task not in allowed:
        other = "finetune" if command == "pretrain" else "pretrain"
        raise ConfigError(
            f"{name}: task={task!r} is not one of `faceprior {command}`; use `faceprior {other}`"
        )


def _add_finetune(commands: Commands) -> None:
    parser = _command(
        commands,
        "finetune",
        "learn expressions, action units, valence and arousal from a pretrained encoder",
        "finetune mtl_demo data.shards=data/affwild2 init=runs/pretrain/celeba cnn=runs/dan/affectnet",
        _finetune,
    )
    _add_training_arguments(parser, "+")


def _finetune(arguments: Arguments) -> int:
    settings = list(arguments.settings)
    if "=" in settings[0]:
        raise ConfigError(
            f"finetune begins with a configuration, as in `faceprior finetune mtl_demo {settings[0]}`"
        )
    name = settings.pop(0)
    config = load_config(name, settings)
    from pipelines.dryrun import dry_run
    from pipelines.finetuning import TASKS, build_trainable, run_finetuning

    _check_task(config.task, TASKS, "finetune", name)
    check_schedule(config)

    if arguments.dry_run:
        return dry_run(config, Path(name).stem, build_trainable)
    return run_finetuning(config, Path(name).stem)


def _add_evaluate(commands: Commands) -> None:
    text = "score a finished run on a split, with confidence intervals"
    parser = _command(commands, "evaluate", text, "evaluate runs/mtl/mtl_demo --split test", _evaluate)
    named = "run directory or checkpoint folder; runs of a cross-validation (data.fold) are pooled too"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=named)
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--shards", default="", help="other shards than the run's, comma-separated")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="choose AU thresholds and smoothing (of valence and arousal of video: median, bias, scale and "
        "delay) on this split, keep them for the others",
    )
    parser.add_argument("--batch-size", type=int, default=0)


def _evaluate(arguments: Arguments) -> int:
    from pipelines.evaluation import evaluate, evaluate_folds

    options = (arguments.split, arguments.shards, arguments.tune, arguments.batch_size)
    if len(arguments.runs) == 1:
        evaluate(arguments.runs[0], *options)
    else:
        evaluate_folds(arguments.runs, *options)
    return 0


def _add_predict(commands: Commands) -> None:
    from pipelines.predictconfig import add_arguments

    text = "find the faces in pictures and videos, and write what a run's model says of them"
    example = "predict runs/mtl/mtl_demo holiday/ --out faces.csv --pictures annotated/"
    add_arguments(_command(commands, "predict", text, example, _predict))


def _predict(arguments: Arguments) -> int:
    from pipelines.predict import run_arguments

    return run_arguments(arguments)


def _add_ensemble(commands: Commands) -> None:
    text = "mean of several runs' or epochs' predictions"
    example = "ensemble runs/mtl/a/predictions/val.csv runs/mtl/b/predictions/val.csv --out both.csv"
    parser = _command(commands, "ensemble", text, example, _ensemble)
    parser.add_argument("predictions", nargs="+", type=Path, metavar="CSV", help="predictions/<split>.csv")
    parser.add_argument("--out", type=Path, required=True, help="csv to write")
    parser.add_argument("--weights", default="", help="one number for each csv, comma-separated")
    parser.add_argument(
        "--tune",
        type=Path,
        metavar="FOLDER",
        help="choose the ensemble's AU thresholds and smoothing on this split, keep them in FOLDER",
    )


def _ensemble(arguments: Arguments) -> int:
    from pipelines.evaluation import ensemble

    return ensemble(arguments.predictions, arguments.out, arguments.weights, arguments.tune)


def _add_soup(commands: Commands) -> None:
    text = "mean of several runs' or epochs' weights: one model that costs no more than each of them"
    example = "soup runs/mtl/a runs/mtl/b --out runs/mtl/soup --greedy val"
    parser = _command(commands, "soup", text, example, _soup)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories or checkpoints")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="run directory to make")
    parser.add_argument(
        "--greedy",
        default="",
        metavar="SPLIT",
        choices=("train", "val", "test"),
        help="from the best on, add those that do not lower the score on this split; else all",
    )
    parser.add_argument("--shards", default="", help="other shards than the first run's, comma-separated")
    parser.add_argument("--batch-size", type=int, default=0)


def _soup(arguments: Arguments) -> int:
    from pipelines.soup import make_soup

    return make_soup(arguments.runs, arguments.out, arguments.greedy, arguments.shards, arguments.batch_size)


def _add_submission(commands: Commands) -> None:
    text = "write a challenge's prediction file, or check one"
    example = "submission runs/mtl/a/predictions/test.csv test_list.txt predictions.txt"
    parser = _command(commands, "submission", text, example, _submission)
    parser.add_argument(
        "predictions", type=Path, metavar="CSV", help="predictions/<split>.csv of a run or ensemble"
    )
    parser.add_argument("names", type=Path, metavar="LIST", help="the challenge's list of names")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, or to check")
    parser.add_argument("--challenge", default="mtl", choices=("mtl", "lsd"))
    parser.add_argument(
        "--tuned",
        type=Path,
        metavar="RUN",
        help="run, or an ensemble's --tune FOLDER, whose thresholds and smoothing are used",
    )
    parser.add_argument("--check", action="store_true", help="only check OUT")


def _submission(arguments: Arguments) -> int:
    from pipelines.evaluation import check_submission, write_submission

    if arguments.check:
        return check_submission(arguments.out, arguments.names, arguments.challenge)
    return write_submission(
        arguments.predictions, arguments.names, arguments.out, arguments.challenge, arguments.tuned
    )


def _add_shards(commands: Commands) -> None:
    text = (
        "raw faces -> aligned faces in tar shards; join parts; index foreign tars; render the default faces"
    )
    parser = _command(commands, "shards", text, "shards build celeba ~/celeba data/celeba", _shards)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="make shards of a data set")
    build.add_argument("source", help="layout: folder, celeba, tars, emotionet, affwild2, …")
    build.add_argument("src", help="where the data set is")
    build.add_argument("out", type=Path, help="folder that gets one folder per split")
    build.add_argument(
        "settings", nargs="*", metavar="key=value", help="align.size=112 align.margin=0.2 build.part=1/8 …"
    )
    merge = actions.add_parser("merge", help="join the parts of a build")
    merge.add_argument("out", type=Path)
    merge.add_argument("settings", nargs="*", metavar="key=value", help="build.max_quarantined=0.1")
    index = actions.add_parser("index", help="make a shard set of WebDataset tars where they lie")
    index.add_argument("folder", type=Path)
    index.add_argument("--split", default="train", choices=("train", "val", "test"))
    index.add_argument("--name", default="", help="of the data set")
    index.add_argument("--licence", default="not stated")
    actions.add_parser("default", help="render the default faces")


def _shards(arguments: Arguments) -> int:
    from pipelines.data import make_default
    from pipelines.sharding import build_shards, describe, index_shards, merge_shards

    if arguments.action == "default":
        print(make_default())
        return 0
    if arguments.action == "build":
        manifests = build_shards(arguments.source, arguments.src, arguments.out, arguments.settings)
    elif arguments.action == "merge":
        manifests = merge_shards(arguments.out, arguments.settings)
    else:
        manifests = [index_shards(arguments.folder, arguments.split, arguments.name, arguments.licence)]
    for manifest in manifests:
        print(describe(manifest))
    if not manifests:
        print("part made; run the others, then `faceprior shards merge`")
    return 0


def _add_doctor(commands: Commands) -> None:
    text = "verify every byte and sample of shard sets"
    parser = _command(commands, "doctor", text, "doctor data/celeba --html doctor.html", _doctor)
    parser.add_argument("shards", metavar="SHARDS", help="folders of shard sets, comma-separated")
    parser.add_argument("--html", type=Path, default=None, help="page to write")


def _doctor(arguments: Arguments) -> int:
    from pipelines.doctor import run_doctor

    return run_doctor(arguments.shards, arguments.html)


def _add_import(commands: Commands) -> None:
    text = "convert a foreign .pth to safetensors that init= takes (a DAN's: cnn=); nothing in it is run"
    parser = _command(commands, "import", text, "import mae_pretrain_vit_base.pth mae.safetensors", _import)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", default="", help="a DAN's: a,b,… in its order; AffectNet's 8 are known")


def _import(arguments: Arguments) -> int:
    from pipelines.importing import import_weights

    classes = [name.strip() for name in arguments.classes.split(",")] if arguments.classes else []
    setting = import_weights(arguments.source, arguments.out, classes)
    print(f"{arguments.out}: written; use it as {setting}={arguments.out}")
    return 0


def _add_report(commands: Commands) -> None:
    text = "write report.html from run directories"
    parser = _command(commands, "report", text, "report runs/pretrain/pretrain_demo", _report)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, the subject first"
    )
    parser.add_argument("--out", type=Path, default=None, help="page to write; report.html of the first run")


def _report(arguments: Arguments) -> int:
    from pipelines.report import write_report

    print(write_report(arguments.runs, arguments.out))
    return 0


def _add_slurm(commands: Commands) -> None:
    from pipelines.slurm import add_arguments, run_arguments

    text = "write and submit a SLURM job that saves and requeues itself at its time limit"
    add_arguments(
        _command(commands, "slurm", text, "slurm pretrain_celeba data.shards=… --nodes 2", run_arguments)
    )


if __name__ == "__main__":
    sys.exit(main())
