"""The C files of this folder, compiled once for a machine and loaded; without a compiler there are none.

A file is compiled by the system's C compiler when it is first needed, which takes about a second, and
kept in the user's cache folder under a name that follows from its text, the compiler, and the processor.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

REAL = {torch.float32: "float", torch.float64: "double"}
"""The types of numbers that the files are compiled for, as C calls them."""

_FLAGS = ("-O3", "-march=native", "-fPIC", "-shared")


def usable(*tensors: Tensor) -> bool:
    """Tell whether the C files can work on these tensors: on a CPU, of one type that they know."""
    first = tensors[0].dtype
    return first in REAL and all(t.device.type == "cpu" and t.dtype == first for t in tensors)


@functools.cache
def load(name: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return a C file, compiled for a type of numbers; None where that cannot be done.

    Args:
        name: of the file in this folder, without suffix.
        dtype: a key of `REAL`.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    source = Path(__file__).with_name(f"{name}.c")
    # OpenMP is torch's own: two of its kind in one process get into each other's way.
    has_openmp = torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]
    openmp = ("-fopenmp",) if has_openmp else ()
    for flags in dict.fromkeys([(*_FLAGS, *openmp), _FLAGS]):
        with suppress(OSError, subprocess.SubprocessError):
            return _build(compiler, source, (*flags, f"-DREAL={REAL[dtype]}"))
    return None


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Return where the values of a tensor begin; the caller sees to it that they are what C expects."""
    return ctypes.c_void_p(tensor.data_ptr())


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)


def _build(compiler: str, source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Compile a file, or find it compiled.

    Raises:
        OSError: it cannot be written, or not loaded.
        subprocess.SubprocessError: the compiler refuses it.
    """
    # The macros that are set beforehand name the compiler's version and all that the processor can do.
    ask = [compiler, *flags, "-dM", "-E", "-x", "c", os.devnull]
    macros = subprocess.run(ask, check=True, capture_output=True, timeout=60).stdout
    texts = (source.read_bytes(), source.with_name("vectors.h").read_bytes())
    key = hashlib.sha256(b"\0".join((*texts, repr(flags).encode(), macros))).hexdigest()
    library = _folder() / f"{source.stem}-{key[:20]}.so"
    with suppress(OSError):
        return ctypes.CDLL(str(library))
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        # In a folder of its own, then renamed: another process finds the whole file or none.
        made = Path(folder) / library.name
        order = [compiler, *flags, str(source), "-o", str(made), "-lm"]
        subprocess.run(order, check=True, capture_output=True, timeout=300)
        made.replace(library)
    return ctypes.CDLL(str(library))


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stagecost" / "native"
