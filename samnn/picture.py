"""Reference beside prediction, slice by slice, as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from samnn.atomic import whole_file
from samnn.io import read_labels, read_volume
from samnn.labels import LabelSet

COLOURS = ["gold", "red", "deepskyblue", "magenta", "lime", "orange", "white", "brown"]
PATIENTS, LEVELS = 2, (0.3, 0.55, 0.8)  # so many rows, and slices at these heights of what is labelled


def draw(
    images: Path, reference: Path, prediction: Path, metrics: Path, dataset: Path, picture: Path
) -> None:
    """Draw slices of the first patients, the reference outlined on the left and the prediction on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    classes = {name: values[0] for name, values in LabelSet.from_dataset_json(dataset).classes.items()}
    dice = _dice(metrics)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in prediction.glob("*.nii.gz"))[:PATIENTS]
    figure, axes = pyplot.subplots(
        len(cases), 2 * len(LEVELS), figsize=(4 * len(LEVELS) * 2, 3.6 * len(cases) + 0.8), squeeze=False
    )
    for row, case in zip(axes, cases, strict=True):
        image = read_volume(images / f"{case}_0000.nii.gz")
        maps = [read_labels(folder / f"{case}.nii.gz").voxels for folder in (reference, prediction)]
        labelled = np.flatnonzero(maps[0].any(axis=(0, 1)))
        flips = tuple(slice(None, None, -1 if image.grid.direction[4 * axis] < 0 else 1) for axis in (0, 1))
        for number, level in enumerate(LEVELS):
            z = labelled[int(level * (len(labelled) - 1))]
            for side, (name, labels) in enumerate(zip(("reference", "prediction"), maps, strict=True)):
                panel = row[2 * number + side]
                aspect = image.grid.spacing_mm[1] / image.grid.spacing_mm[0]
                panel.imshow(image.voxels[:, :, z][flips].T, cmap="gray", vmin=-400, vmax=400, aspect=aspect)
                for colour, value in zip(COLOURS, classes.values(), strict=False):
                    if (labels[:, :, z] == value).any():
                        panel.contour(
                            (labels[:, :, z][flips] == value).T, [0.5], colors=colour, linewidths=1.5
                        )
                panel.set_title(f"{name}, slice {z}", fontsize=9)
                panel.axis("off")
        text = ", ".join(f"{name} {dice.get((case, name), float('nan')):.2f}" for name in classes)
        row[0].text(0, -0.06, f"{case}: Dice {text}", transform=row[0].transAxes, fontsize=11, va="top")
    handles = [Line2D([], [], color=c, label=name) for c, name in zip(COLOURS, classes, strict=False)]
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), facecolor="0.3", labelcolor="white"
    )
    with whole_file(picture) as part:
        figure.savefig(part, dpi=80, bbox_inches="tight")
    pyplot.close(figure)


def _dice(metrics: Path) -> dict[tuple[str, str], float]:
    """(case, class) → Dice, from the table of `samnn evaluate`."""
    with open(metrics, newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["metric"] == "dice" and row["value"]]
    return {(row["case"], row["class"]): float(row["value"]) for row in rows}
