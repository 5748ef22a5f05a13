"""How the documentation is built; nothing is fetched on the way."""

from __future__ import annotations

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html import HTMLTranslator

import reweight

project = "reweight"
author = "The reweight developers"
copyright = "2026, The reweight developers"
version = release = reweight.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes of dataclasses are documented once, in the class's docstring.
napoleon_use_ivar = True

# The pages' own snippets; those in docstrings run with the tests.
doctest_test_doctest_blocks = ""

html_theme = "furo"
html_title = f"reweight {version}"
html_show_sourcelink = False

html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Render formulas as MathML, which browsers show without a script from elsewhere."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))


def _inline_math(translator: HTMLTranslator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display_math(translator: HTMLTranslator, node: nodes.math_block) -> None:
    # Scrolls by itself where a formula is wider than the page.
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div style="overflow: auto hidden; padding: 0.5em 0">{formula}</div>')
    raise nodes.SkipNode
