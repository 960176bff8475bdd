"""A metrics.csv of ours, read back: with the summary.json beside it, and only if the two agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samnn.errors import SamnnError
from samnn.labels import read_dataset_json

from .results import is_our_summary

if TYPE_CHECKING:
    import pandas

COLUMNS = ["case", "label", "class", "metric", "value", "unit"]
SUMMARY_KEYS = (
    "reference",
    "prediction",
    "tolerance_mm",
    "ignore_label",
    "cases",
    "missing",
    "classes",
    "definitions",
)


def read_evaluation(path: Path) -> tuple[dict[str, Any], dict[str, pandas.DataFrame]]:
    """Read a metrics.csv of `samnn evaluate` and the summary.json beside it: summary, and metric → cases × classes.

    Raises:
        SamnnError: one of the two is missing or not ours, or they do not agree with each other.
    """
    import pandas

    summary_path = path.with_name("summary.json")
    if not is_our_summary(summary_path):
        raise SamnnError(
            f"{path}: the summary.json of samnn evaluate does not lie beside it; it says the tolerance, the reference "
            "and the definitions. Put it there, or evaluate again."
        )
    summary = read_dataset_json(summary_path)
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        table = table[COLUMNS]
        table["value"] = table["value"].astype(float)
        missing = [key for key in SUMMARY_KEYS if key not in summary]
        if missing:
            raise KeyError(f"summary.json lacks {', '.join(missing)}")
        cases, classes, metrics = summary["cases"], list(summary["classes"]), list(summary["definitions"])
        values = {
            metric: rows.pivot(index="case", columns="class", values="value").loc[cases, classes]
            for metric, rows in table.groupby("metric")
        }
        unit = dict(zip(table["metric"], table["unit"], strict=True))
        differs = next((d for m in metrics for d in _differences(m, values[m], unit[m], summary)), None)
    except (ValueError, KeyError, TypeError, OSError, pandas.errors.ParserError) as error:
        raise SamnnError(
            f"{path}: is not the table that samnn evaluate wrote ({type(error).__name__}: {error}). Evaluate again."
        ) from error
    if differs:
        raise SamnnError(f"{path}: was changed after samnn evaluate wrote it: {differs}. Evaluate again.")
    return summary, values


def _differences(metric: str, values: pandas.DataFrame, unit: str, summary: dict[str, Any]) -> list[str]:
    """What does not agree between the table of one metric and the summary."""
    found = []
    if unit != summary["definitions"][metric]["unit"]:
        found.append(
            f"the unit of {metric} is {unit}, in summary.json {summary['definitions'][metric]['unit']}"
        )
    for name, entry in summary["classes"].items():
        said, column = entry["metrics"][metric], values[name].dropna()
        here = {
            "n": len(column),
            "mean": column.mean(),
            "std": column.std(),
            "min": column.min(),
            "max": column.max(),
        }
        for statistic, value in here.items():
            expected = math.nan if said[statistic] is None else said[statistic]
            both_undefined = math.isnan(value) and math.isnan(expected)
            if not both_undefined and not math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9):
                found.append(f"{statistic} of {metric}, {name}, is {value:g}, in summary.json {expected:g}")
    return found
