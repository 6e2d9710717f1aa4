"""The documentation site is built as `make docs` builds it, and any warning is an error."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from test_readme import DOCUMENTS, NOTEBOOKS, ROOT, dry_run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, notebooks included, with the command of the Makefile."""
    folder = tmp_path_factory.mktemp("site")
    (line,) = (line for line in dry_run("docs").splitlines() if "/sphinx-build " in line)
    command = [str(folder) if word == "build/site" else word for word in shlex.split(line)]
    assert {str(folder), "-W", "-n"} <= set(command)
    outcome = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    return folder


@pytest.mark.slow
def test_every_document_is_a_page_of_the_contents(site: Path) -> None:
    home = (site / "docs" / "index.html").read_text()
    contents = home.split('aria-label="Contents"')[1].split("</nav>")[0]
    for name in set(DOCUMENTS) - {"README.md", "docs/index.md"}:
        page = site / name.replace(".md", ".html")
        assert page.is_file(), name
        assert page.name in contents, name


def test_the_reference_shows_docstrings(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "docs" / "api.html").read_text())
    assert "Which blocks of a network act; all others are their skip connections." in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_show_what_they_computed(name: str, site: Path) -> None:
    page = (site / name.replace(".md", ".html")).read_text()
    assert 'class="output' in page
    assert "Traceback" not in page
