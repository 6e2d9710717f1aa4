"""The documents are held to the code: what they show is run, what they say is looked up."""

import importlib
import json
import logging
import os
import pkgutil
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stagecost
from environments import make_environment
from stagecost.cli.flags import build_parser, read_flags
from stagecost.cli.main import main
from stagecost.cli.verbs import VERBS
from stagecost.models import registry
from stagecost.runs import demo as demonstration
from stagecost.runs.analysis import analyze
from stagecost.runs.bound import bound
from stagecost.runs.evaluation import evaluate
from stagecost.runs.exiting import exit_early
from stagecost.runs.exporting import export
from stagecost.runs.measuring import measure
from stagecost.runs.models import models
from stagecost.runs.prediction import predict_files
from stagecost.runs.pruning import prune
from stagecost.runs.reporting import compare, report
from stagecost.runs.results import Result
from stagecost.runs.training import train
from stagecost.train.parsing import parse_settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")))
}
# What the changelog says is gone needs no proof of being there.
REMOVED = re.compile(r"^### Removed.*?(?=^## )", re.MULTILINE | re.DOTALL)
DOCUMENTS["CHANGELOG.md"] = REMOVED.sub("", DOCUMENTS["CHANGELOG.md"])
README, COMMAND_LINE = DOCUMENTS["README.md"], DOCUMENTS["docs/command-line.md"]
NOTEBOOKS = [
    name for name in DOCUMENTS if name.startswith("docs/notebooks/")
]  # the site's build runs them
FENCE = re.compile(r"^```(\w*|\{code-cell\} ipython3)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXPERIMENTS = "python -m experiments "


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line where the text begins."""

    language: str
    text: str
    line: int


def blocks(document: str) -> list[Block]:
    return [
        Block(fence[1], fence[2], document.count("\n", 0, fence.start(2)))
        for fence in FENCE.finditer(document)
    ]


def prose(document: str) -> str:
    return FENCE.sub("", document)


def inline_code(document: str) -> list[str]:
    codes = re.findall(r"`([^`]+)`", prose(document))
    return [" ".join(code.split()) for code in codes]


def command_lines(start: str) -> list[str]:
    """Every command of this kind that a document shows: inline, indented, or in a bash block."""
    lines = set()
    for text in DOCUMENTS.values():
        document = re.sub(r"\\\n *", "", text)  # a line that goes on in the next one
        bash = "".join(block.text for block in blocks(document) if block.language == "bash")
        indented = re.findall(r"^ {4}(.*)$", prose(document), re.MULTILINE)
        codes = [*inline_code(document), *indented, *bash.splitlines()]
        lines |= {code.strip() for code in codes if code.startswith(start)}
    return sorted(lines)


def section(document: str, heading: str) -> str:
    return document.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]


def first_column(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


# ---------------------------------------------------------------------------------------------
# What is run


def run_python(block: Block, name: str, namespace: dict[str, Any]) -> None:
    # The empty lines make a traceback point at the line of the document.
    exec(compile("\n" * block.line + block.text, name, "exec"), namespace)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, and forget the models that an example registers."""
    importlib.import_module("stagecost.integrations.scikit")  # which registers its network, to stay
    known = dict(registry.catalogue)
    log = logging.getLogger("stagecost")
    before = log.handlers, log.level
    monkeypatch.setattr("stagecost.models.registry._builders", entered := dict(known))
    monkeypatch.setattr("stagecost.models.registry.catalogue", entered)
    monkeypatch.setattr("stagecost.models.catalogue.catalogue", entered)
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):  # a folder of images of one's own, as the documents name it
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            shade = 20 * number + len(name)
            Image.new("L", (8, 8), shade).save(tmp_path / "photos" / name / f"{number}.png")
    yield tmp_path
    log.handlers, log.level = before


def run_page(name: str) -> dict[str, Any]:
    """Run every code block of a document from top to bottom; what is indented is only parsed."""
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks(DOCUMENTS[name]):
        assert block.language in {"python", "bash", "yaml"}
        if block.language == "python":
            run_python(block, name, namespace)
        if block.language == "bash":
            for line in block.text.splitlines():
                if not line.startswith("make "):  # those are checked below
                    assert line.startswith("stagecost "), line
                    main(shlex.split(line)[1:])
    return namespace


@pytest.mark.slow
def test_the_readme_works_from_top_to_bottom(folder: Path) -> None:
    namespace = run_page("README.md")
    assert (folder / "runs" / "deep" / "report.html").is_file()
    assert namespace["small"].num_blocks <= 8


@pytest.mark.slow
def test_a_newcomers_path_from_photos_to_a_place_without_torch(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.rmtree(folder / "photos")
    shades = np.random.default_rng(0).integers(0, 160, (2, 24, 1, 1, 3))
    for name, colours in zip(("cat", "dog"), shades, strict=True):
        (folder / "photos" / name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            pixels = np.zeros((48, 40, 3), np.uint8) + colour.astype(np.uint8)
            pixels[:, :20] += 80 if name == "cat" else 0
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.jpg")
    run_page("docs/own-photos.md")
    (line,) = (line for line in command_lines("python shipped/"))
    bare = tmp_path_factory.mktemp("bare")
    make_environment(bare, "onnxruntime", "numpy", "pillow")
    command = [str(bare / "bin" / "python"), "-c", "import torch"]
    assert b"No module named 'torch'" in subprocess.run(command, check=False, capture_output=True).stderr
    command[1:] = shlex.split(line)[1:]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env={}).stdout
    path, label, share, _ = told.split("\t")
    here = stagecost.load("small").predict(path)
    assert label == here.label
    assert float(share) == pytest.approx(here.probability, abs=1e-3)


ALONE = ("README.md", "docs/own-photos.md", *NOTEBOOKS)  # run by a test of their own


@pytest.mark.parametrize(
    "name", [name for name, text in DOCUMENTS.items() if name not in ALONE and blocks(text)]
)
def test_the_code_in_the_documents_works(name: str, folder: Path) -> None:
    run_page(name)


def dry_run(target: str) -> str:
    command = ["make", "-C", str(ROOT), "--dry-run", target, f"VENV={sys.prefix}"]
    # This test itself may run below `make`, which passes its variables on (MAKEFLAGS, MAKELEVEL, …).
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(command, check=True, env=outside, capture_output=True, text=True).stdout


def test_the_first_two_commands_do_what_is_said() -> None:
    # `make demo` itself is run in test_demo.py; `make test` would be this very run.
    assert [block.text for block in blocks(README)][:2] == ["make demo\n", "make test\n"]
    assert "stagecost demo --output runs/demo" in dry_run("demo")
    checks = dry_run("test")
    for check in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest"):
        assert f"bin/{check}" in checks
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nexec make test")


def test_the_picture_is_drawn_from_two_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for run in ("plain", "stage-cost"):
        (folder / run).mkdir()
        rows = ["epoch,depth,val_loss,val_accuracy", "1,0,2.3,99", "2,0,2.3,10", "2,1,0.2,95"]
        (folder / run / "trajectory.csv").write_text("\n".join(rows))
    picture = importlib.import_module("demo_picture")
    assert picture.accuracies(folder / "plain") == [(0, 10.0), (1, 95.0)]
    monkeypatch.setattr(sys, "argv", ["demo_picture.py", str(folder), "--output", "drawn"])
    picture.main()
    assert capsys.readouterr().out == "wrote drawn/digits-depth.svg\n"
    drawn = (folder / "drawn" / "digits-depth.svg").read_text()
    kept = (ROOT / "docs" / "images" / "digits-depth.svg").read_text()
    for name in (">plain training<", ">with a stage cost<"):
        assert name in drawn
        assert name in kept


# ---------------------------------------------------------------------------------------------
# What is parsed


@pytest.mark.parametrize("line", command_lines("stagecost "))
def test_command_lines_are_valid(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, *arguments = shlex.split(line, comments=True)
    if arguments in (["--help"], ["--version"]):
        main(arguments)
        assert capsys.readouterr().out
        return
    name, *rest = arguments
    rest = rest[: rest.index("writes")] if "writes" in rest else rest  # what a line does, beside it
    verb = VERBS[name]
    if not rest or {"--help", "--help-all"} & set(rest):
        main([name, *(rest or ["--help"])])
        assert verb.summary[:20] in capsys.readouterr().out
        return
    given = read_flags(build_parser("stagecost", "", verb.flags, everything=True), verb.flags, rest)
    if name == "train":
        apart = {"output", "resume", "config", "json"}
        settings = {key: value for key, value in given.items() if key not in apart}
        parse_settings(settings).check()


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the command line of the experiments, which are beside the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("experiments.__main__").main


@pytest.mark.parametrize("line", command_lines(EXPERIMENTS + "show"))
def test_what_is_recorded_is_shown(
    line: str, experiments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    experiments(shlex.split(line.removeprefix(EXPERIMENTS)))
    assert capsys.readouterr().out.strip()


def test_experiments_that_are_named_can_be_run(experiments: Any) -> None:
    runner = importlib.import_module("experiments.runner")
    lines = [line.removeprefix(EXPERIMENTS).split() for line in command_lines(EXPERIMENTS + "run")]
    names = {words[1] for words in lines if len(words) > 1 and words[1].islower()}
    assert "tuning" in names
    for name in names:
        assert runner.find_experiment(name).run is not None, name


def test_flags_exist(experiments: Any, capsys: pytest.CaptureFixture[str]) -> None:
    known = {flag.option for verb in VERBS.values() for flag in verb.flags}
    known |= {"--help", "--help-all", "--version", "--json"}
    for verb in ("run", "show"):
        with pytest.raises(SystemExit):
            experiments([verb, "--help"])
    known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    codes = [code for document in DOCUMENTS.values() for code in inline_code(document)]
    named = {code.split()[0].partition("=")[0] for code in codes if code.startswith("--")}
    assert {"--gamma", "--targets"} <= named
    assert sorted(named - known) == []


def test_every_flag_of_training_is_documented() -> None:
    flags = {flag.option for flag in VERBS["train"].flags} - {"--output"}
    documented = re.findall(r"`(--[\w-]+)", section(COMMAND_LINE, "train"))
    assert sorted(flags - set(documented)) == []


# ---------------------------------------------------------------------------------------------
# What is looked up


def anchors(document: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(DOCUMENTS[name])):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_index() -> None:
    listed = set(
        re.findall(r"^\| \[[\w ]+\]\(([\w/-]+\.md)\)", DOCUMENTS["docs/index.md"], re.MULTILINE)
    )
    pages = {name.removeprefix("docs/") for name in DOCUMENTS if name.startswith("docs/")}
    assert pages - {"index.md"} == listed


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(r"^\| `sc\.(\w+)` \|", DOCUMENTS["docs/api.md"], re.MULTILINE)
    assert sorted(listed) == sorted(set(stagecost.__all__) - {"__version__"})


def resolve(name: str) -> object:
    try:
        return pkgutil.resolve_name(name)
    except AttributeError:  # a field without a default is not an attribute of its class
        owner, _, field = name.rpartition(".")
        return pkgutil.resolve_name(owner).__dataclass_fields__[field]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_names_are_in_the_code(name: str) -> None:
    for code in inline_code(DOCUMENTS[name]):
        if named := re.match(r"(?:sc|stagecost)((?:\.\w+)+)", code):
            resolve(f"stagecost{named[1]}")


def test_the_rows_of_imports_are_those_of_the_contract() -> None:
    rows = re.findall(r"^\| \d+ \| (.*) \|$", DOCUMENTS["docs/architecture.md"], re.MULTILINE)
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(each["layers"] for each in linter["contracts"] if each["type"] == "layers")
    assert len(rows) <= 10
    assert [re.findall(r"`([\w.]+)`", row) for row in rows] == [
        re.findall(r"[\w.]+", layer) for layer in layers
    ]


def test_every_row_of_the_map_has_a_name_and_a_test() -> None:
    table = DOCUMENTS["docs/paper-to-code.md"]
    rows = re.findall(r"^\| (?!---|in the paper|what \|)(.*) \|$", table, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        assert "`stagecost." in row or "skip_of" in row, row
        assert re.search(r"`tests/[\w/]*test_\w+\.py`", row), row


def test_files_that_are_named_are_there() -> None:
    codes = [code for document in DOCUMENTS.values() for code in inline_code(document)]
    files = {word for code in codes for word in code.split()}
    files = {f for f in files if re.fullmatch(r"(tests|scripts|examples|experiments)/[\w/]+\.py", f)}
    assert len(files) > 5
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []


# ---------------------------------------------------------------------------------------------
# What is said of results


def documented_keys(verb: str) -> list[str]:
    row = re.search(rf"^\| `{verb}` \| (.*) \|$", section(COMMAND_LINE, "JSON keys"), re.MULTILINE)
    assert row, verb
    return re.findall(r"`(\w+)`", row[1])


def test_keys_and_files_are_those_documented(folder: Path) -> None:
    recipe = {"data": "digits", "width": 4, "epochs": 1, "limit_train": 300}
    train({"num_blocks": 2, **recipe}, "shallow")
    results: dict[str, Result] = {
        "train": train({"num_blocks": 3, **recipe}, "deep"),
        "analyze": analyze("deep"),
        "prune": prune("deep", "small", keep=2),
        "evaluate": evaluate("small"),
        "predict": predict_files("small", [folder / "photos" / "cat"]),
        "exit": exit_early("deep", max_drop=5, batch=(8,)),
        "export": export("deep", "shipped", format="pt2"),
        "measure": measure(["deep"], batch=(1,), seconds=0.01),
        "bound": bound("deep", ["shallow"]),
        "report": report("deep"),
        "compare": compare(["deep", "shallow"]),
        "models": models(),
    }
    documented = [key for key in first_column(section(COMMAND_LINE, "JSON keys")) if key in VERBS]
    assert list(dict.fromkeys(documented)) == [*results, "demo"]
    answers = {verb: result.to_json() for verb, result in results.items()}
    for verb, answer in answers.items():
        assert list(answer) == documented_keys(verb), verb
    meanings = dict(re.findall(r"^\| `([^|]+)` \| (.*) \|$", COMMAND_LINE, re.MULTILINE))
    assert set(answers["bound"]["bounds"][0]) == set(re.findall(r"`(\w+)`", meanings["bounds"]))
    cuts = re.search(r"^\| `cuts` of `analyze` \| (.*) \|$", COMMAND_LINE, re.MULTILINE)
    assert cuts
    assert set(answers["analyze"]["cuts"][0]) == set(re.findall(r"`(\w+)`", cuts[1]))
    files = {path.name for path in (folder / "deep").iterdir()}
    assert files == set(first_column(section(COMMAND_LINE, "The run folder")))
    saved = re.search(
        r"is what `stagecost.load` .*? holds (.*?), and", section(COMMAND_LINE, "prune"), re.DOTALL
    )
    assert saved
    assert {path.name for path in (folder / "small").iterdir()} == set(
        re.findall(r"`([^`]+)`", saved[1])
    )


def test_keys_of_a_cut_in_training_are_those_documented(folder: Path) -> None:
    recipe = {"data": "digits", "num_blocks": 2, "width": 4, "epochs": 2, "limit_train": 300}
    answer = train({**recipe, "cut_at": "1:1"}, "cut").to_json()
    text = re.search(
        r"`train --json` lists the cuts in `cuts`:(.*?)\.", DOCUMENTS["docs/cutting.md"], re.DOTALL
    )
    assert text
    assert list(answer["cuts"][0]) == re.findall(r"`(\w+)`", text[1])


def test_keys_of_the_demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"num_blocks": 4, "width": 4, "epochs": 1, "limit_train": 400}
    monkeypatch.setattr(demonstration, "RECIPE", {**demonstration.RECIPE, **tiny})
    result = demonstration.demo("demo").to_json()
    assert list(result) == documented_keys("demo")
    assert list(result["analyze"]) == documented_keys("analyze")
    assert list(result["prune"]) == documented_keys("prune")
    assert set(result["test"][0]) == {"name", *documented_keys("evaluate")}
    assert (folder / "demo" / "stage-cost" / "report.html").is_file()


def test_an_error_is_json_if_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "nowhere", "--json"])
    assert stopped.value.code == 2
    assert list(json.loads(capsys.readouterr().out)) == ["error"]


# ---------------------------------------------------------------------------------------------
# Figures


def recorded(content: Any) -> Iterator[str]:
    """Go through a record: mean ± standard deviation of every list of numbers in it."""
    values = content.values() if isinstance(content, dict) else content
    if not isinstance(values, str) and all(isinstance(value, int | float) for value in values):
        numbers = list(values) if isinstance(content, list) else []
        if len(numbers) > 1:
            yield f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}"
    for value in values:
        if isinstance(value, dict | list):
            yield from recorded(value)


def by_arm(content: Any) -> Iterator[str]:
    """Go through a record of one entry for each seed: the same of what has one arm."""
    arms: dict[tuple[str, str], list[float]] = {}
    for run in content.get("runs", ()):
        for key, value in run.items():
            if isinstance(value, float) and "arm" in run:
                arms.setdefault((run["arm"], key), []).append(value)
    yield from recorded(list(arms.values()))


@pytest.fixture(scope="session")
def figures() -> set[str]:
    contents = [json.loads(file.read_text()) for file in (ROOT / "results").rglob("*.json")]
    return {figure for content in contents for figure in (*recorded(content), *by_arm(content))}


@pytest.mark.parametrize("name", ["targets-measured", "gamma", "cutting"])
def test_figures_are_those_of_records(name: str, figures: set[str]) -> None:
    shown = re.findall(r"\d+\.\d\d ± \d+\.\d\d", DOCUMENTS[f"docs/{name}.md"])
    assert len(shown) >= 10
    assert [figure for figure in shown if figure not in figures] == []


def test_accuracies_of_pretrained_networks_are_those_of_records() -> None:
    files = [
        *(ROOT / "results" / "pretrained").glob("*.json"),
        *(ROOT / "results" / "archive").glob("pre*/*"),
    ]
    means = {f"{row['mean']:.2f}" for file in files for row in json.loads(file.read_text())["rows"]}
    trials = (ROOT / "results" / "pretrained" / "trials.jsonl").read_text().splitlines()
    means |= {f"{v:.2f}" for line in trials for v in json.loads(line)["val_accuracy"].values()}
    tables = [line for line in DOCUMENTS["docs/pretrained-measured.md"].splitlines() if line[:1] == "|"]
    shown = re.findall(r"\b\d\d\.\d\d\b", "\n".join(tables))
    assert len(shown) >= 50
    assert [accuracy for accuracy in shown if accuracy not in means] == []


def test_the_readme_is_short_and_its_number_is_recorded() -> None:
    assert len(prose(README).split()) <= 600
    record = json.loads((ROOT / "results" / "targets" / "cpu-cifar10.json").read_text())
    means = {(row["arm"], row["cut"]): f"{row['mean']:.2f}" for row in record["rows"]}
    text = " ".join(prose(README).split())
    assert f"**{means['joint', '4']} %** of CIFAR-10's" in text
    assert f"one network that has {means['joint', 'whole']} % with all 12" in text
    assert f"4 blocks have {means['alone', '4']} % and 12 have {means['alone', 'whole']} %" in text
    long, first = means["plain_long", "whole"], means["cut_first", "4"]
    assert f"with all of that compute have {long} % (12 blocks) and {first} % (4)" in text
    gpu = json.loads((ROOT / "results" / "layer-pruning" / "gpu-cifar10.json").read_text())
    assert f"by {-gpu['differences'][0]['full_depth']:.2f} points for 54 blocks" in text
