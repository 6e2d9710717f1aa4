"""The documentation site is built as `make docs` builds it, and any warning is an error."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from test_readme import DOCUMENTS, NOTEBOOKS, ROOT, dry_run


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    """Once for all that is looked at, as a build takes a minute."""
    site = build(tmp_path)
    every_document_is_a_page_of_the_contents(site)
    the_reference_shows_docstrings(site)
    for name in NOTEBOOKS:
        a_notebook_shows_what_it_computed(site / name.replace(".md", ".html"))


def build(folder: Path) -> Path:
    """Build the site, notebooks included, with the command of the Makefile."""
    (line,) = (line for line in dry_run("docs").splitlines() if "/sphinx-build " in line)
    command = [str(folder) if word == "build/site" else word for word in shlex.split(line)]
    assert {str(folder), "-W", "-n"} <= set(command)
    outcome = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    return folder


def every_document_is_a_page_of_the_contents(site: Path) -> None:
    home = (site / "docs" / "index.html").read_text()
    contents = home.split('aria-label="Contents"')[1].split("</nav>")[0]
    for name in set(DOCUMENTS) - {"README.md", "docs/index.md"}:
        page = site / name.replace(".md", ".html")
        assert page.is_file(), name
        assert page.name in contents, name


def the_reference_shows_docstrings(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "docs" / "api.html").read_text())
    assert "Which blocks of a network act; all others are their skip connections." in text


def a_notebook_shows_what_it_computed(file: Path) -> None:
    page = file.read_text()
    assert 'class="output' in page
    assert "Traceback" not in page
