"""One run a folder: an exclusive lock from the first look to the end, freed by the system on death."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stagecost.errors import StageCostError

LOCK_FILE = ".lock"
ATTEMPTS = 100  # to make a folder that others remove meanwhile
_log = logging.getLogger("stagecost")


class FolderLock:
    """An exclusive lock on a folder that this process holds."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        """Take a descriptor of the lock file."""
        self.folder, self.descriptor = folder, descriptor

    def check(self) -> None:
        """Refuse to go on where the folder was removed or replaced meanwhile."""
        if not _is_file(self.descriptor, self.folder / LOCK_FILE):
            raise StageCostError(
                f"{self.folder} was removed or replaced while this run was writing to it: start again "
                "with another --output"
            )


@contextmanager
def locked(folder: Path, purpose: str = "is being trained") -> Iterator[FolderLock]:
    """Hold a folder for this process alone; it is created if missing, and goes again if it stays empty.

    The purpose is told to others that want it meanwhile.

    Raises:
        StageCostError: it is a file, or another process holds it.
    """
    if folder.is_file():
        raise StageCostError(f"{folder} is a file: give a folder as --output")
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    descriptor = _acquire(folder, purpose)
    try:
        yield FolderLock(folder, descriptor)
    finally:
        # Removed while it is held: whoever waits for it notices, and makes a new one.
        if _is_file(descriptor, folder / LOCK_FILE):
            with suppress(OSError):
                (folder / LOCK_FILE).unlink()
        os.close(descriptor)
        with suppress(OSError):
            for path in created:
                path.rmdir()


def _acquire(folder: Path, purpose: str, attempts: int = ATTEMPTS) -> int:
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except (FileNotFoundError, FileExistsError):  # it went again with the process that had created it
        if not attempts:
            raise
        return _acquire(folder, purpose, attempts - 1)
    try:
        _lock(descriptor, path)
    except BlockingIOError:
        os.close(descriptor)
        raise StageCostError(
            f"{folder} {purpose} by another process: wait for its end, or give another folder"
        ) from None
    if _is_file(descriptor, path):
        return descriptor
    os.close(descriptor)
    return _acquire(folder, purpose, attempts)


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such system
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        _log.warning(
            "%s cannot be locked here: make sure that one process alone writes to its folder", path
        )


def _is_file(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
