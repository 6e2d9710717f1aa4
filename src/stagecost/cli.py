"""The console script `stagecost`: typed functions become verbs; errors become one line and status 2."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from stagecost.data.config import DataConfig
from stagecost.errors import StageCostError
from stagecost.training.gamma_control import GammaSettings
from stagecost.training.parsing import plain_words
from stagecost.training.settings import ModelSettings, TrainingSettings, VariantSettings
from stagecost.training.shrink import ShrinkSettings
from stagecost.verbs import commands

_TRAIN_FLAGS = {
    "normalize_objective": "divide the objective, and lambda, by 1 + gamma·N",
    "constant_head": "the stage cost does not move head and projections",
    "shrink": "tail blocks leave during the training once the validation loss can do without them",
    "plain_after_cuts": "the stage cost ends with the last cut of --cut-at",
    "compile": "compile the network of a step; for long trainings on an accelerator",
    "data_on_device": "keep all images on the device instead of sending each batch there",
    "activation_checkpointing": "keep about √N states for the gradient, compute the rest again",
    "tensorboard": "also write TensorBoard files",
    "resume": "go on with the run in the folder",
}


_TRAIN_SETTINGS: tuple[type, ...] = (
    DataConfig,
    ModelSettings,
    TrainingSettings,
    VariantSettings,
    ShrinkSettings,
    GammaSettings,
)


class _Parser(ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _fail(plain_words(message))


def _spell_with_dashes(parser: ArgumentParser) -> None:
    """Offer --num-blocks for the setting num_blocks, as is usual; --num_blocks works as well."""
    for action in parser._actions:
        if any("_" in option for option in action.option_strings):
            action.option_strings = [option.replace("_", "-") for option in action.option_strings]
            for option in action.option_strings:
                parser._option_string_actions[option] = action


def _fail(message: str) -> NoReturn:
    if _is_first_process():
        print(f"stagecost: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _is_first_process() -> bool:
    # Fabric starts further processes by running the same command; one of them speaks for all.
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def build_parser() -> ArgumentParser:
    """Build the parser of all verbs."""
    from stagecost import __version__

    parser = _Parser(
        prog="stagecost",
        version=__version__,
        allow_abbrev=False,
        description="Train residual networks with a stage cost, see how many blocks they need, and cut "
        "off the rest.",
    )
    verbs = parser.add_subcommands(dest="verb", required=True)
    for name, build in _VERBS.items():
        function = getattr(commands, name)
        summary = function.__doc__.splitlines()[0]
        verb = _Parser(allow_abbrev=False, description=summary)
        build(verb, function)
        verb.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        _spell_with_dashes(verb)
        verbs.add_subcommand(name, verb, help=summary)
    return parser


def _add_train(verb: ArgumentParser, function: Any) -> None:
    verb.add_argument("--config", action="config", help="YAML file of settings; flags win over it")
    verb.add_argument("--output", required=True, help="folder of the run")
    for name, text in _TRAIN_FLAGS.items():
        verb.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    flags = {name for name in _TRAIN_FLAGS if name != "resume"}
    for settings in _TRAIN_SETTINGS:
        skip = flags & {field.name for field in fields(settings)}
        verb.add_class_arguments(settings, skip=skip)


def _add_tune(verb: ArgumentParser, function: Any) -> None:
    _add_train(verb, function)
    verb.add_function_arguments(function, skip={"output", "resume", "settings"})


def _add_prune(verb: ArgumentParser, function: Any) -> None:
    verb.add_argument("--output", required=True, help="folder of the small network")
    verb.add_function_arguments(function, skip={"output"}, as_positional=True)


def _add_bound(verb: ArgumentParser, function: Any) -> None:
    text = "runs of SubResNets of fewer blocks, trained alone by the same recipe"
    verb.add_function_arguments(function, skip={"sub"}, as_positional=True)
    verb.add_argument("--sub", nargs="+", type=str, required=True, help=text)


def _add_benchmark(verb: ArgumentParser, function: Any) -> None:
    text = "only the first two configurations and the pruned network, in less than two minutes"
    verb.add_argument("--quick", action="store_true", help=text)
    text = "names of configurations to measure; all of them if not given"
    verb.add_argument("--configurations", nargs="+", type=str, help=text)
    verb.add_function_arguments(function, skip={"quick", "configurations"}, as_positional=True)


def _add_reproduce(verb: ArgumentParser, function: Any) -> None:
    text = "train nothing, show what is recorded"
    verb.add_argument("--from-results", action="store_true", help=text)
    verb.add_function_arguments(function, skip={"from_results"}, as_positional=True)


def _add_plain(verb: ArgumentParser, function: Any) -> None:
    verb.add_function_arguments(function, as_positional=True)


_VERBS = {
    "demo": _add_plain,
    "train": _add_train,
    "analyze": _add_plain,
    "prune": _add_prune,
    "evaluate": _add_plain,
    "bound": _add_bound,
    "report": _add_plain,
    "tune": _add_tune,
    "benchmark": _add_benchmark,
    "reproduce": _add_reproduce,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or with 2 after one line on standard error."""
    # Only what the user gave: what is missing takes the defaults, or those of the run that is resumed.
    try:
        given = build_parser().parse_args(arguments, defaults=False)
    except UnicodeDecodeError as error:
        _fail(f"the configuration is no text ({error}): give a YAML file")
    verb = given.verb
    options = given[verb].as_dict()
    if options.get("output") == "":
        _fail("--output is empty: give a folder")
    as_json = options.pop("json", False)
    options.pop("config", None)
    _quieten()
    try:
        result = getattr(commands, verb)(**options)
    except StageCostError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted: what was saved before is kept")
    except OSError as error:
        _fail(_describe(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail("not enough memory: lower --batch-size, --width or the number of blocks")
    if _is_first_process():
        _print(verb, result, as_json)


def _is_out_of_memory(error: Exception) -> bool:
    # torch has no type of its own for this on a CPU.
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


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


def _describe(error: OSError) -> str:
    remedy = {
        13: "check the permissions or choose another folder",
        17: "choose another folder",
        20: "a part of the path is a file: choose another folder",
        28: "the disk is full: make room and go on with --resume",
        30: "the disk is read-only: choose another folder",
    }.get(error.errno or 0, "check the path and the disk")
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}: {remedy}"


def _print(verb: str, result: dict[str, Any], as_json: bool) -> None:
    try:
        if as_json:
            print(json.dumps(result))
        else:
            from stagecost.verbs.console import show

            show(verb, result)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; without this Python complains at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
