"""The examples of public names: each has one, and it does what it says."""

import doctest

import pytest
import torch

import stagecost as sc

NAMES = [name for name in sc.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_has_an_example_that_runs(name: str) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(getattr(sc, name), name, globs={"sc": sc, "torch": torch})
    assert example.examples, f"{name} has none"
    told: list[str] = []
    runner = doctest.DocTestRunner()
    assert not runner.run(example, out=told.append).failed, "".join(told)
