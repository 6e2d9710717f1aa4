"""What every recorded result names: command, commit, machine, threads, versions."""

import os
import subprocess
from pathlib import Path
from typing import Any

from stagecost.benchmark.machine import machine, versions

ROOT = Path(__file__).resolve().parent.parent


def circumstances(command: str) -> dict[str, Any]:
    """Return the command, commit, machine, threads and versions that a record names."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return {
        "command": command,
        "commit": commit.stdout.strip(),
        "machine": machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "versions": versions(),
    }
