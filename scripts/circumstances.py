"""What every recorded result names: command, commit, machine, threads, versions."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def circumstances(command: str) -> dict[str, Any]:
    """Return the command, commit, machine, threads and versions that a record names."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    versions = {name: importlib.metadata.version(name) for name in ("stagecost", "torch", "numpy")}
    return {
        "command": command,
        "commit": commit.stdout.strip(),
        "machine": machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "versions": {**versions, "python": platform.python_version()},
    }


def machine() -> str:
    """Name the processor and how many cores there are."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"
