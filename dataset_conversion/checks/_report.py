"""The report: on the terminal a table of the dataset and the findings by severity; in a file all of it as JSON."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samnn import __version__
from samnn.atomic import write_json

from ._check import Report
from ._facts import Data
from ._finding import Finding, Severity

MOST_SHOWN = 20  # of one check and severity
STYLES = {Severity.error: "bold red", Severity.warning: "bold yellow"}


def print_report(report: Report, console: Console, *, dry_run: bool = False) -> None:
    """Print the dataset, what was or would be mended, and the findings that are left, errors first."""
    summary = summarise(report.data)
    lines = [
        f"{_shown(report.data.dataset.folder)}: {summary['n_training']} training and {summary['n_test']} test cases"
    ]
    for what, unit in (("size", "voxels"), ("spacing", "mm")):
        if axes := summary[what]:
            spans = (f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}" for low, high in axes)
            lines.append(f"{what}: {' × '.join(spans)} {unit}")
    console.print(Text("\n".join(lines)), soft_wrap=True)
    if summary["classes"]:
        console.print(_table(summary))
    mended = report.mendable if dry_run else report.fixed
    if mended:
        console.print(Text("Would be mended:" if dry_run else "Mended:", style="bold green"))
        _print_entries([(name, f"{finding.path}: {finding.fix.words}") for name, finding in mended], console)
    for problem in report.not_fixed:
        console.print(Text(_shown(f"Could not be mended: {problem}"), style="bold red"), soft_wrap=True)
    for severity in Severity:
        found = [(name, str(finding)) for name, finding in report.findings if finding.severity is severity]
        if found:
            console.print(Text(f"{_number(len(found), severity.value)}:", style=STYLES[severity]))
            _print_entries(found, console)
    if not report.findings:
        console.print(
            Text("Nothing is wrong." if not report.fixed else "Nothing else is wrong.", style="bold green")
        )
    elif report.mendable and not dry_run:
        console.print(Text(f"--fix mends {len(report.mendable)} of them without loss."), soft_wrap=True)


def write_report(report: Report, path: Path) -> None:
    """Write everything as JSON, whole or not at all."""
    content = {
        "samnn_version": __version__,
        "folder": _shown(report.data.dataset.folder),
        **summarise(report.data),
        "findings": [_entry(*entry, fixed=False) for entry in report.findings]
        + [_entry(*entry, fixed=True) for entry in report.fixed],
        "not_fixed": [_shown(problem) for problem in report.not_fixed],
    }
    write_json(path, content)


def summarise(data: Data) -> dict[str, Any]:
    """Number of cases, ranges of size and spacing by axis, and by class its cases and volumes."""
    grids = [facts.image.grid for facts in data.cases if facts.image]
    grids = [grid for grid in grids if grid.n_dims == max(other.n_dims for other in grids)]
    labelled = list(data.with_labels())
    classes = {}
    for name, values in data.classes.items():
        volumes = [
            sum(facts.labels.volume(value) for value in values if value in facts.regions)
            for facts in labelled
            if facts.regions.keys() & values
        ]
        classes[name] = {
            "values": list(values),
            "n_cases": len(volumes),
            "volume_median": float(np.median(volumes)) if volumes else None,
            "volume_range": [min(volumes), max(volumes)] if volumes else None,
        }
    return {
        "n_training": len(data.dataset.training),
        "n_test": len(data.dataset.cases) - len(data.dataset.training),
        "n_labelled": len(labelled),
        "size": _ranges([grid.shape for grid in grids]),
        "spacing": _ranges([grid.spacing_mm for grid in grids]),
        "volume_unit": "mm²" if grids and grids[0].n_dims == 2 else "ml",
        "classes": classes,
    }


def _ranges(rows: list[tuple[float, ...]]) -> list[tuple[float, float]]:
    return [(min(column), max(column)) for column in zip(*rows, strict=True)]


def _entry(name: str, finding: Finding, *, fixed: bool) -> dict[str, Any]:
    return {
        "severity": finding.severity.value,
        "check": name,
        "path": _shown(finding.path),
        "wrong": _shown(finding.wrong),
        "cure": _shown(finding.cure),
        "fix": _shown(finding.fix.words) if finding.fix else None,
        "fixed": fixed,
    }


def _table(summary: dict[str, Any]) -> Table:
    unit = summary["volume_unit"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("class", "label maps with it", f"median {unit}", f"range {unit}"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, entry in summary["classes"].items():
        median, span = entry["volume_median"], entry["volume_range"]
        table.add_row(
            Text(_shown(name)),
            f"{entry['n_cases']} of {summary['n_labelled']}",
            "–" if median is None else f"{median:.3g}",
            "–" if span is None else f"{span[0]:.3g} to {span[1]:.3g}",
        )
    return table


def _print_entries(entries: list[tuple[str, str]], console: Console) -> None:
    for name, group in groupby(sorted(entries, key=lambda entry: entry[0]), key=lambda entry: entry[0]):
        found = [words for _, words in group]
        console.print(Text(f"  {name}", style="bold"))
        for words in found[:MOST_SHOWN]:
            console.print(Text(f"  - {_shown(words)}"), soft_wrap=True)
        if len(found) > MOST_SHOWN:
            console.print(Text(f"    and {len(found) - MOST_SHOWN} more (-o FILE lists all)"))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _shown(text: object) -> str:
    """A path or message with whatever cannot be printed, bytes that are no UTF-8 among them, as codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
