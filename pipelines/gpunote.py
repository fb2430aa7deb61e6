"""Printed by `make setup`: a note if there is an NVIDIA GPU that torch cannot use."""

from __future__ import annotations

import shutil
import subprocess


def note() -> str:
    """What to do about a GPU that torch cannot use; "" if there is none, or it can."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.strip():
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        f"NOTE: there is a GPU ({found.stdout.splitlines()[0]}), but torch {torch.__version__} (CUDA "
        f"{torch.version.cuda}) cannot use it: its driver is too old for this wheel. Remove the environment "
        "and run `make setup BACKEND=cu126`, or update the driver."
    )


if __name__ == "__main__":
    if text := note():
        print(text)
