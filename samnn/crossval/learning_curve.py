"""The learning curve: mean Dice of each method against the number of training patients, with bootstrap intervals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from samnn.atomic import whole_file
from samnn.crossval.lowdata import LowData, patient_of
from samnn.crossval.prepare import read_splits
from samnn.evaluation3d.paired import bca_interval, group_sums
from samnn.evaluation3d.written import read_evaluation

METRIC = "dice"


def write_curve(out: Path) -> None:
    """Write learning_curve.csv and learning_curve.png.

    A point is the mean over the validation cases of all folds of the case's mean Dice over its classes; its interval the
    BCa bootstrap interval over patients (Efron 1987). It says how much the mean depends on who was validated, and not
    on which patients were drawn for training: for that, repeat with other seeds.
    """
    import pandas

    curve = LowData.read(out)
    rows = []
    for size, part in zip(curve.sizes, curve.parts(), strict=True):
        splits = [read_splits(part)[fold] for fold in part.folds]
        n_cases = sum(len(split["train"]) for split in splits) / len(splits)
        n_patients = sum(len({patient_of(c, part.group) for c in split["train"]}) for split in splits) / len(
            splits
        )
        for method in part.methods:
            _, values = read_evaluation(part.out / "evaluation" / method.folder / "metrics.csv")
            per_case = values[METRIC].mean(axis=1).dropna()
            patients = np.array([patient_of(case, part.group) for case in per_case.index])
            sums, sizes = group_sums(per_case.to_numpy(), patients)
            low, high, note = bca_interval(sums, sizes)
            rows.append(
                {
                    "method": str(method),
                    "size": size,
                    "training_patients": n_patients,
                    "training_cases": n_cases,
                    "n": len(per_case),
                    f"mean_{METRIC}": per_case.mean(),
                    "ci_low": low,
                    "ci_high": high,
                    "note": note,
                }
            )
    table = pandas.DataFrame(rows)
    with whole_file(out / "learning_curve.csv") as part_file:
        table.to_csv(part_file, index=False)
    with whole_file(out / "learning_curve.png") as part_file:
        _draw(table, part_file)


def _draw(table: object, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for method, rows in table.sort_values("training_patients").groupby("method", sort=False):
        x, mean = rows["training_patients"].to_numpy(), rows[f"mean_{METRIC}"].to_numpy()
        below, above = mean - rows["ci_low"].to_numpy(), rows["ci_high"].to_numpy() - mean
        errors = [[0 if math.isnan(e) else max(e, 0) for e in side] for side in (below, above)]
        axes.errorbar(x, mean, yerr=errors, marker="o", capsize=3, label=method)
    axes.set_xscale("log")
    ticks = sorted(set(table["training_patients"]))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training patients", ylabel="mean Dice of validation cases, 95 % interval", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
