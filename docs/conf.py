"""Configuration of the documentation. A build needs no network."""

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
    "sphinx_copybutton",
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
# The class's docstring documents the attributes of a dataclass, so they are not listed again.
napoleon_use_ivar = True

# Run the snippets of the pages only: pytest runs those in docstrings.
doctest_test_doctest_blocks = ""

html_theme = "furo"
html_static_path = ["_style"]
html_css_files = ["tables.css"]
html_title = f"reweight {version}"
html_show_sourcelink = False

# What is copied from an interactive example is its input, without prompts and output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Render formulas as MathML, which browsers show without an external script."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))


def _inline_math(translator: HTMLTranslator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display_math(translator: HTMLTranslator, node: nodes.math_block) -> None:
    # A formula that is wider than the page gets its own scroll bar.
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div style="overflow: auto hidden; padding: 0.5em 0">{formula}</div>')
    raise nodes.SkipNode
