"""The colours of the figures, and SVG that can stand in a page.

Every colour is written as `var(--name, #hex)`: inside the report's page the light and the dark scheme
set the variables, and an SVG opened by itself shows the light colours.
"""

import io
import re
from typing import Any
from xml.sax.saxutils import quoteattr

COLOURS = {
    "ink": "#1d2935",
    "muted": "#5b6b7b",
    "hairline": "#e3e8ed",
    "accent": "#1f6292",
    "faded": "#c9d2da",
    "mark": "#b8541a",
    "surface": "#ffffff",
}


def colour_variable(colour: str) -> str:
    """Return a colour as CSS that the page may override."""
    return f"var(--{colour}, {COLOURS[colour]})"


def to_svg(figure: Any, name: str, summary: str) -> str:
    """Return a figure as SVG for a page; its ids begin with `name`, a screen reader says `summary`."""
    import matplotlib as mpl

    buffer = io.StringIO()
    # Text stays text: it takes the page's font and can be searched. The salt makes ids repeatable.
    options = {"svg.fonttype": "none", "svg.hashsalt": "stagecost"}
    with mpl.rc_context(options):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inlined(buffer.getvalue(), name, summary)


def _inlined(document: str, name: str, summary: str) -> str:
    """Make an SVG document a part of a page: no prolog, its own ids, colours as variables."""
    svg = document[document.index("<svg") :].strip()
    # The style sheet would hold for the whole page; its one rule that matters moves to the root.
    for unwanted in (r"\s*<metadata>.*?</metadata>", r"\s*<style\b.*?</style>"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"font-family: [^;]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, code in COLOURS.items():
        svg = svg.replace(code, colour_variable(colour))
    # The page decides the size; the view box keeps the proportions.
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
    root = f'<svg role="img" aria-label={quoteattr(summary)} style="stroke-linejoin: round"'
    return svg.replace("<svg", root, 1)
