"""The command line, and small trained runs that many tests read; nobody writes to them."""

import shutil
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from helpers import RECIPE, Runs
from processes import CommandLine

# A busy machine is slow at times; that is no failure of a property.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    folder = tmp_path_factory.mktemp("cli")
    yield CommandLine(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def runs(cli: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    made = Runs(*(folder / name for name in ("three", "two", "staged", "saved")))
    homogeneous = ("train", *RECIPE, "--width", 6, "--output")
    staged = ("--model", "staged", "--blocks-per-stage", "2,2", "--widths", "6,8")
    for outcome in (
        cli(*homogeneous, made.three, "--num-blocks", 3),
        cli(*homogeneous, made.two, "--num-blocks", 2),
        cli("train", *RECIPE, *staged, "--output", made.staged),
        cli("prune", made.three, "--keep-blocks", 2, "--output", made.saved),
    ):
        assert outcome.status == 0, outcome.stderr
    return made
