"""The table on the terminal: a row a class, a column a metric, and below it what failed."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .surface import DEFINITIONS

NAMES_SHOWN = 8
MACRO = "mean of classes"
ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0"}


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the means and the failures of a `summary`; as many tables below each other as the width needs."""
    title = (
        f"Means over {summary['n_cases']} cases; surfaces: {DEFINITIONS[summary['surface']]}; "
        "fractions, except where a unit is given; – is undefined."
    )
    console.print(Text(title, style="bold"))
    for metrics in _that_fit(summary, console):
        console.print(_table(summary, metrics))
        console.print()
    console.print(Text("\n".join(_remarks(summary))), soft_wrap=True)
    failures = "\n".join(_failures(summary)) or "No class was missed, or predicted where there is none."
    console.print(Text(failures, style="bold"), soft_wrap=True)


def _remarks(summary: dict[str, Any]) -> list[str]:
    lines = [f"NSD tolerance: {summary['tolerance_mm']:g} mm."]
    if summary["ignore_label"] is not None:
        lines.append(
            f"Voxels with the value {summary['ignore_label']} (ignore) in the reference are left out."
        )
    if summary["labels"] is None:
        lines.append("No dataset.json was found: the classes are the values in the references.")
    if summary["from_probabilities"]:
        lines.append(
            "ECE, Brier score, NLL: each class against all others, over all voxels that are not ignored."
        )
    if summary["resampled"]:
        lines.append(
            f"{_some(list(summary['resampled']))}: the prediction was brought onto the grid of its reference (nearest "
            "voxel, background outside)."
        )
    return lines + [f"Note: {note}" for note in summary["notes"]]


def _failures(summary: dict[str, Any]) -> list[str]:
    """Name what is not in the means, or is in them with the value of a failure."""
    lines = []
    if summary["missing"]:
        lines.append(f"{_some(summary['missing'])}: no prediction, not evaluated.")
    for name, entry in summary["classes"].items():
        if entry["missed"]:
            lines.append(f"{name}: missed in {_some(entry['missed'])}; Dice 0 there, distances undefined.")
        if entry["false"]:
            lines.append(
                f"{name}: predicted where there is none in {_some(entry['false'])}; Dice 0 there, distances undefined."
            )
        if entry["absent"]:
            lines.append(f"{name}: in neither map of {_some(entry['absent'])}; undefined there.")
    return lines


def _some(cases: list[str]) -> str:
    names = ", ".join(cases[:NAMES_SHOWN]) + (", …" if len(cases) > NAMES_SHOWN else "")
    return f"{len(cases)} {'case' if len(cases) == 1 else 'cases'} ({names})"


def _table(summary: dict[str, Any], metrics: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("class")
    for metric in metrics:
        table.add_column(_heading(summary, metric), justify="right", no_wrap=True)
    for name, entry in summary["classes"].items():
        means = [entry["metrics"][metric]["mean"] for metric in metrics]
        table.add_row(Text(name), *map(_number, means, metrics, [summary] * len(metrics)))
    means = [summary["macro"][metric]["mean"] for metric in metrics]
    table.add_row(MACRO, *map(_number, means, metrics, [summary] * len(metrics)), style="bold")
    return table


def _heading(summary: dict[str, Any], metric: str) -> str:
    declared = summary["definitions"][metric]
    unit = "" if declared["unit"] == "fraction" else f"{declared['unit']} "
    words = metric.replace("_", "\n")
    return f"{words}\n{unit}{ARROWS[declared['better']]}"


def _number(value: float | None, metric: str, summary: dict[str, Any]) -> str:
    if value is None:
        return "–"
    declared = summary["definitions"][metric]
    if declared["needs"] == "probabilities":
        return f"{value:.4f}"  # small, as most voxels are surely background
    return f"{value:.3f}" if declared["unit"] == "fraction" else f"{value:.2f}"


def _that_fit(summary: dict[str, Any], console: Console) -> list[list[str]]:
    """Share the metrics out among tables no wider than the console."""
    unlimited = console.options.update_width(100_000)
    tables: list[list[str]] = [[]]
    for metric in summary["definitions"]:
        longer = [*tables[-1], metric]
        if (
            tables[-1]
            and Measurement.get(console, unlimited, _table(summary, longer)).maximum > console.width
        ):
            tables.append([metric])
        else:
            tables[-1] = longer
    return tables
