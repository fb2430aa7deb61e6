"""What is installed: four packages, their files, one command; and a lock that names no host."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_files_that_code_needs_are_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"
    assert resources.files("pipelines").joinpath("configs/pretrain_demo.yaml").is_file()
    assert resources.files("shards.render").joinpath("anny_head.npz").is_file()


def test_the_lock_has_hashes_and_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    allowed = re.compile(
        r"[a-z0-9][\w.-]*==\S+( ; [^/]*)?( \\)?$|    --hash=sha256:[0-9a-f]{64}( \\)?$|    #[^/]*$"
    )
    assert [line for line in lock.splitlines() if not allowed.match(line)] == []
    pins = re.findall(r"^[a-z0-9][\w.-]*==\S+", lock, re.MULTILINE)
    assert len(pins) > 40 and lock.count("--hash=sha256:") >= len(pins)


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=\[ ]", text)[0].lower() for text in project["dependencies"]}
    locked = set(re.findall(r"^([a-z0-9][\w.-]*)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert wanted <= locked


def test_the_command_explains_itself() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pipelines", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for command in ("pretrain", "shards", "doctor", "import", "report", "slurm"):
        assert command in shown.stdout
