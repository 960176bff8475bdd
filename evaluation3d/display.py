"""The tables of a comparison as a reader sees them: rounded, in words; for terminal, report, Markdown and LaTeX alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .cautions import cautions_of
from .comparison import Comparison
from .ranking import MEAN_THEN_RANK

if TYPE_CHECKING:
    import pandas

UNDEFINED = "–"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def display_tables(comparison: Comparison) -> dict[str, pandas.DataFrame]:
    """Title → table of texts, one for each table but the values themselves; the first one explains the letters."""
    import pandas

    tables, letters = comparison.tables, letters_of(comparison)
    return {
        title: pandas.DataFrame([row(entry, letters) for entry in tables[name].to_dict("records")])
        for name, (title, row) in _ROWS.items()
        if name in tables
    }


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print means, differences, ranks, failures and cautions; methods are named by letters, explained on top."""
    letters = letters_of(comparison)
    console.print(Text(f"{len(comparison.cases)} cases. Mean ± standard deviation:", style="bold"))
    for name, letter in letters.items():
        console.print(Text(f"  {letter} = {name}"), soft_wrap=True)
    for metric in comparison.metrics:
        console.print(_means(comparison, metric, letters))
    if comparison.tables["description"]["n_undefined"].any():
        console.print("* or –: undefined in some or all cases, see the failures below.")
    if "pairs" in comparison.tables:
        console.print(
            Text("\nPaired differences, 95 % BCa interval, p after Holm's correction:", style="bold")
        )
        for metric in comparison.metrics:
            console.print(_differences(comparison, metric, letters))
        console.print(Text(f"Family of the correction: {comparison.settings['family']}"), soft_wrap=True)
    console.print(Text("\n" + "\n".join(_failures(comparison, letters)), style="bold"), soft_wrap=True)
    for caution in cautions_of(comparison):
        console.print(Text(f"Note: {caution}"), soft_wrap=True)


def letters_of(comparison: Comparison) -> dict[str, str]:
    """A letter for each method (beyond Z: its number)."""
    return {m.name: LETTERS[i] if i < len(LETTERS) else str(i + 1) for i, m in enumerate(comparison.methods)}


def number(value: float | None, unit: str = "fraction") -> str:
    """Three decimals of a fraction, two of mm."""
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{value:.3f}" if unit == "fraction" else f"{value:.2f}"


def p_value(value: float) -> str:
    """Three decimals, or that it is smaller."""
    return "<0.001" if value < 0.001 else number(value)


def _between(low: float, high: float, unit: str) -> str:
    return UNDEFINED if math.isnan(low) else f"{number(low, unit)} to {number(high, unit)}"


def _described(row: dict[str, Any], letters: dict[str, str]) -> dict[str, str]:
    unit = row["unit"]
    return {
        "metric": _metric(row),
        "class": row["class"],
        "method": letters[row["method"]],
        "n": str(row["n"]),
        "undefined": str(row["n_undefined"]),
        "mean": number(row.get("mean"), unit),
        "sd": number(row.get("sd"), unit),
        "median": number(row.get("median"), unit),
        "quartiles": _between(row["q1"], row["q3"], unit) if "q1" in row else UNDEFINED,
        "IQR": number(row.get("iqr"), unit),
        "worst": number(row.get("worst"), unit),
        "worst case": _text(row.get("worst_case")),
    }


def _paired(row: dict[str, Any], letters: dict[str, str]) -> dict[str, str]:
    unit = row["unit"]
    return {
        "metric": _metric(row),
        "class": row["class"],
        "difference": _pair(row, letters),
        "n": str(row["n"]),
        "left out": str(row["n_left_out"]),
        "patients": str(row["n_groups"]),
        "mean": number(row["mean_difference"], unit),
        "95 % interval": _between(row["ci_low"], row["ci_high"], unit),
        "p Wilcoxon": p_value(row["wilcoxon_p"]),
        "Holm": p_value(row["wilcoxon_p_holm"]),
        "p permutation": p_value(row["permutation_p"]),
        "Holm, permutation": p_value(row["permutation_p_holm"]),
        "wins : ties : losses": f"{row['wins_a']} : {row['ties']} : {row['wins_b']}",
        "win rate": number(row["win_rate_a"]),
        "note": row["note"] or UNDEFINED,
    }


def _ranked(row: dict[str, Any], letters: dict[str, str]) -> dict[str, str]:
    shares = {key.replace("_", " "): f"{100 * row[key]:.0f} %" for key in row if key.startswith("rank_")}
    return {
        "metric": row["metric"],
        "class": row["class"],
        "scheme": row["scheme"],
        "method": letters[row["method"]],
        "n": str(row["n"]),
        "left out": str(row["n_left_out"]),
        "score": f"{row['score']:.3f}",
        "rank": str(row["rank"]),
        **shares,
        "tau": number(row["tau_mean"]),
        "tau quartiles": _between(row["tau_q1"], row["tau_q3"], "fraction"),
    }


def _failed(row: dict[str, Any], letters: dict[str, str]) -> dict[str, str]:
    return {
        "class": row["class"],
        "method": letters[row["method"]],
        "cases": str(row["n_cases"]),
        "missed": str(row["missed"]),
        "false": str(row["false"]),
        "in neither map": str(row["absent"]),
        "missed in": row["missed_cases"],
        "false in": row["false_cases"],
    }


def _calibrated(row: dict[str, Any], letters: dict[str, str]) -> dict[str, str]:
    shown = {key: f"{row[key]:.4f}" if row[key] == row[key] else UNDEFINED for key in ("ece", "brier", "nll")}
    return {
        "class": row["class"],
        "method": letters[row["method"]],
        "n": str(row["n_cases"]),
        "voxels": f"{row['n_voxels']:,}",
        "ECE": shown["ece"],
        "Brier score": shown["brier"],
        "NLL (nats)": shown["nll"],
    }


def _costs(row: dict[str, Any], letters: dict[str, str]) -> dict[str, str]:
    def known(key: str, show: Callable[[Any], str]) -> str:
        value = row[key]
        return "not known" if value is None or value != value else show(value)

    return {
        "method": letters[row["method"]],
        "name": row["method"],
        "folds": _text(row["folds"]),
        "trainable parameters": known("trainable_parameters", lambda n: f"{n:,.0f}"),
        "parameters": known("total_parameters", lambda n: f"{n:,.0f}"),
        "checkpoint": known("checkpoint_bytes", lambda n: f"{n / 1e6:.1f} MB"),
        "epochs": known("n_epochs", lambda n: f"{n:.0f}"),
        "training a fold": known("training_hours", lambda h: f"{h:.2f} h" if h >= 1 else f"{60 * h:.1f} min"),
        "inference a case": known("inference_seconds", lambda s: f"{s:.1f} s"),
        "device": known("device", str),
    }


_Row = Callable[[dict[str, Any], dict[str, str]], dict[str, str]]
_ROWS: dict[str, tuple[str, _Row]] = {
    "methods": ("Methods", _costs),
    "failures": ("Failures", _failed),
    "description": ("Each method", _described),
    "pairs": ("Paired differences", _paired),
    "ranking": ("Ranking", _ranked),
    "calibration": ("Calibration", _calibrated),
}


def _pair(row: dict[str, Any], letters: dict[str, str]) -> str:
    return f"{letters[row['method_a']]} − {letters[row['method_b']]}"


def _metric(row: dict[str, Any]) -> str:
    return row["metric"] if row["unit"] == "fraction" else f"{row['metric']} ({row['unit']})"


def _text(value: object) -> str:
    return value if isinstance(value, str) and value else UNDEFINED


def _means(comparison: Comparison, metric: str, letters: dict[str, str]) -> Table:
    table = _table(comparison, metric)
    for letter in letters.values():
        table.add_column(letter, justify="right", no_wrap=True)
    ranked = comparison.tables.get("ranking")
    if ranked is not None:
        table.add_column("ranks by mean", justify="right")
        ranked = ranked[(ranked["scheme"] == MEAN_THEN_RANK) & (ranked["metric"] == metric)]
    rows = comparison.tables["description"]
    for name, entries in rows[rows["metric"] == metric].groupby("class", sort=False):
        cells = [_mean(entry) for entry in entries.to_dict("records")]
        if ranked is not None:
            here = ranked[ranked["class"] == name]
            cells.append(" ".join(f"{letters[r.method]}{r.rank}" for r in here.itertuples()) or UNDEFINED)
        table.add_row(Text(str(name)), *cells)
    return table


def _mean(entry: dict[str, Any]) -> str:
    """Mean ± standard deviation; a star where some values are undefined, and so not in it."""
    if not entry["n"]:
        return UNDEFINED
    star = "*" if entry["n_undefined"] else ""
    return f"{number(entry['mean'], entry['unit'])} ± {number(entry['sd'], entry['unit'])}{star}"


def _differences(comparison: Comparison, metric: str, letters: dict[str, str]) -> Table:
    table = _table(comparison, metric)
    table.add_column("pair", no_wrap=True)
    for heading in ("n", "mean", "interval", "Wilcoxon", "permut.", "wins"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = comparison.tables["pairs"]
    for row in rows[rows["metric"] == metric].to_dict("records"):
        shown = _paired(row, letters)
        columns = ("difference", "n", "mean", "95 % interval", "Holm", "Holm, permutation", "win rate")
        table.add_row(Text(row["class"]), *(shown[column] for column in columns))
    return table


def _table(comparison: Comparison, metric: str) -> Table:
    definition = comparison.definition(metric)
    arrow = {"higher": "↑", "lower": "↓"}[definition["better"]]
    heading = f"{_metric({'metric': metric, 'unit': definition['unit']})} {arrow}"
    return Table(heading, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _failures(comparison: Comparison, letters: dict[str, str]) -> list[str]:
    lines = []
    for row in comparison.tables["failures"].to_dict("records"):
        for outcome, words in [("missed", "missed in"), ("false", "predicted where there is none in")]:
            if row[outcome]:
                lines.append(
                    f"{row['class']}: {words} {row[outcome]} of {row['n_cases']} cases by "
                    f"{letters[row['method']]} ({row['method']})."
                )
    return lines or ["No class was missed, or predicted where there is none."]
