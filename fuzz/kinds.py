"""Kinds of files: how each is mutated, what reads it, and what a right result is."""

import csv
import io
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as parse_tensors

from fuzz import mutations
from fuzz.mutations import Mutation
from fuzz.originals import DATA, DATA_SETS, SIZE, TEST, Files, make_originals
from fuzz.tensors import TensorFile

RUN, SAVED = "run", "saved"
Entry = Callable[[], None]
"""Reads what was mutated, in the working folder, and asserts that the result is right."""


class WrongError(AssertionError):
    """A result that cannot be right."""


def check(condition: bool, text: str) -> None:
    """Refuse a result.

    Raises:
        WrongError: the condition does not hold.
    """
    if not condition:
        raise WrongError(text)


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        files: all files of the folder, mutated.
        said: what was done.
        entry: the name of what reads it.
    """

    files: Files
    said: str
    entry: str


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        files: valid ones.
        targets: those to mutate, and how, with how often.
        entries: what reads them, with how often.
        writes: entries that may change files when they succeed.
    """

    files: Files
    targets: tuple[tuple[str, Mutation, float], ...]
    entries: Mapping[str, float]

    def case(self, rng: random.Random) -> Case:
        """Draw an input."""
        target, mutate, _ = rng.choices(self.targets, [weight for *_, weight in self.targets])[0]
        changed, said = mutate(rng, self.files[target])
        entry = rng.choices([*self.entries], [*self.entries.values()])[0]
        return Case({**self.files, target: changed}, f"{target}: {said}", entry)


class NetworkKind(Kind):
    """Saved networks; what both files say is mostly changed in both, else it is refused at once."""

    def case(self, rng: random.Random) -> Case:
        """Draw an input."""
        if rng.random() < 0.6:
            return super().case(rng)
        entry = rng.choices([*self.entries], [*self.entries.values()])[0]
        config = json.loads(self.files[f"{SAVED}/config.json"])
        text, said = mutations.mutate_json(rng, config)
        file = TensorFile.parse(self.files[f"{SAVED}/model.safetensors"])
        try:
            changed = json.loads(text)
            description = {key: changed[key] for key in ("name", "arguments", "kept_blocks")}
            file.metadata["description"] = json.dumps(description)
            if "image_format" in file.metadata:
                file.metadata["image_format"] = json.dumps(changed["image_format"])
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        files = {f"{SAVED}/config.json": text, f"{SAVED}/model.safetensors": file.to_bytes()}
        return Case({**self.files, **files}, f"both: {said}", entry)


def kinds_of(originals: Files) -> dict[str, Kind]:
    """Return all kinds."""
    last = (f"{RUN}/last.safetensors", mutations.mutate_tensors, 1.0)
    verbs = {"evaluate": 3.0, "analyze": 1.0, "resume": 2.0}
    kinds: dict[str, Kind] = {
        "network": NetworkKind(
            originals,
            (
                (f"{SAVED}/config.json", mutations.mutate_json_file, 1.0),
                (f"{SAVED}/model.safetensors", mutations.mutate_tensors, 1.5),
            ),
            {"load": 2.0, "evaluate_saved": 1.0},
        ),
        "checkpoint": Kind(originals, (last,), verbs),
        "settings": Kind(
            originals,
            ((f"{RUN}/config.yaml", mutations.mutate_yaml_file, 1.0),),
            {"evaluate": 1.0, "resume": 1.0, "config": 6.0},
        ),
        "pruning": Kind(
            originals, ((f"{RUN}/pruning.json", mutations.mutate_json_file, 1.0),), {"evaluate": 1.0}
        ),
        "fingerprint": Kind(
            originals, ((f"{RUN}/images.json", mutations.mutate_json_file, 1.0),), {"evaluate": 1.0}
        ),
        "metrics": Kind(
            originals,
            tuple(
                (f"{RUN}/{name}.csv", mutations.mutate_table, 1.0) for name in ("metrics", "trajectory")
            ),
            {"evaluate": 1.0, "resume": 1.0},
        ),
    }
    how: dict[str, Mutation] = {
        "idx": mutations.mutate_idx, "images": mutations.mutate_picture, "table": mutations.mutate_table,
        "parquet": mutations.mutate_parquet,
    }  # fmt: skip
    for name, make in DATA_SETS.items():
        files = {f"{DATA}/{path}": content for path, content in make().items()}
        mutate = how[name.split("_")[0]]
        targets = [path for path in files if name != "table" or path.endswith(".csv")]
        kinds[name] = Kind(
            files, tuple((path, mutate, 1.0) for path in targets), {"data": 3.0, "data_skipping": 1.0}
        )
    return kinds


WEIGHTS = {
    "network": 30, "checkpoint": 16, "settings": 20, "pruning": 1, "metrics": 1, "fingerprint": 3,
    "idx": 6, "idx_gz": 3,
    "images": 8, "table": 4, "parquet": 5, "parquet_text": 3, "parquet_whole": 3,
}  # fmt: skip
"""How often each kind is drawn."""


def _load() -> None:
    import stagecost

    network = stagecost.load(SAVED)
    _same(network.state_dict(), parse_tensors(Path(SAVED, "model.safetensors").read_bytes()))
    config = json.loads(Path(SAVED, "config.json").read_text())
    assert network.description is not None
    built = network.description.to_json()["arguments"]  # with the defaults of what was not said
    check({**built, **config["arguments"]} == built, "other arguments")


def _same(state: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> None:
    """A network has the numbers that are stored, and they are numbers."""
    check(state.keys() == stored.keys(), "other tensors")
    for name, tensor in state.items():
        check(torch.equal(tensor, stored[name].to(tensor.dtype)), f"{name} is other than stored")
        check(bool(torch.isfinite(tensor).all()), f"{name} is not finite")
        if name.endswith("running_var"):
            check(bool((tensor >= 0).all()), f"{name} is below 0")


def _judge(answer: Any) -> dict[str, Any]:
    """A result is JSON, and its accuracies are percentages."""
    content = json.loads(json.dumps(answer.to_json(), allow_nan=False))
    accuracies = [content[key] for key in ("accuracy", "val_accuracy") if content.get(key) is not None]
    accuracies += content.get("accuracies", [])
    check(all(0 <= value <= 100 for value in accuracies), f"accuracies {accuracies[:5]}")
    return dict(content)


def _evaluate_saved() -> None:
    from stagecost.runs.evaluation import evaluate

    content = _judge(evaluate(SAVED, device="cpu"))
    settings = json.loads(Path(SAVED, "config.json").read_text()).get("settings") or {}
    # A mutation may ask for fewer images, or for those of some classes.
    most = min(TEST, settings.get("limit_test") or TEST)
    least = 1 if settings.get("classes") else most
    check(least <= content["num_images"] <= most, f"{content['num_images']} images")


def _evaluate() -> None:
    from stagecost.runs.evaluation import evaluate

    content = _judge(evaluate(RUN, device="cpu"))
    check(content["num_images"] == TEST, f"{content['num_images']} images")


def _analyze() -> None:
    from stagecost.runs.analysis import analyze

    content = _judge(analyze(RUN, device="cpu"))
    check(len(content["losses"]) == content["num_blocks"] + 1, "other depths")


def _resume() -> None:
    from stagecost.runs.training import train

    content = _judge(train({}, RUN, resume=True))
    check(content["epochs"] == 2, f"{content['epochs']} epochs")
    check(content["val_accuracy"] is not None, "no accuracy")
    file = parse_tensors(Path(RUN, "last.safetensors").read_bytes())
    finite = [
        bool(torch.isfinite(tensor).all()) for tensor in file.values() if tensor.is_floating_point()
    ]
    check(all(finite), "a checkpoint that is not finite")
    rows = list(csv.DictReader(io.StringIO(Path(RUN, "metrics.csv").read_text())))
    check([row["epoch"] for row in rows] == ["1", "2"], "other epochs in the table")


def _config() -> None:
    """Read settings as `train --config` does, and build the network without its numbers."""
    from stagecost.runs.folder import read_yaml
    from stagecost.train.parsing import parse_settings

    settings = parse_settings(read_yaml(Path(RUN, "config.yaml")))
    settings.check()
    flat = settings.to_flat()
    numbers = [value for value in flat.values() if isinstance(value, float)]
    check(all(map(math.isfinite, numbers)), "a setting that is not finite")
    check(parse_settings(json.loads(json.dumps(flat))) == settings, "other settings when read again")


def _report() -> None:
    from stagecost.runs.reporting import report

    _judge(report(RUN, device="cpu"))
    page = Path(RUN, "report.html").read_text()
    check(page.lower().startswith("<!doctype html>"), "no page")


def _data(*, skip: bool = False) -> None:
    from stagecost.data.config import DataConfig
    from stagecost.data.loading import load_data

    bundle = load_data(DataConfig(DATA, skip_broken=skip), seed=0)
    names = bundle.format.class_names
    check(len(names) == len(set(names)) >= 2, f"classes {names}")
    check(1 <= bundle.format.size <= 4096, f"size {bundle.format.size}")
    check(all(0 < s < math.inf for s in bundle.format.std), "standard deviations")
    for split in bundle.splits.values():
        check(split.images.dtype == torch.uint8, "no bytes")
        shape = (len(split), bundle.format.channels, bundle.format.size, bundle.format.size)
        check(tuple(split.images.shape) == shape, "another shape")
        check(
            bool(((split.targets >= 0) & (split.targets < len(names))).all()),
            "a target beyond the classes",
        )
    _compare_with_idx(bundle)


def _compare_with_idx(bundle: Any) -> None:
    """Bytes in the format of MNIST are compared with the files themselves."""
    path = Path(DATA, "t10k-images-idx3-ubyte")
    if path.is_file() and "test" in bundle.splits and bundle.format.size == SIZE:
        stored = np.frombuffer(path.read_bytes()[16:], np.uint8)
        check(np.array_equal(bundle.splits["test"].images.numpy().reshape(-1), stored), "other pixels")


ENTRIES: dict[str, Entry] = {
    "load": _load,
    "evaluate_saved": _evaluate_saved,
    "evaluate": _evaluate,
    "analyze": _analyze,
    "resume": _resume,
    "config": _config,
    "report": _report,
    "data": _data,
    "data_skipping": lambda: _data(skip=True),
}
WRITING = frozenset({"resume", "report"})
"""Entries that change files when they succeed."""

__all__ = ["ENTRIES", "WEIGHTS", "WRITING", "Case", "Kind", "WrongError", "kinds_of", "make_originals"]
