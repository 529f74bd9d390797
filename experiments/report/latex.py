"""report.tex: the tables of a report for a paper, with booktabs."""

from collections.abc import Sequence

from experiments.report import tables, words
from experiments.report.content import Content
from experiments.report.ranking import body, class_lines

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"\textperiodcentered{}",
    "±": r"\(\pm\)",
    tables.MISSING: "--",
    "\u202f": r"\,",
    "\u00d7": r"\(\times\)",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
# Columns of the ranking that a paper has room for.
COLUMNS = ("rank", "label", "seeds", "test_miou", "interval", "thin_miou", "boundary_f", "ece", "params_m", "gflops")


def latex(content: Content) -> str:
    """Two tables to be \\input into a document that loads booktabs: the ranking, and IoU by class."""
    table = content.table
    head = "% Needs \\usepackage{booktabs}, and \\usepackage[T1]{fontenc} for names beyond ASCII.\n"
    if table.empty:
        return head + f"% {tables.finding(table)}\n"
    label = tables.Column("label", "configuration", None, "")
    columns = [label if key == "label" else _column(key) for key in COLUMNS if table[key].notna().any()]
    places = "".join("l" if column.digits is None else "r" for column in columns)
    caption = f"Decoders on {content.data['name']}, test split. " + words.resolved(content)[0]
    ranking = _table(caption, places, [column.heading for column in columns], body(table, columns))
    names = list(content.classes.columns)
    lines = [
        [escape(name), *(rf"\textbf{{{escape(value)}}}" if best else escape(value) for value, best in cells)]
        for name, cells in class_lines(content)
    ]
    classes = _table(
        f"Test IoU by class on {content.data['name']}, percent.",
        "l" + "r" * len(names),
        ["class", *names],
        lines,
        escaped=True,
    )
    return f"{head}\n{ranking}\n{classes}"


def escape(text: str) -> str:
    """Text as LaTeX sets it, every special character spelled out."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _column(key: str) -> tables.Column:
    return next(column for column in tables.COLUMNS if column.key == key)


def _table(
    caption: str, places: str, headings: Sequence[str], lines: Sequence[Sequence[str]], escaped: bool = False
) -> str:
    rows = [" & ".join(cell if escaped else escape(cell) for cell in line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{{places}}}",
            r"\toprule",
            " & ".join(map(escape, headings)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
