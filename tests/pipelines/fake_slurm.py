"""Stand-ins for srun, scontrol and sbatch that do what SLURM's own do to a batch script and its signals."""

from __future__ import annotations

import sys
from pathlib import Path

_SRUN = """#!{python}
# Runs the command once for each node. USR1 goes on to the tasks; TERM kills them, as srun's does.
import os, signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
tasks = []
def forward(number, frame):
    for task in tasks:
        if task.poll() is None:
            os.killpg(task.pid, signal.SIGKILL if number == signal.SIGTERM else number)
signal.signal(signal.SIGUSR1, forward)
signal.signal(signal.SIGTERM, forward)
for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
    environment = os.environ | {{"SLURM_NODEID": str(node)}}
    tasks.append(subprocess.Popen(command, env=environment, start_new_session=True))
codes = [task.wait() for task in tasks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""

_STUB = """#!{python}
# A step that records its command; if WAIT is set, it ends with STATUS when USR1 comes, else at once.
# SAVED is what a run marks that has saved when it was stopped.
import json, os, pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
def stop(number, frame):
    if os.environ.get("SAVED"):
        pathlib.Path(os.environ["SAVED"]).touch()
    sys.exit(int(os.environ["STATUS"]))
signal.signal(signal.SIGUSR1, stop)
(folder / "command.json").write_text(json.dumps(sys.argv[1:]))
while os.environ.get("WAIT"):
    time.sleep(0.01)
sys.exit(int(os.environ["STATUS"]))
"""

_SCONTROL = """#!/bin/sh
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; else echo "scontrol $*" >>{folder}/calls; fi
"""

_SBATCH = """#!/bin/sh
echo "sbatch $*" >>{folder}/calls
[ -z "$REFUSE" ] || {{ echo "sbatch: error: invalid partition" >&2; exit 1; }}
echo Submitted batch job 7
"""


def install(folder: Path, stub: bool = False) -> None:
    """Puts the commands into `folder`/bin; what they are asked goes to `folder`/calls."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    programs = {"srun": _STUB if stub else _SRUN, "scontrol": _SCONTROL, "sbatch": _SBATCH}
    for name, text in programs.items():
        path = bin_folder / name
        path.write_text(text.format(python=sys.executable, folder=str(folder)))
        path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    """What scontrol and sbatch were asked to do."""
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []
