"""Builds the pages: sphinx-build -W -n docs docs/_build."""

import os
import re
import shutil
from pathlib import Path

import pyro_vaes

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# Folders of the repository that are pages, too: studies and notebooks.
COPIED = ("figures", "notebooks")

project = "pyro_vaes"
author = "The pyro_vaes developers"
html_show_copyright = False
release = pyro_vaes.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
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
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Notebooks are committed with their outputs.
nb_execution_mode = "off"
nb_merge_streams = True


def _with_copies(app, config):
    """Sphinx reads one folder: what stands next to it is copied into it."""
    for name in COPIED:
        shutil.rmtree(DOCS / name, ignore_errors=True)
        shutil.copytree(ROOT / name, DOCS / name, ignore=shutil.ignore_patterns(".*"))


def _links(app, name, source):
    """Links as in the repository: those that leave docs/ lead to a copy, or else to the file."""
    origin = (ROOT if name.split("/")[0] in COPIED else DOCS) / name

    def link(match):
        target = (origin.parent / match[1]).resolve()
        if target.relative_to(ROOT).parts[0] in COPIED:
            target = DOCS / target.relative_to(ROOT)
        there = os.path.relpath(target, (DOCS / name).parent)
        has_page = target.is_relative_to(DOCS)
        return f"]({there}{match[2] or ''})" if has_page else f"](path:{there})"

    source[0] = re.sub(r"\]\((\.\./[^)#\s]+\.(?:md|ipynb))(#[^)]*)?\)", link, source[0])


def setup(app):
    """Called by Sphinx."""
    app.connect("config-inited", _with_copies)
    app.connect("source-read", _links)
