"""The report of a conversion: what was converted, changed, refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from samnn.errors import SamnnError

from ._label_names import LabelNames
from ._splits import Splits
from ._writing import Plan

MOST_ROWS_WITHOUT_NOTES = 20


def print_report(
    plans: Sequence[Plan],
    entries: Mapping[str, Any],
    names: LabelNames,
    splits: Splits | None,
    refused: Mapping[str, Sequence[str]],
    remarks: Sequence[str],
) -> None:
    """Print a row a case, and below it what holds for the whole dataset; the last of `remarks` is the outcome.

    Raises:
        SamnnError: nobody takes the output.
    """
    table = Table(Column("case", no_wrap=True), "image", "mask", "labels", "notes")
    quiet = 0
    for plan in plans:
        if plan.name in refused:
            continue
        entry = entries.get(plan.name)
        image, mask = _actions(entry or plan.to_do(names))
        changes = entry["changes"] if entry else plan.changes
        renamed = [] if plan.name == plan.called else [f"was {plan.called!r}"]
        notes = [*renamed, *changes, *(f"ignored: {what}" for what in plan.ignored)]
        if not notes:
            quiet += 1
            if quiet > MOST_ROWS_WITHOUT_NOTES:
                continue
        new = sorted(names.new_values.get(value, value) for value in plan.values - {0})
        text = Text("; ".join(notes), style="yellow" if changes else "")
        table.add_row(Text(plan.name), Text(image), Text(mask), ", ".join(map(str, new)), text)
    if quiet > MOST_ROWS_WITHOUT_NOTES:
        table.add_row("…", "", "", "", f"{quiet - MOST_ROWS_WITHOUT_NOTES} more cases without notes")
    for name, problems in sorted(refused.items()):
        table.add_row(Text(name), Text("refused", style="red"), "", "", Text("\n".join(problems)))
    try:
        console = Console()
        console.print(table)
        for line in [*_remarks(plans, names, splits, refused), *remarks]:
            console.print(Text(line), soft_wrap=True)
    except (OSError, UnicodeError) as error:
        raise SamnnError(f"{remarks[-1]}, but the table cannot be printed ({error}).") from error


def _actions(entry: Mapping[str, Any]) -> tuple[str, str]:
    """What was, or will be, done with the images and the mask, in words."""

    def words(how: str, because: str) -> str:
        return f"{how}: {because}" if because else how

    images = [words(image["how"], image["because"]) for image in entry["images"]]
    counted = Counter(images)
    image = ", ".join(f"{count} x {what}" if len(images) > 1 else what for what, count in counted.items())
    if "mask" not in entry:
        return image, "none: test case"
    return image, words(entry["mask"]["how"], ", ".join(entry["mask"]["because"]))


def _remarks(
    plans: Sequence[Plan],
    names: LabelNames,
    splits: Splits | None,
    refused: Mapping[str, Sequence[str]],
) -> list[str]:
    """What holds for the dataset as a whole."""
    remarks = []
    if names.changed:
        listed = ", ".join(f"{old} -> {new}" for old, new in names.changed.items())
        remarks.append(f"Values renumbered without gaps: {listed}")
    found = {value for plan in plans for value in plan.values}
    if absent := [name for name, value in names.values.items() if value not in found]:
        remarks.append(f"In no mask: {', '.join(absent)}")
    if splits is not None:
        fewer = "" if len(splits) == 5 else ". Do not train further folds: nnU-Net would split them at random"
        what = (
            "1 fold, the set's own lists"
            if len(splits) == 1
            else f"{len(splits)} folds, patients kept together"
        )
        remarks.append(f"{what}{fewer}")
    if refused:
        remarks.append(f"Refused: {len(refused)} case(s)")
    return remarks
