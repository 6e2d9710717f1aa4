"""Stopping a long run politely: the first signal is noted, the loop decides when to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stagecost.errors import StageCostError


class StoppedError(StageCostError):
    """A run was stopped from outside, and saved."""


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a flag; a second one stops at once."""
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set  # only the main thread may handle signals
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: object) -> None:
        seen.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in signals:
        signal.signal(number, note)
    try:
        yield seen.is_set
    finally:
        for number in signals:
            signal.signal(number, before[number])
