"""Sphinx: `pip install -e ".[docs]" && sphinx-build docs docs/_build`."""

project = "swinx"
author = "the swinx authors"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
html_theme = "furo"
exclude_patterns = ["_build"]
