"""The console script `stagecost`: arguments in, a result or one line out."""

import contextlib
import difflib
import io
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from stagecost.errors import StageCostError, missing_extra, refusing

if TYPE_CHECKING:
    from stagecost.runs.results import Result

DESCRIPTION = (
    "Train residual networks with a stage cost, see how many blocks they need, and cut off the rest."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or with 2 after one line on standard error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    as_json = "--json" in given
    try:
        with _terminated_as_interrupted():
            _dispatch(given)
    except StageCostError as error:
        _fail(str(error), as_json)
    except KeyboardInterrupt:
        _fail("interrupted: what was saved before is kept", as_json)
    except ModuleNotFoundError as error:
        _fail(str(missing_extra(error)), as_json)
    except OSError as error:
        _fail(describe(error), as_json)
    except (MemoryError, RuntimeError) as error:
        if _has_lost_a_process(error):
            _fail("another process of this training has ended: go on with train --resume", as_json)
        if not _is_out_of_memory(error):
            raise
        _fail("not enough memory: lower the batch size, --width or the number of blocks", as_json)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """End as by Ctrl-C where somebody else ends the process, as a scheduler does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(given: list[str]) -> None:
    from stagecost.cli.verbs import VERBS

    if not given or given[0] in ("-h", "--help", "--help-all"):
        return _say(_overview())
    if given[0] == "--version":
        from stagecost import __version__

        return _say(__version__)
    name, rest = given[0], given[1:]
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(VERBS)}"
        raise StageCostError(f"{name!r} is not a verb: {hint}")
    return _run(name, rest)


def _run(name: str, rest: list[str]) -> None:
    from stagecost.cli.flags import build_parser, read_flags
    from stagecost.cli.verbs import VERBS

    verb, everything = VERBS[name], "--help-all" in rest
    parser = build_parser(f"stagecost {name}", verb.summary, verb.flags, everything=everything)
    if everything or "--help" in rest or "-h" in rest:
        return _say(parser.format_help().rstrip())
    options = read_flags(parser, verb.flags, rest)
    for place in ("output", "csv", "config"):
        if options.get(place) == "":
            what = "folder" if place == "output" else "file"
            raise StageCostError(f"--{place} is empty: give a {what}")
    as_json = options.pop("json", False)
    with refusing("the current folder was removed", "go to another one", FileNotFoundError):
        Path.cwd()
    _quieten()
    result = verb.run(options)
    if _is_first_process():
        _print(name, result, as_json)
    return None


def _overview() -> str:
    from stagecost.cli.verbs import VERBS

    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            f"{DESCRIPTION}\n\nstagecost VERB ... [--json]\n",
            *lines,
            "\n`stagecost VERB --help` shows what a verb takes, `stagecost --version` the version.",
        ]
    )


class _Lossy(io.RawIOBase):
    """Standard error: what its device or its reader cannot take is lost, and changes nothing else."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            os.write(self.descriptor, data)
        return len(data)


def _prepare_streams() -> None:
    """Let every terminal and every pipe take what is printed, in replacement characters if need be."""
    sys.stdout = _stream(sys.stdout, "replace")
    errors = _stream(sys.stderr, "backslashreplace")
    if isinstance(errors, io.TextIOWrapper) and errors is sys.__stderr__:
        with contextlib.suppress(OSError):
            errors.flush()
        lossy = _Lossy(errors.fileno())
        errors = io.TextIOWrapper(lossy, errors.encoding, errors.errors, write_through=True)  # type: ignore[type-var]
    sys.stderr = errors


def _stream(stream: TextIO | None, errors: str) -> TextIO:
    if stream is None:  # closed by whoever started the process
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # nobody reads it any more
            try:
                "‖█…".encode(stream.encoding, errors)
                stream.reconfigure(errors=errors)
            except (LookupError, UnicodeError):  # an encoding that replaces nothing
                stream.reconfigure(encoding="ascii", errors=errors)
    return stream


def _is_first_process() -> bool:
    # Fabric starts further processes by running the same command; one of them speaks for all.
    from stagecost.train.devices import is_first_process

    return is_first_process()


def _print(name: str, result: "Result", as_json: bool) -> None:
    if as_json:
        return _say(json.dumps(result.to_json(), allow_nan=False))
    from stagecost.cli.views import show

    with _standard_output():
        show(name, result)
    return None


def _say(text: str) -> None:
    with _standard_output():
        print(text)


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """Print within this: a reader that has seen enough is no error, a full device is one."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        raise StageCostError(
            f"standard output cannot be written ({error.strerror}): send it to another file or device"
        ) from None


def _drop_output() -> None:
    # Without this Python complains at its end about what it could not write, with a status of its own.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, as_json: bool) -> NoReturn:
    text = str(StageCostError(message))  # on one line
    if _is_first_process():
        if as_json:
            with contextlib.suppress(StageCostError), _standard_output():
                print(json.dumps({"error": text}))
        print(f"stagecost: {text}", file=sys.stderr)
    raise SystemExit(2)


def _is_out_of_memory(error: Exception) -> bool:
    # torch has no type of its own for this on a CPU.
    text = str(error).lower()
    said = ("out of memory", "allocate memory", "storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(words in text for words in said)


def _has_lost_a_process(error: Exception) -> bool:
    # Nor has torch one for this; if it was the first process, that one has said why.
    text = str(error).lower()
    said = ("closed by peer", "reset by peer", "broken pipe", "remote process exited")
    return any(words in text for words in said)


def _quieten() -> None:
    """Keep remarks of libraries off the screen; the project's own go to standard error."""
    warnings.simplefilter("ignore")
    # Its modules one by one: when Fabric is imported it sets the level of the logger above them.
    for name in ("distributed", "rank_zero"):
        logging.getLogger(f"lightning_fabric.utilities.{name}").setLevel(logging.ERROR)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # GPU tools without a GPU
    own = logging.getLogger("stagecost")
    own.handlers = [logging.StreamHandler(sys.stderr)]
    own.setLevel(logging.INFO)


def describe(error: OSError) -> str:
    """Say in one line what the system refused, and the remedy."""
    remedy = {
        13: "check the permissions or choose another folder",
        17: "choose another folder",
        20: "a part of the path is a file: choose another folder",
        27: "files may not be as large as that: raise the limit (ulimit -f)",
        28: "the disk is full: make room and give the command again, train with --resume",
        30: "the disk is read-only: choose another folder",
        36: "the name is too long: choose a shorter one",
        39: "another process wrote something there meanwhile: choose another folder",
        122: "your quota is used up: make room and give the command again, train with --resume",
    }.get(error.errno or 0, "check the path and the disk")
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}: {remedy}"
