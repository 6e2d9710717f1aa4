"""Virtual environments of their own: links to some of the packages that are installed here."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def needed(*names: str) -> set[str]:
    """Return the names of distributions and of all that they need."""
    known: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform
            continue
        known.add(name)
        plain = (requirement for requirement in requirements if "extra ==" not in requirement)
        waiting += [re.split(r"[\s;<>=!~\[(]", requirement)[0] for requirement in plain]
    return known


def make_environment(folder: Path, *names: str) -> Path:
    """Make an environment with some packages and what they need; return its folder of packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = Path(str(distribution("torch").locate_file("")))
    for name in needed(*names):
        for file in distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "bin") and not (packages / top).exists():
                (packages / top).symlink_to(here / top)
    return packages
