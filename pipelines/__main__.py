"""The command line: `faceprior COMMAND …` = `python -m pipelines COMMAND …`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.config import ConfigError, load_config

_EXAMPLES = {
    "pretrain": "faceprior pretrain pretrain_demo data.shards=data/celeba train.epochs=50",
    "report": "faceprior report runs/pretrain/pretrain_demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; errors that a user can mend are one message, not a traceback."""
    parser = argparse.ArgumentParser(prog="faceprior", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_pretrain(commands)
    _add_report(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run_command(arguments))
    except ConfigError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except _user_errors() as error:
        return _fail(error, 1)


def _fail(error: BaseException, status: int) -> int:
    print(f"faceprior: {error}", file=sys.stderr, flush=True)
    return status


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors whose message names the thing and the remedy."""
    from pipelines.checkpoint import CheckpointError
    from pipelines.loop import NonFiniteError
    from shards.labels import DataError

    return CheckpointError, DataError, NonFiniteError


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, epilog=f"example: {_EXAMPLES[name]}")


def _add_pretrain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "pretrain", "learn a facial prior from unlabelled faces (MAE)")
    parser.add_argument(
        "settings", nargs="*", metavar="CONFIG key=value", help="YAML file or its name; settings"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, time it, write nothing"
    )
    parser.set_defaults(run_command=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> int:
    settings = list(arguments.settings)
    name = settings.pop(0) if settings and "=" not in settings[0] else "pretrain_demo"
    config = load_config(name, settings)
    from pipelines.dryrun import dry_run
    from pipelines.pretraining import build_parts, build_trainable
    from pipelines.stage import run_stage

    if arguments.dry_run:
        return dry_run(config, Path(name).stem, build_trainable)
    return run_stage(config, Path(name).stem, build_parts)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "report", "write report.html from run directories")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, the subject first"
    )
    parser.set_defaults(run_command=_report)


def _report(arguments: argparse.Namespace) -> int:
    from pipelines.report import write_report

    print(write_report(arguments.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
