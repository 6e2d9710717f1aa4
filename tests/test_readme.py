"""What the documents say is run, parsed, imported or looked up; nothing in them is taken on trust."""

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import test_benchmark
import test_reproduce
from stagecost import registry
from stagecost.cli import build_parser
from stagecost.verbs import commands, demo

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
}
README, COMMAND_LINE = DOCUMENTS["README.md"], DOCUMENTS["docs/command-line.md"]
VERBS = (
    "demo",
    "train",
    "analyze",
    "prune",
    "evaluate",
    "bound",
    "report",
    "tune",
    "benchmark",
    "reproduce",
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line where the text begins."""

    language: str
    text: str
    line: int


def blocks(document: str) -> list[Block]:
    return [
        Block(found[1], found[2], document.count("\n", 0, found.start(2)))
        for found in FENCE.finditer(document)
    ]


def inline_code(document: str) -> list[str]:
    codes = re.findall(r"`([^`]+)`", FENCE.sub("", document))
    return [" ".join(code.split()) for code in codes]


def command_lines(document: str) -> list[str]:
    """Every `stagecost …` that the document shows: inline, indented, or in a bash block."""
    bash = "".join(block.text for block in blocks(document) if block.language == "bash")
    indented = re.findall(r"^ {4}(.*)$", FENCE.sub("", document), re.MULTILINE)
    codes = [*inline_code(document), *indented, *bash.splitlines()]
    return [code for code in codes if code.startswith("stagecost ")]


def section(document: str, heading: str) -> str:
    return document.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]


def first_column(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


# ---------------------------------------------------------------------------------------------
# What is run


def run_bash(text: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        check=False,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def run_python(block: Block, name: str, namespace: dict[str, Any]) -> None:
    # The empty lines make a traceback point at the line of the document.
    exec(compile("\n" * block.line + block.text, name, "exec"), namespace)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, and forget the models that an example registers."""
    known = set(registry.catalogue)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(registry.catalogue) - known:
        del registry._builders[name]


@pytest.mark.slow
def test_the_readme_works_from_top_to_bottom(folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks(README):
        if block.language == "python":
            run_python(block, "README.md", namespace)
        elif not block.text.startswith("make "):  # those are checked below
            assert block.language == "bash"
            run_bash(block.text, folder)
    assert (folder / "runs" / "deep" / "report.html").is_file()
    assert namespace["small"].num_blocks == len(namespace["plan"].kept_blocks)


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "README.md"])
def test_the_code_in_the_documents_works(name: str, folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks(DOCUMENTS[name]):
        assert block.language in {"python", "bash", "yaml"}
        if block.language == "python":
            run_python(block, name, namespace)


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


# ---------------------------------------------------------------------------------------------
# What is parsed


@pytest.mark.parametrize(
    "line", sorted({line for document in DOCUMENTS.values() for line in command_lines(document)})
)
def test_command_lines_are_valid(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = next(block.text for block in blocks(COMMAND_LINE) if block.language == "yaml")
    (tmp_path / "run.yaml").write_text(settings, encoding="utf-8")
    arguments = shlex.split(line)[1:]
    if len(arguments) == 1 and arguments[0] in VERBS:
        arguments.append("--help")  # a verb that is merely mentioned
    parse = build_parser().parse_args
    if {"--help", "--version"} & set(arguments):
        with pytest.raises(SystemExit) as stopped:
            parse(arguments)
        assert stopped.value.code == 0
    else:
        assert parse(arguments, defaults=False).verb == arguments[0]


def test_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([verb] for verb in VERBS)):
        with pytest.raises(SystemExit):
            build_parser().parse_args([*arguments, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    codes = [code for document in DOCUMENTS.values() for code in inline_code(document)]
    named = {code.split()[0].partition("=")[0] for code in codes if code.startswith("--")}
    assert "--gamma" in named
    assert named <= known


# ---------------------------------------------------------------------------------------------
# What is looked up


def anchors(document: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", DOCUMENTS[name])):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def resolve(name: str) -> object:
    try:
        return pkgutil.resolve_name(name)
    except AttributeError:  # a field without a default is no attribute of its class
        owner, _, field = name.rpartition(".")
        return pkgutil.resolve_name(owner).__dataclass_fields__[field]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_names_are_in_the_code(name: str) -> None:
    for code in inline_code(DOCUMENTS[name]):
        if found := re.match(r"(?:sc|stagecost)((?:\.\w+)+)", code):
            resolve(f"stagecost{found[1]}")


def test_every_row_of_the_map_has_a_name_and_a_test() -> None:
    table = DOCUMENTS["docs/paper-to-code.md"]
    rows = re.findall(r"^\| (?!---|in the paper|what \|)(.*) \|$", table, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        assert "`stagecost." in row, row
        assert "`tests/test_" in row, row


def test_files_that_are_named_are_there() -> None:
    codes = [code for document in DOCUMENTS.values() for code in inline_code(document)]
    files = {code for code in codes if re.fullmatch(r"(tests|scripts|examples)/\w+\.py", code)}
    assert len(files) > 5
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []


# ---------------------------------------------------------------------------------------------
# What is said of results


def documented_keys(verb: str) -> list[str]:
    row = re.search(rf"^\| `{verb}` \| (.*) \|$", section(COMMAND_LINE, "JSON keys"), re.MULTILINE)
    assert row, verb
    return re.findall(r"`(\w+)`", row[1])


def test_keys_and_files_are_those_documented(folder: Path) -> None:
    recipe = {"data": "digits", "width": 4, "epochs": 1}
    results = {"train": commands.train("deep", num_blocks=3, **recipe)}
    commands.train("shallow", num_blocks=2, **recipe)
    results["analyze"] = commands.analyze("deep")
    results["prune"] = commands.prune("deep", "small", keep_blocks=2)
    results["evaluate"] = commands.evaluate("small")
    results["bound"] = commands.bound("deep", ["shallow"])
    results["report"] = commands.report("deep")
    results["tune"] = commands.tune("search", trials=1, num_blocks=2, **recipe)
    documented = first_column(section(COMMAND_LINE, "JSON keys"))
    assert documented == [*results, "benchmark", "reproduce", "demo"]
    for verb, result in results.items():
        assert list(result) == documented_keys(verb), verb
    bound_keys = {"num_blocks", "blocks_per_stage", "right_hand_side", "holds", "tightness"}
    bound_keys |= {"normalized_bound"}
    assert set(results["bound"]["bounds"][0]) == bound_keys
    files = {path.name for path in (folder / "deep").iterdir()}
    assert files == set(first_column(section(COMMAND_LINE, "The run folder")))
    assert {path.name for path in (folder / "small").iterdir()} == {"model.safetensors", "config.json"}


def test_keys_of_the_lists_of_a_benchmark() -> None:
    text = section(COMMAND_LINE, "benchmark").split("hold objects with these keys")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    lists = {name: set(re.findall(r"`(\w+)`", keys.split(";")[0])) for name, keys in rows.items()}
    spreads = lists.pop("spreads")
    assert spreads == {"configuration"}
    assert lists == {
        "rows": test_benchmark.ROW_KEYS,
        "shrink": test_benchmark.SHRINK_KEYS,
        "pruned_speedup": test_benchmark.SPEEDUP_KEYS,
        "scale": test_benchmark.SCALE_KEYS,
        "peers": test_benchmark.PEER_KEYS,
    }


def test_keys_of_the_lists_of_a_reproduction() -> None:
    text = section(COMMAND_LINE, "reproduce").split("hold objects with these keys")[1]
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", text, re.MULTILINE))
    lists = {name: set(re.findall(r"`(\w+)`", keys.split(";")[0])) for name, keys in rows.items()}
    del lists["list"], lists["---"]
    assert lists == {
        "`rows` and `other_rows` of layer-pruning": test_reproduce.ROW_KEYS,
        "`differences` of layer-pruning": test_reproduce.DIFFERENCE_KEYS,
        "`differences` of staged": test_reproduce.STAGED_DIFFERENCE_KEYS,
        "`rows` of bound": test_reproduce.BOUND_KEYS,
        "`rows` of loss-trajectory": test_reproduce.TRAJECTORY_KEYS,
        "`records`": test_reproduce.RECORD_KEYS,
    }
    every = test_reproduce.KEYS | {"other_rows", "differences"}
    assert set(documented_keys("reproduce")) == every


def test_keys_of_the_demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"num_blocks": 4, "width": 4, "epochs": 1}.items():
        monkeypatch.setitem(demo.RECIPE, name, value)
    result = commands.demo(output="demo")
    assert list(result) == documented_keys("demo")
    assert list(result["analyze"]) == documented_keys("analyze")
    assert list(result["prune"]) == documented_keys("prune")
    assert set(result["test"][0]) == {"name", *documented_keys("evaluate")}
    assert (folder / "demo" / "stage-cost" / "report.html").is_file()
