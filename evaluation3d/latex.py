"""The tables of a comparison for a paper: LaTeX with booktabs, with the columns a page has room for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

HEADER = r"""% Written by samnn compare. Needs \usepackage{booktabs}; letters that are not Latin need LuaLaTeX or XeLaTeX.
% The columns a page has room for; all of them, unrounded, are in the .csv files beside this one.
"""
# What a page has no room for: names of cases, and what the others say already.
LEFT_OUT = {
    "Methods": {"name", "folds", "device"},
    "Failures": {"missed in", "false in"},
    "Each method": {"IQR", "worst case"},
    "Paired differences": {
        "left out",
        "patients",
        "p Wilcoxon",
        "p permutation",
        "wins : ties : losses",
        "note",
    },
    "Ranking": {"left out", "score", "tau quartiles"},
    "Calibration": {"voxels"},
}
RANKS_SHOWN = 3  # of the shares of ranks
WORDS = {
    "metric",
    "class",
    "method",
    "name",
    "difference",
    "scheme",
}  # columns on the left; numbers are on the right
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "|": r"\textbar{}", "`": r"\textasciigrave{}",
    "[": "{[}", "*": "{*}",  # at the start of a row they would belong to the \\ before it
}  # fmt: skip


def latex_of(tables: dict[str, pandas.DataFrame]) -> str:
    """Each table as a `tabular`, those of several metrics one a metric; a rule between classes or metrics."""
    names = tables["Methods"][["method", "name"]]
    blocks = [HEADER, _tabular("Names of the methods", names, set())]
    for title, table in tables.items():
        if "metric" in table:
            blocks += [
                _tabular(f"{title}, {metric}", rows.drop(columns="metric"), LEFT_OUT[title])
                for metric, rows in table.groupby("metric", sort=False)
            ]
        else:
            blocks.append(_tabular(title, table, LEFT_OUT[title]))
    return "\n".join(blocks)


def _tabular(title: str, table: pandas.DataFrame, left_out: set[str]) -> str:
    kept = [
        column
        for column in table.columns
        if column not in left_out
        and not ((rank := re.fullmatch(r"rank (\d+)", column)) and int(rank[1]) > RANKS_SHOWN)
    ]
    alignment = "".join("l" if column in WORDS else "r" for column in kept)
    lines = [
        f"% {' '.join(title.split())}",
        r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _row(kept),
        r"\midrule",
    ]
    before = None
    for row in table[kept].to_dict("records"):
        if before is not None and row.get("class") != before:
            lines.append(r"\addlinespace")
        before = row.get("class")
        lines.append(_row(row.values()))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\endgroup", ""])


def _row(cells: object) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    """Escape what LaTeX reads as commands; a minus before a number becomes one."""
    plain = "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", plain)
