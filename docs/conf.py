"""Sphinx builds the site from this: ``make docs``. Warnings are errors there."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # gallery_figures.py

project = "selfdistill_fast"
author = copyright = "The selfdistill_fast developers"
release = version = installed_version("selfdistill_fast")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery/GALLERY_HEADER.rst"]
templates_path = ["_templates"]
suppress_warnings = ["config.cache"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autosummary_generate = True
# spectrum and Spectrum, plan and Plan are one file where case does not count
autosummary_filename_map = {
    "selfdistill_fast.Spectrum": "selfdistill_fast.Spectrum_class",
    "selfdistill_fast.Plan": "selfdistill_fast.Plan_class",
}
autodoc_typehints = "none"
autodoc_mock_imports = ["torch", "torchvision"]
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_(?!wide_network)",  # that one needs torch
    "image_scrapers": ("gallery_figures.scraper",),
    "reset_argv": "gallery_figures.arguments",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "selfdistill_fast"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": False, "show_prev_next": False}
html_context = {"default_mode": "light"}
html_sidebars = {"index": []}


def escape_bars(app, what, name, obj, options, lines):
    """|y| is an absolute value in the docstrings, and a substitution for Sphinx."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("``")
            lines[i] = "``".join(s if k % 2 else s.replace("|", r"\|") for k, s in enumerate(parts))


def skip_routing(app, what, name, obj, skip, options):
    """Leave scikit-learn's metadata routing to its own documentation."""
    return True if name.endswith("_request") else None


def setup(app):
    """Connect the functions above; numpydoc goes first."""
    app.connect("autodoc-process-docstring", escape_bars, priority=900)
    app.connect("autodoc-skip-member", skip_routing)
