"""What every recorded result names: command, commit, machine, threads, versions."""

import os
import subprocess
from pathlib import Path
from typing import Any

from stagecost.benchmark.machine import machine, versions

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where this is one."""


def circumstances(command: str) -> dict[str, Any]:
    """Return the command, commit, machine, threads and versions that a record names."""
    return {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "versions": versions(),
    }


def commit() -> str:
    """Return the commit of the checkout; of an installed package, "none" and its version.

    An installed package may lie below somebody else's repository, whose commit says nothing of it.
    """
    if (ROOT / "pyproject.toml").is_file():
        command = ["git", "rev-parse", "--short", "HEAD"]
        found = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if found.returncode == 0:
            return found.stdout.strip()
    return f"none, version {versions()['stagecost']}"
