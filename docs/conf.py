"""Sphinx: `pip install -e ".[docs]" && sphinx-build -W -n --keep-going docs docs/_build`."""

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout's swinx, installed or not

project = "swinx"
author = "the swinx authors"
copyright = author
html_title = "swinx"
html_theme = "furo"
exclude_patterns = ["_build"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # the notebook is stored without outputs
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # it writes a model
nb_execution_timeout = 300  # seconds for one cell
nb_merge_streams = True
nb_output_stderr = "remove"  # warnings of notebook front ends; errors still end the build

default_role = "code"  # docstrings quote code as Markdown does
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
nitpicky = True
# What lies outside these pages, and may be looked up in the documentation of its own project.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|timm|segmentation_models_pytorch|collections|pathlib|Path|Tensor|nn)(\..*)?")
]


def _mathml(text: str, block: bool) -> str:
    """MathML, which browsers draw without a script or a network."""
    return latex2mathml.tex2mathml(" ".join(text.split()), as_block=block)


def _inline(writer: nodes.NodeVisitor, node: nodes.math) -> None:
    writer.body.append(_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(writer: nodes.NodeVisitor, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math-block" style="overflow-x: auto">{_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
