"""A run as a SLURM job that saves before its time limit and goes back into the queue until it is done."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import ConfigError, load_config
from shards.files import clear_disk_errors, write_atomic

_TEMPLATE = Path(__file__).parent / "launch" / "job.sbatch"
_CPUS_PER_GPU = 8
_PLAIN = re.compile(r"[A-Za-z0-9_.,:;=+@%/~^&|!*\[\]()-]+")  # what an #SBATCH line takes without quotes


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM.

    Attributes:
        nodes: machines.
        gpus_per_node: GPUs of each, a process for every one; 0 = one process on the CPU.
        cpus_per_node: cores of each; 0 = 8 for every GPU.
        time: limit, as sbatch writes it ("12:00:00"); "" = the site's own.
        partition, account: where and for whom; "" = the user's own.
        options: further options of sbatch ("--qos=high").
        grace: seconds before the time limit at which the run is told to save.
    """

    nodes: int = 1
    gpus_per_node: int = 1
    cpus_per_node: int = 0
    time: str = ""
    partition: str = ""
    account: str = ""
    options: tuple[str, ...] = ()
    grace: int = 120

    @property
    def processes_per_node(self) -> int:
        """Training processes on each node."""
        return max(1, self.gpus_per_node)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `faceprior slurm`; settings come before the options."""
    parser.add_argument(
        "settings", nargs="*", metavar="CONFIG key=value", help="YAML file or its name; settings"
    )
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (1)")
    parser.add_argument(
        "--gpus-per-node", type=int, default=1, metavar="N", help="a process for each (1); 0 = a CPU"
    )
    parser.add_argument(
        "--cpus-per-node", type=int, default=0, metavar="N", help=f"cores ({_CPUS_PER_GPU} for each GPU)"
    )
    parser.add_argument("--time", default="", help="limit, as in 12:00:00")
    parser.add_argument("--partition", default="", help="of the site")
    parser.add_argument("--account", default="", help="of the site")
    parser.add_argument("--grace", type=int, default=120, metavar="SECONDS", help="to save in (120)")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="--NAME=VALUE",
        help="further option of sbatch, as in --sbatch=--qos=high",
    )
    parser.add_argument("--print", action="store_true", dest="show", help="print the script, submit nothing")


def run_arguments(arguments: argparse.Namespace, default_config: str = "pretrain_demo") -> int:
    """`faceprior slurm` as parsed; see `run_slurm`."""
    settings = list(arguments.settings)
    config = settings.pop(0) if settings and "=" not in settings[0] else default_config
    job = Job(
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        cpus_per_node=arguments.cpus_per_node,
        time=arguments.time,
        partition=arguments.partition,
        account=arguments.account,
        options=tuple(arguments.sbatch),
        grace=arguments.grace,
    )
    return run_slurm(config, settings, job, show=arguments.show)


def run_slurm(config: str, settings: Sequence[str], job: Job, show: bool = False) -> int:
    """Writes `job.sbatch` into the run directory and submits it, or only prints it.

    Args:
        config: YAML file or its name.
        settings: `key=value` texts.
        job: what is asked of SLURM.
        show: print the script and write nothing.

    Returns:
        Exit status.

    Raises:
        ConfigError: a setting, path or option that cannot be used, or a refusal of sbatch.
        DataError: a batch that the processes cannot share.
    """
    from pipelines.stage import run_path

    script = sbatch_script(config, settings, job)
    if show:
        print(script, end="")
        return 0
    run = run_path(load_config(config, settings), Path(config).stem)
    path = run / "job.sbatch"
    with clear_disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    write_atomic(path, script.encode())
    try:
        subprocess.run(["sbatch", str(path)], check=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no sbatch here; {path} is written: submit it with sbatch from a login node"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"sbatch refused {path} (status {error.returncode}): change what it names, or give options "
            "of your site with --sbatch"
        ) from error
    return 0


def sbatch_script(config: str, settings: Sequence[str], job: Job) -> str:
    """The batch script; every value in it is quoted for the shell or refused.

    Args and errors: see `run_slurm`.
    """
    from pipelines.stage import run_path
    from shards.shardset import set_folders
    from shards.stream import plan_layout

    resolved = load_config(config, settings)
    words = ["pretrain" if resolved.task == "pretrain" else "finetune", config, *settings]
    for word in (*words, str(Path.cwd()), sys.executable):
        if not word.isprintable():
            raise ConfigError(f"{word!r}: line breaks and control characters cannot go into a batch script")
    for name in ("nodes", "grace"):
        if getattr(job, name) < 1:
            raise ConfigError(f"{name}={getattr(job, name)}: must be at least 1")
    for name in ("gpus_per_node", "cpus_per_node"):
        if getattr(job, name) < 0:
            raise ConfigError(f"{name}={getattr(job, name)}: must not be negative")
    train = resolved.train
    plan_layout(train.global_batch_size, train.batch_size, 0, job.nodes * job.processes_per_node)
    for folder in set_folders(resolved.data.shards):
        if not folder.is_dir():
            raise ConfigError(f"data.shards={folder}: no such folder here; a job could not read it either")
    run = run_path(resolved, Path(config).stem)
    log = f"{str(Path(run).absolute()).replace('%', '%%')}/slurm-%j.out"
    fields = {
        "NAME": _plain("the run's name", run.name),
        "LOG": _plain("run", log),
        "OPTIONS": "".join(f"#SBATCH {option}\n" for option in _options(job)),
        "NODES": str(job.nodes),
        "CPUS": str(job.cpus_per_node or _CPUS_PER_GPU * job.processes_per_node),
        "GRACE": str(job.grace),
        "STOPPED": shlex.quote(str(run.absolute() / "stopped")),
        "FOLDER": shlex.quote(str(Path.cwd())),
        "PYTHON": shlex.quote(sys.executable),
        "PROCESSES": str(job.processes_per_node),
        "COMMAND": shlex.join(words),
        "ENVIRONMENT": "" if job.gpus_per_node else " ACCELERATE_USE_CPU=true",
    }
    return re.sub(r"{{(\w+)}}", lambda match: fields[match[1]], _TEMPLATE.read_text())


def _options(job: Job) -> list[str]:
    """Options of sbatch that not every job has."""
    options = [f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []
    given = {"time": job.time, "partition": job.partition, "account": job.account}
    options += [f"--{name}={_plain(f'--{name}', value)}" for name, value in given.items() if value]
    for option in job.options:
        if not option.startswith("--"):
            raise ConfigError(f"{option!r}: an option of sbatch is written --name=value, as in --qos=high")
        options.append(_plain("--sbatch", option))
    return options


def _plain(what: str, value: str) -> str:
    """A value that an #SBATCH line takes as it is.

    Raises:
        ConfigError: blanks, quotes or other characters that such a line would read differently.
    """
    if not _PLAIN.fullmatch(value):
        raise ConfigError(
            f"{what} {value!r}: an #SBATCH line cannot hold this; use letters, digits and {'-_.,:=+@%/'}"
        )
    return value
