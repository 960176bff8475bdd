"""tables.tex, read as strictly as LaTeX does: nothing unescaped, as many cells in each row as the header has columns."""

from __future__ import annotations

import re

import pandas
import pytest

from samnn.evaluation3d.latex import escaped, latex_of

NASTY = r"50% of_A & B #1 $x$ ~^ {a} \n [b] *c* <d> |e| `f` - -1"
COMMANDS = (
    r"\\(?:textbackslash|textasciitilde|textasciicircum|textbar|textasciigrave)\{\}|\\[{}_%&#$]|\$(?:-|<|>|\\pm)\$|"
    r"\{\[\}|\{\*\}"
)


def tables(name: str) -> dict[str, pandas.DataFrame]:
    methods = pandas.DataFrame({"method": ["A", "B"], "name": [name, "plain"], "folds": ["fold_0"] * 2})
    paired = pandas.DataFrame(
        {
            "metric": ["dice", "dice", "hausdorff95 (mm)"],
            "class": [name, "other", name],
            "mean": ["-0.1", "0.2", "–"],
            "note": ["a", "b", "c"],
        }
    )
    ranking = pandas.DataFrame(
        {"class": ["a"], "rank": ["1"], **{f"rank {r}": ["5 %"] for r in range(1, 31)}}
    )
    return {"Methods": methods, "Paired differences": paired, "Ranking": ranking}


def tabulars(text: str) -> list[tuple[str, list[str]]]:
    """Alignment and rows of every tabular; everything else must be a comment or a rule of booktabs."""
    found = []
    for line in text.splitlines():
        if line.startswith(r"\begin{tabular}"):
            found.append((re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", line)[1], []))
        elif line.endswith(r" \\"):
            found[-1][1].append(line.removesuffix(r" \\"))
        else:
            small = r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}"
            rules = (
                small,
                r"\endgroup",
                "",
                r"\toprule",
                r"\midrule",
                r"\addlinespace",
                r"\bottomrule",
                r"\end{tabular}",
            )
            assert line.startswith("%") or line in rules
    return found


def test_rows_have_as_many_cells_as_columns_and_nothing_is_left_to_latex():
    found = tabulars(latex_of(tables(NASTY)))
    assert len(found) == 5  # names, methods, a paired one for each of two metrics, ranking
    for alignment, rows in found:
        assert rows
        for row in rows:
            bare = re.sub(COMMANDS, "", row)
            assert bare.count("&") == len(alignment) - 1
            assert not re.search(r"[\\{}_%#$~^*<>|`\[]", bare)
            assert not row.startswith(("[", "*"))


def test_what_has_no_room_on_a_page_is_left_to_the_csv():
    text = latex_of(tables("heart"))
    assert "& note" not in text and "rank 3" in text and "rank 4" not in text
    assert "dice &" not in text  # it is in the title of its tabular


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("-0.5 to -0.1", "$-$0.5 to $-$0.1"),
        ("p-1_2", r"p-1\_2"),
        ("A − B", "A $-$ B"),
        ("<0.001", "$<$0.001"),
    ],
)
def test_numbers_have_a_minus_and_names_a_hyphen(text, latex):
    assert escaped(text) == latex
