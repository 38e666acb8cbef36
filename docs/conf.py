"""Builds the pages: sphinx-build -W -n docs docs/_build."""

import re

import pyro_vaes

project = "pyro_vaes"
author = "The pyro_vaes developers"
release = pyro_vaes.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "pyro_vaes"
html_static_path = ["_static"]
html_css_files = ["pictures.css"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # Their own pages would have to be fetched; the builtins Sphinx knows.
    ("py:.*", r"(torch|pyro|numpy|sklearn|collections\.abc|pathlib|Tensor|nn)(\..*)?"),
    ("py:class", r"pyro_vaes\..*\._.*"),  # private bases
    ("py:class", r"pyro_vaes\..*\.T"),  # type variables
    # How Sphinx splits a field whose default it cannot read.
    ("py:class", r"(list\[dict|tuple|dict)\[str"),
]

add_module_names = False
autoclass_content = "class"
autodoc_default_options = {"no-value": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autosummary_generate = False
napoleon_custom_sections = [("Args of the call", "params_style")]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_heading_anchors = 3


def _outside_as_files(app, name, source):
    """Links to Markdown outside of docs/ lead to the file: there is no page for it."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)(#[^)]*)?\)", r"](path:\1)", source[0])


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _outside_as_files)
