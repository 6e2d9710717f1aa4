"""The documentation site: the Markdown files of this repository, as they are.

Its source folder is the repository itself, so that every link between files works here as it does there:
`sphinx-build -W -n -c docs . build/site`, or `make docs`. Nothing is fetched from a network.
"""

import inspect
import re
from typing import Any

import stagecost

project, author = "stagecost", "the authors of stagecost"
release = stagecost.__version__
root_doc = "docs/index"
include_patterns = ["docs/**", "results/README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "runs", "src", "tests", "results/archive", "docs/_*"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 600  # seconds a cell, for a machine that is busy
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"
nitpick_ignore_regex = [
    (r"py:.*", r"(?!stagecost\.).*"),  # pages of other libraries are not looked up
    (r"py:.*", r"stagecost\.\w+\..*"),  # nor those of modules: what is public is stagecost.NAME
]

html_theme = "pydata_sphinx_theme"
html_title = "stagecost"
html_show_sourcelink = False
html_copy_source = False
templates_path = ["_templates"]
html_sidebars = {"**": ["contents.html"]}
html_theme_options = {
    "navbar_center": [],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
}
copyright = f"{author}, Apache-2.0"  # noqa: A001 (Sphinx's name for it)


def toctrees(index: str) -> str:
    """Return the contents of the site: one tree for each section of the index, of its tables' pages."""
    trees = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        caption = section.partition("\n")[0]
        pages = re.findall(r"^\| \[(.*?)\]\(([\w./-]+)\.md\)", section, re.MULTILINE)
        body = "\n".join(f"{title} <{page}>" for title, page in pages)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{body}\n```\n")
    return "\n".join(trees)


def reference(name: str) -> str:
    """Return what documents a public name from its docstring."""
    thing = getattr(stagecost, name)
    kind = "class" if inspect.isclass(thing) else "function"
    options = "   :members:\n" if kind == "class" else ""
    return f"```{{eval-rst}}\n.. auto{kind}:: stagecost.{name}\n{options}```\n"


def extend(app: Any, page: str, source: list[str]) -> None:
    """Add to the plain Markdown what only the site has: contents, and the docstrings of public names."""
    if page == root_doc:
        source[0] += "\n" + toctrees(source[0])
    if page == "docs/api":
        row = re.compile(r"^\| `sc\.(\w+)` \|.*\n", re.MULTILINE)
        parts = re.split(r"(?=^## )", source[0], flags=re.MULTILINE)
        source[0] = "".join(
            part + "\n" + "\n".join(reference(name) for name in row.findall(part)) for part in parts
        )


def setup(app: Any) -> None:
    """Register the extension of pages."""
    app.connect("source-read", extend)
