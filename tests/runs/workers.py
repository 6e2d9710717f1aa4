"""Functions of the library in processes of their own, which can be killed.

They are forked from one that has imported everything, so that they start at once.
"""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from stagecost.errors import StageCostError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["stagecost.runs.training", "lightning_fabric", "datasets"])


def start(
    function: Callable[..., Any], *arguments: Any, told: Path, **options: Any
) -> ForkServerProcess:
    """Call a function in a process; what it refuses, or an exception, is told in a file."""
    process = CONTEXT.Process(target=_run, args=(function, arguments, options, told))
    process.start()
    return process


def _run(function: Callable[..., Any], arguments: Any, options: Any, told: Path) -> None:
    import torch

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    try:
        function(*arguments, **options)
    except StageCostError as error:
        told.write_text(str(error))
        sys.exit(2)
    except Exception:
        told.write_text(traceback.format_exc())
        sys.exit(1)
