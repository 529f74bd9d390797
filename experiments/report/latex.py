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
# Columns of the ranking that a page has room for, with headings that are percent unless they say otherwise.
COLUMNS = {
    "rank": "#",
    "label": "configuration",
    "seeds": "seeds",
    "test_miou": "test mIoU",
    "interval_low": "95 % interval",
    "thin_miou": "thin IoU",
    "boundary_f": "bound. F",
    "ece": "ECE",
    "params_m": "params M",
    "gflops": "GFLOPs",
}
# A configuration's name of more letters than this is broken into lines of this width.
LONG, NAME = 18, "26mm"
# Letters of headings side by side that a page has room for.
ROOM = 45


def latex(content: Content) -> str:
    """Two tables to be \\input into a document that loads booktabs: the ranking, and IoU by class."""
    table = content.table
    head = "% Needs \\usepackage{booktabs}, and \\usepackage[T1]{fontenc} for names beyond ASCII.\n"
    if table.empty:
        return head + f"% {words.finding(table)}\n"
    label = tables.Column("label", "configuration", None, "")
    constant = table["seeds"].nunique() == 1
    shown = [key for key in COLUMNS if table[key].notna().any() and not (key == "seeds" and constant)]
    columns = [label if key == "label" else _column(key) for key in shown]
    names = list(content.classes.columns)
    wide = f"p{{{NAME}}}" if max(map(len, names)) > LONG else "l"
    places = "".join(wide if column is label else "r" for column in columns)
    number = int(table["seeds"].iloc[0])
    seeds = "seeds" if not constant else "one seed" if number == 1 else f"{number} seeds"
    caption = f"Decoders on {content.data['name']}, test split, percent; mean over {seeds}"
    caption += f"{' ± standard deviation' if table['test_miou_sd'].notna().any() else ''}. {words.resolved(content)[0]}"
    # One spread is enough for a page; summary.csv has them all.
    printed = body(table.drop(columns=[f"{key}_sd" for key in tables.SPREAD if key != "test_miou"]), columns)
    ranking = _table(caption, places, [_stacked(COLUMNS[key]) for key in shown], printed)
    fits = sum(map(len, names)) <= ROOM
    headings = names if fits else [f"#{rank}" for rank in table["rank"]]
    lines = [
        [escape(name), *(rf"\textbf{{{escape(value)}}}" if best else escape(value) for value, best in cells)]
        for name, cells in class_lines(content)
    ]
    classes = _table(
        f"Test IoU by class on {content.data['name']}, percent{'' if fits else ', by rank in the table before'}.",
        "l" + "r" * len(names),
        ["class", *map(escape, headings)],
        lines,
        escaped=True,
    )
    return f"{head}\n{ranking}\n{classes}"


def escape(text: str) -> str:
    """Text as LaTeX sets it, every special character spelled out."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _column(key: str) -> tables.Column:
    return next(column for column in tables.COLUMNS if column.key == key)


def _stacked(heading: str) -> str:
    """A heading over two lines where it has two words."""
    first, _, last = heading.rpartition(" ")
    return rf"\shortstack[r]{{{escape(first)}\\{escape(last)}}}" if first else escape(last)


def _table(
    caption: str, places: str, headings: Sequence[str], lines: Sequence[Sequence[str]], escaped: bool = False
) -> str:
    rows = [" & ".join(cell if escaped else escape(cell) for cell in line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{{places}}}",
            r"\toprule",
            " & ".join(headings) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
