"""How the documentation is built; nothing is fetched on the way."""

from __future__ import annotations

import reweight

project = "reweight"
author = "The reweight developers"
copyright = "2026, The reweight developers"
version = release = reweight.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
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
