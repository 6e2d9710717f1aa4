"""Files that are either whole or not there: atomic writes, and tensors without pickle.

Tensors are stored as safetensors, whose loading never executes code; what describes them travels as
JSON in the header of the same file, so that one rename makes both appear together. JSON is read within
limits: no NaN, no infinite numbers, no deep nesting.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stagecost.errors import StageCostError, refusing

if TYPE_CHECKING:  # the report writes files, too, and has no need of torch
    from torch import Tensor

Metadata = Mapping[str, Any]
"""What describes tensors: JSON by name."""

MAX_NESTING = 32  # levels of lists and mappings in JSON


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the system refuses name the user's file or folder, not a temporary one beside it."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees either the old content or the new.

    The content goes to a temporary file in the same folder, reaches the disk, and is renamed. A pipe or
    a device gets it as it is.

    Raises:
        OSError: no permission, disk full, …; the old file is then untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        if path.exists() and not path.is_file():  # it would be replaced, and its reader wait for ever
            path.write_bytes(data)
            return
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private; this one should be as readable as any other of the user.
            os.umask(mask := os.umask(0))
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def check_writable(path: Path) -> None:
    """Refuse at once, before long work, what `write_atomically` would be refused after it.

    Raises:
        StageCostError: it is a folder.
        OSError: no permission, a disk that is read-only, …
    """
    if path.is_dir():
        raise StageCostError(f"{path} is a folder: give a file")
    if path.is_file() or not path.exists():
        above = next(folder for folder in path.absolute().parents if folder.exists())
        with naming(path), tempfile.TemporaryFile(dir=above):
            pass


def check_replaceable(path: Path, start: bytes) -> None:
    """Refuse to replace a file of another kind than what is to be written, which begins with `start`.

    Raises:
        StageCostError: it holds something else, or see `check_writable`.
        OSError: it may not be written.
    """
    check_writable(path)
    if path.is_file():
        with path.open("rb") as file:
            if not start.startswith(file.read(len(start))):
                raise StageCostError(f"{path} holds something else already: give another file")


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a folder, at most until this process is killed; tell whether no other one does.

    Args:
        folder: that is there.
        wait: until another one that holds it lets it go.
    """
    with ExitStack() as opened:
        alone = False
        with suppress(ImportError, OSError):  # not every system or disk can tell
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            alone = True
        yield alone


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files and folders that a killed process left in a folder."""
    for temporary in folder.glob(".*.tmp"):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, readable for people."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StageCostError: the file is missing or is not JSON.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StageCostError(f"{path} does not exist: check the path") from None
    with refusing(f"{path} is not valid JSON", "restore or delete it", ValueError):
        return parse_json(content.decode())


def parse_json(text: str) -> Any:
    """Parse JSON of moderate depth, in which every number is finite.

    Raises:
        ValueError: it is something else.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_NESTING} levels") from None
    check_nesting(content)
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def check_nesting(content: object, left: int = MAX_NESTING) -> None:
    """Refuse by a ValueError what is nested so deeply that whoever walks through it might fail."""
    items = content.values() if isinstance(content, dict) else content
    if not isinstance(content, dict | list):
        return
    if left == 0:
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    for item in items:  # type: ignore[attr-defined]
        check_nesting(item, left - 1)


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, object]) -> None:
    """Write tensors and their JSON metadata as one safetensors file, atomically."""
    from safetensors.torch import save

    header = {key: json.dumps(value, allow_nan=False) for key, value in metadata.items()}
    # Copies where tensors share memory, which the format cannot express.
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen = set[int]()
    for name, tensor in contiguous.items():
        place = tensor.untyped_storage().data_ptr()
        contiguous[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    write_atomically(path, save(contiguous, metadata=header))


def read_metadata(path: Path) -> Metadata:
    """Read the metadata alone of what `write_tensors` wrote.

    Raises:
        StageCostError: the file is missing, or damaged.
    """
    return _read(path, tensors=False)[1]


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], Metadata]:
    """Read what `write_tensors` wrote: tensors on the CPU, and the metadata.

    Raises:
        StageCostError: the file is missing, or damaged.
    """
    return _read(path, tensors=True)


@contextmanager
def _openable(path: Path) -> Iterator[str]:
    """Return a name by which safetensors opens a file; it takes no path that is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)


def check_readable(path: Path) -> None:
    """Refuse a file that is not there, or, as the system does, one that may not be read.

    To safetensors both are the same.

    Raises:
        StageCostError: there is no such file.
        OSError: it may not be read.
    """
    if not path.is_file():
        raise StageCostError(f"{path} does not exist: check the path")
    path.open("rb").close()


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, "Tensor"], Metadata]:
    from safetensors import SafetensorError, safe_open

    check_readable(path)
    errors = SafetensorError, AttributeError, KeyError, OverflowError, TypeError, ValueError
    what, remedy = f"{path} is damaged or not a safetensors file", "restore it from a copy, or delete it"
    with refusing(what, remedy, *errors):
        with _openable(path) as name, safe_open(name, framework="pt") as file:
            names = file.keys() if tensors else ()
            read = {name: file.get_tensor(name) for name in names}
            header = file.metadata() or {}
        return read, {key: parse_json(value) for key, value in header.items()}
