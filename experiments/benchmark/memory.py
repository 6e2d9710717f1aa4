"""The peak of a step's memory above the resting level: exact bytes, not the process's size.

On the CPU torch's profiler reports every block that its allocator hands out or takes back; the peak of
their running sum is the answer. What was there before (weights, momentum) is the resting level. Scratch
memory that oneDNN takes from the system itself is seen by neither arm.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.benchmark.timing import Arm


def peak_bytes(arm: Arm, device: torch.device) -> int:
    """Run an arm twice, and return the peak of what the second run allocates above the resting level."""
    arm()  # what stays afterwards, such as momentum, is the resting level
    if device.type == "cuda":
        return _peak_on_cuda(arm, device)
    # Without a GPU the profiler's library complains about missing ones on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        arm()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    return peak_of(size for _, size in sorted(changes, key=lambda change: change[0]))


def peak_of(changes: Iterable[int]) -> int:
    """Return the largest running sum of allocations (positive) and releases (negative), at least 0."""
    return max(accumulate(changes, initial=0))


def _peak_on_cuda(arm: Arm, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    resting = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    arm()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - resting
