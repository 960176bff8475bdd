"""The report of a conversion of pairs: what was converted, changed, refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from samnn.errors import SamnnError

from ._label_names import LabelNames
from ._pair_work import Plan
from ._splits import Splits

MOST_UNCHANGED_ROWS = 20  # of cases of which there is nothing to say


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
        image, mask = _actions(plan, entry, names)
        changes = entry["changes"] if entry else plan.changes
        renamed = [] if plan.name == plan.pair.called else [f"was {plan.pair.called!r}"]
        notes = [*renamed, *changes, *(f"ignored: {what}" for what in plan.ignored)]
        if not notes and {image, mask} <= {"copied", "linked", "to copy", "none: test case"}:
            quiet += 1
            if quiet > MOST_UNCHANGED_ROWS:
                continue
        new = sorted(names.new_values.get(value, value) for value in plan.values - {0})
        text = Text("; ".join(notes), style="yellow" if changes else "")
        table.add_row(Text(plan.name), Text(image), Text(mask), ", ".join(map(str, new)), text)
    if quiet > MOST_UNCHANGED_ROWS:
        table.add_row("…", "", "", "", f"{quiet - MOST_UNCHANGED_ROWS} more cases that fit as they are")
    for name, problems in sorted(refused.items()):
        table.add_row(Text(name), Text("refused", style="red"), "", "", Text("\n".join(problems)))
    try:
        console = Console()
        console.print(table)
        for line in [*_remarks(plans, names, splits, refused), *remarks]:
            console.print(Text(line), soft_wrap=True)
    except (OSError, UnicodeError) as error:
        raise SamnnError(f"{remarks[-1]}, but the table cannot be printed ({error}).") from error


def _actions(plan: Plan, entry: Mapping[str, Any] | None, names: LabelNames) -> tuple[str, str]:
    """What was done, or without an entry will be done, with the images and the mask."""

    def words(how: str, because: str) -> str:
        return f"{how}: {because}" if because else how

    if entry is None:
        images = [words("to convert" if c.rewritten else "to copy", c.rewritten) for c in plan.channels]
        because = [*plan.mask_rewritten, *(["renumbered"] if plan.values & names.changed.keys() else [])]
        mask = words("to convert" if because else "to copy", ", ".join(because))
    else:
        images = [words(image["how"], image["because"]) for image in entry["images"]]
        mask = words(entry["mask"]["how"], ", ".join(entry["mask"]["because"])) if "mask" in entry else ""
    counted = Counter(images)
    image = ", ".join(f"{count} x {what}" if len(images) > 1 else what for what, count in counted.items())
    return image, mask if plan.pair.mask is not None else "none: test case"


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
        remarks.append(f"{len(splits)} folds that keep patients together{fewer}")
    if refused:
        remarks.append(f"Refused: {len(refused)} case(s)")
    return remarks
