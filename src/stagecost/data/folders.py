"""What a folder holds: its path and the names in it are taken literally, and links are followed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stagecost.data.class_names import shown
from stagecost.errors import StageCostError

DEEPEST = 64  # levels of directories


@dataclass(frozen=True)
class Listing:
    """What lies below a folder, as paths relative to it with '/' between their parts, in order.

    Names that begin with a dot are passed over, as those of notebooks and file managers.
    """

    folder: Path
    files: tuple[str, ...]
    directories: tuple[str, ...]

    def ending_in(self, endings: frozenset[str]) -> list[str]:
        """Return the files with one of these endings, which are in lower case."""
        return [name for name in self.files if os.path.splitext(name)[1].lower() in endings]  # noqa: PTH122


def list_folder(folder: Path) -> Listing:
    """List everything below a folder.

    Raises:
        StageCostError: a directory cannot be read, or is too far down.
    """
    entries = list(_below(folder, "", frozenset()))
    files, directories = (
        tuple(name for name, is_directory in entries if is_directory == kind) for kind in (False, True)
    )
    return Listing(folder, files, directories)


def _below(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """Yield the path of each entry, and whether it is a directory."""
    try:
        with os.scandir(folder / prefix) as entries:
            ordered = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda e: e.name)
        identity = (folder / prefix).stat()
    except OSError as error:
        raise StageCostError(
            f"data folder {shown(folder / prefix)} cannot be read ({error.strerror}): check its "
            "permissions"
        ) from error
    here = above | {(identity.st_dev, identity.st_ino)}
    if len(here) > DEEPEST:
        raise StageCostError(
            f"data folder {shown(folder)} has more than {DEEPEST} levels of directories: give one that "
            "is further down"
        )
    for entry in ordered:
        name = prefix + entry.name
        lost = entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 (no error for a circle)
        if not lost and entry.is_dir():
            target = entry.stat()
            if (target.st_dev, target.st_ino) not in here:  # else a link to a directory above it
                yield name, True
                yield from _below(folder, f"{name}/", here)
        elif entry.is_symlink() or entry.is_file():  # no device or pipe, which might be read for ever
            yield name, False
