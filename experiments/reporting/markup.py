"""Tables of texts as HTML, Markdown, LaTeX and CSV.

Texts come from data and rows, and may hold what is markup there: every function escapes all of them.
"""

import html
import re
from collections.abc import Mapping
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from pandas.io.formats.style import Styler

from experiments.reporting.tables import MISSING, Frame

# Columns of texts; all others are of numbers, and set right.
LEFT = ("configuration", "groups", "contrast", "result", "made of", "run", "status", "error", "name", "value")


def to_html(frame: Frame, name: str) -> str:
    """A table; name: its id, which no other of the page has."""
    styler = Styler(frame, uuid=name, cell_ids=False).hide(axis="index").format(escape="html")
    left: Any = {column: [{"selector": "", "props": "text-align: left"}] for column in frame if column in LEFT}
    return styler.set_table_styles(left).format_index(escape="html", axis=1).to_html()


def heat_map(frame: Frame) -> str:
    """Percentages as a table with a darker background the higher they are; both axes carry names."""
    light = LinearSegmentedColormap.from_list("light", ["#ffffff", "#74a9e0"])  # dark letters are legible on all of it
    styler = Styler(frame, uuid="heat").format("{:.0f}", na_rep=MISSING)
    styler = styler.background_gradient(light, vmin=0, vmax=100, axis=None).highlight_null(color="#dddddd")
    styler = styler.set_properties(color="#1d2433").format_index(escape="html", axis=0)
    return styler.format_index(escape="html", axis=1).to_html()


def to_markdown(frame: Frame) -> str:
    """A table as GitHub's Markdown has it."""
    aligned = ["left" if column in LEFT else "right" for column in frame]
    plain = frame.rename(columns=markdown_text).map(markdown_text)
    return plain.to_markdown(index=False, disable_numparse=True, colalign=aligned)


def markdown_text(text: object) -> str:
    """A text in which nothing is markup, for Markdown and the HTML in it."""
    return re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))", r"\\\1", html.escape(str(text), quote=False))


def to_csv(frame: Frame) -> str:
    """CSV whose texts no spreadsheet takes for formulas: one that begins like a formula gets an apostrophe before."""

    def plain(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(tuple("=+-@")) else value

    return frame.map(plain).rename(columns=plain).to_csv(index=False)


def to_latex(captioned: Mapping[str, Frame]) -> str:
    """Floating tables by their captions, in small letters; texts of more than a few words are broken into lines."""
    tables = []
    for caption, frame in captioned.items():
        wide = f">{{\\raggedright\\arraybackslash}}p{{{0.22 if len(frame.columns) > 7 else 0.36}\\linewidth}}"
        columns = [wide if name in ("configuration", "contrast") else "l" if name in LEFT else "r" for name in frame]
        styler = Styler(frame).hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        tables.append(styler.to_latex(hrules=True, caption=caption, column_format="".join(columns)))
    text = "\n".join(tables).replace("\\begin{tabular}", "\\scriptsize\\setlength{\\tabcolsep}{3pt}\n\\begin{tabular}")
    head = (
        "% Needs \\usepackage{array,booktabs}, and \\usepackage[T1]{fontenc} for names beyond ASCII; lines of 16 cm.\n"
    )
    return f"{head}\n{text}".replace("\N{MINUS SIGN}", "$-$")
