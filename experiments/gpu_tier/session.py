"""Many trainings at once on one device, and the lines that are written of them."""

import json
import math
import platform
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.gpu_tier.images import Splits
from experiments.gpu_tier.job import Job
from experiments.gpu_tier.plan import Recipe
from experiments.records import commit

Line = Mapping[str, Any]
"""What is written of one job or measurement."""

Planned = tuple[str, int, int, Recipe]
"""A job to come: arm, seed, plain_full's epochs, recipe."""


class Session:
    """Where the lines go, and when to stop."""

    def __init__(self, out: Path, seconds: float = math.inf) -> None:
        """Begin to count, and write on what."""
        self.lines, self.end = out / "gpu-tier.jsonl", time.monotonic() + seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        out.mkdir(parents=True, exist_ok=True)
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        versions = {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        self.write("machine", machine=name, versions=versions, commit=commit())

    def write(self, stage: str, **content: Any) -> None:
        """Append one line and show its beginning."""
        line = json.dumps({"stage": stage, **content})
        with self.lines.open("a") as file:
            file.write(line + "\n")
        print(line[:300], flush=True)

    def train_all(self, stage: str, planned: Sequence[Planned], splits: Splits) -> list[dict[str, Any]]:
        """Train jobs, a few at once; write the results of each; stop cleanly at the end of the time."""
        waiting, active, finished = deque(planned), list[Job](), list[dict[str, Any]]()
        while waiting or active:
            while waiting and len(active) < waiting[0][3].at_once:
                active.append(Job(*waiting.popleft(), splits))
                active[-1].capture()
            for job in [job for job in active if job.idle]:
                if job.done < job.steps:
                    job.advance()
                    continue
                active.remove(job)
                finished.append(job.results())
                self.write(stage, **finished[-1])
            if time.monotonic() > self.end:
                unfinished = [*((job.arm, job.seed) for job in active), *(job[:2] for job in waiting)]
                self.write("stopped", during=stage, dataset=splits.name, jobs=unfinished)
                break
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return finished
