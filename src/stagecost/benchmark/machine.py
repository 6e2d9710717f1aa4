"""Which machine and which versions a measurement comes from."""

import importlib.metadata
import os
import platform
from pathlib import Path


def machine() -> str:
    """Name the processor and how many cores there are."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Return the versions of this package, of what it computes with, and of Python."""
    packages = {name: importlib.metadata.version(name) for name in ("stagecost", "torch", "numpy")}
    return {**packages, "python": platform.python_version()}
