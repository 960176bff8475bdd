"""What a comparison leaves in its folder: tables as CSV, Markdown and LaTeX, comparison.json and report.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samnn import __version__
from samnn.atomic import whole_file, whole_folder, write_json
from samnn.errors import SamnnError

from .cautions import cautions_of
from .comparison import Comparison
from .display import display_tables
from .latex import latex_of
from .report import render_report
from .summary import check_target

if TYPE_CHECKING:
    import pandas


SIGNATURE = b"samnn compare"


def check_comparison_target(out: Path) -> None:
    """Refuse, before the long work, a folder that cannot be written or holds somebody else's files.

    Raises:
        SamnnError: the reason, and what to do.
    """
    check_target(out)
    if any(out.glob("fold_*")):
        raise SamnnError(f"{out}: is a results folder of nnU-Net. Choose another -o.")
    for name in ("metrics", "pictures", "tables"):
        if (out / name).exists() and not (out / name).is_dir():
            raise SamnnError(f"{out / name}: is a file where a folder is needed. Choose another -o.")
    signed = {
        "report.html": out / "report.html",
        "comparison.json": out / "comparison.json",
        "tables": out / "tables" / "tables.tex",
    }
    for name, path in signed.items():
        if (out / name).exists() and not _is_ours(path):
            raise SamnnError(f"{out / name}: exists and is not from samnn compare. Choose another -o.")


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write everything, unless an earlier comparison of the same files wrote just that; kept metrics and pictures stay.

    Raises:
        SamnnError: as `check_comparison_target`, or the disk is full.
    """
    check_comparison_target(out)
    if _is_written(comparison, out):
        return
    html = render_report(comparison, out / "pictures")
    shown = display_tables(comparison)
    with whole_folder(out / "tables", overwrite=True) as folder:
        for name, table in comparison.tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, na_rep="nan", encoding="utf-8")
        (folder / "tables.md").write_text(_markdown(shown), encoding="utf-8")
        (folder / "tables.tex").write_text(latex_of(shown), encoding="utf-8")
        with whole_file(out / "report.html") as page:
            page.write_text(html, encoding="utf-8")
    write_json(out / "comparison.json", _as_json(comparison))  # last: it says what the others are


def _is_written(comparison: Comparison, out: Path) -> bool:
    """Whether report and tables are those of this very comparison, which comparison.json, written last, says."""
    there = all((out / name).exists() for name in ("report.html", "tables", "comparison.json"))
    return there and comparison.key.encode() in _start(out / "comparison.json")


def _is_ours(path: Path) -> bool:
    """Whether a file has our signature among its first bytes."""
    return path.is_file() and SIGNATURE in _start(path)


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(400)


def _as_json(comparison: Comparison) -> dict[str, Any]:
    tables = {
        name: json.loads(table.to_json(orient="records", double_precision=15))
        for name, table in comparison.tables.items()
    }
    definitions = {metric: comparison.definition(metric) for metric in comparison.metrics}
    return {
        "written_by": SIGNATURE.decode(),
        "samnn_version": __version__,
        "key": comparison.key,
        "settings": comparison.settings,
        "cautions": cautions_of(comparison),
        "definitions": definitions,
        "tables": tables,
    }


def _markdown(tables: dict[str, pandas.DataFrame]) -> str:
    blocks = []
    for title, table in tables.items():
        lines = [list(table.columns), ["---"] * len(table.columns), *table.values.tolist()]
        rows = [
            "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |"
            for line in lines
        ]
        blocks.append("\n".join([f"## {title}", "", *rows]))
    return "\n\n".join(blocks) + "\n"
