"""The reliability plot: a panel a class, how often a predicted probability came true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samnn.atomic import whole_file

NAME = "reliability.png"
MARK = {"Software": "samnn evaluate"}  # in the file, by which it is known to be ours
COLUMNS = 4


def is_our_plot(path: Path) -> bool:
    """Whether a PNG was drawn here; by its first bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return MARK["Software"].encode() in file.read(400)


def draw_reliability(classes: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Draw each class of a summary that has a "reliability": its bins over all cases, on the diagonal if calibrated.

    Grey bars show on a logarithmic scale how many voxels a bin holds.
    """
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(classes))
    rows = math.ceil(len(classes) / columns)
    figure = Figure(figsize=(3.4 * columns, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(classes) :]:
        panel.axis("off")
    for panel, (name, entry) in zip(panels, classes.items(), strict=False):
        _draw(panel, name, entry)
    figure.supxlabel("grey: how many voxels a bin holds, on a logarithmic scale", fontsize=8, color="0.4")
    with whole_file(target) as part:
        figure.savefig(part, format="png", dpi=100, metadata=MARK)


def _draw(panel: Any, name: str, entry: Mapping[str, Any]) -> None:
    bins = entry["reliability"]
    n, edges = np.array(bins["n"]), np.array(bins["edges"])
    filled = n > 0
    height = np.log1p(n) / np.log1p(max(n.max(), 1))
    panel.bar(edges[:-1], height, np.diff(edges), align="edge", color="0.9")
    panel.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--")
    p, y = (np.array(bins[key], float)[filled] for key in ("mean_probability", "observed_fraction"))
    panel.plot(p, y, marker="o", markersize=4, color="tab:blue")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_aspect("equal")
    ece = entry["metrics"]["ece"]["mean"]
    panel.set_title(
        f"{name}\nECE {'undefined' if ece is None else f'{ece:.2g}'}", fontsize=9, parse_math=False
    )
    panel.set_xlabel("predicted probability", fontsize=8)
    panel.set_ylabel("observed fraction", fontsize=8)
    panel.tick_params(labelsize=7)
