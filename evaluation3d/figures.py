"""The figures of the report, as SVG: values of every case, paired differences, how often each rank is reached, reliability."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from .comparison import Comparison
from .display import letters_of
from .ranking import SCHEMES

# Okabe and Ito's colours, which colour-blind readers can tell apart; and a marker each, for print in grey.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
COLUMNS = 3
FONT = {"font.size": 9, "svg.hashsalt": "samnn", "axes.spines.top": False, "axes.spines.right": False}


def values_figure(comparison: Comparison, metric: str) -> str:
    """A panel a class: a dot a case, grey lines between dots of the same case, boxes of the quartiles."""
    figure, panels = _panels(len(comparison.classes), height=2.9)
    letters = list(letters_of(comparison).values())
    for panel, name in zip(panels, comparison.classes, strict=True):
        values = [comparison.values(metric, name, [method])[0][0] for method in comparison.methods]
        places = range(1, len(values) + 1)
        beside = 0.15 * np.linspace(-1, 1, len(comparison.cases)) * (len(comparison.cases) > 1)
        for offset, case in zip(beside, np.transpose(values), strict=True):
            panel.plot(np.add(places, offset), case, color="0.75", linewidth=0.6, zorder=1)
        for place, column in zip(places, values, strict=True):
            colour, marker = _look(place - 1)
            panel.scatter(
                place + beside, column, s=13, color=colour, marker=marker, alpha=0.75, linewidths=0, zorder=2
            )
            if len(defined := column[~np.isnan(column)]):
                panel.boxplot(
                    [defined], positions=[place], widths=0.5, showfliers=False, showcaps=False, zorder=3,
                    medianprops={"color": "black", "linewidth": 1.5}, boxprops={"color": "0.25"},
                )  # fmt: skip
        counts = [int((~np.isnan(column)).sum()) for column in values]
        panel.set_xticks(
            list(places), [f"{letter}\nn = {n}" for letter, n in zip(letters, counts, strict=True)]
        )
        panel.set_xlim(0.4, len(values) + 0.6)
        panel.set_title(name)
        panel.set_ylabel(_axis(comparison, metric))
    return _svg(figure)


def differences_figure(comparison: Comparison, metric: str) -> str:
    """A row a class and pair: the difference of every case, their mean and its interval."""
    letters = letters_of(comparison)
    rows = comparison.tables["pairs"]
    rows = rows[rows["metric"] == metric].to_dict("records")
    by_name = {method.name: method for method in comparison.methods}
    figure, (panel,) = _panels(1, height=0.9 + 0.3 * len(rows), width=8)
    for place, row in enumerate(reversed(rows)):
        pair = [by_name[row["method_a"]], by_name[row["method_b"]]]
        values, _ = comparison.values(metric, row["class"], pair)
        panel.scatter(
            values[0] - values[1],
            np.full(len(comparison.cases), place + 0.18),
            s=9,
            color="0.6",
            linewidths=0,
        )
        panel.plot([row["ci_low"], row["ci_high"]], [place, place], color=COLOURS[0], linewidth=2.5)
        panel.plot(row["mean_difference"], place, "D", color="black", markersize=4.5)
    panel.axvline(0, color="black", linewidth=0.8)
    names = [
        f"{row['class']}:  {letters[row['method_a']]} − {letters[row['method_b']]}" for row in reversed(rows)
    ]
    panel.set_yticks(range(len(rows)), names)
    panel.set_ylim(-0.6, len(rows) - 0.4)
    better = comparison.definition(metric)["better"]
    side = "right of 0: the first is better" if better == "higher" else "left of 0: the first is better"
    panel.set_xlabel(f"{_axis(comparison, metric)}, difference ({side})")
    return _svg(figure)


def ranks_figure(comparison: Comparison, metric: str) -> str | None:
    """A panel a class: for each scheme and method the share of bootstrap samples on each rank."""
    from matplotlib import colormaps

    table = comparison.tables["ranking"]
    table = table[table["metric"] == metric]
    if table.empty:
        return None
    classes = list(dict.fromkeys(table["class"]))
    letters = letters_of(comparison)
    n = len(letters)
    shades = [colormaps["cividis"](1 - r / max(1, n - 1)) for r in range(n)]
    figure, panels = _panels(len(classes), height=0.9 + 0.22 * (n + 1) * len(SCHEMES))
    for panel, name in zip(panels, classes, strict=True):
        ticks = {}
        for s, scheme in enumerate(SCHEMES):
            for m, (method, letter) in enumerate(letters.items()):
                row = table[
                    (table["class"] == name) & (table["scheme"] == scheme) & (table["method"] == method)
                ].iloc[0]
                place, left = -(s * (n + 1.2) + m), 0.0
                ticks[place] = f"{scheme}: {letter}" if m == 0 else letter
                for rank in range(n):
                    share = row[f"rank_{rank + 1}"]
                    panel.barh(place, share, left=left, color=shades[rank], edgecolor="white", height=0.85)
                    if share >= 0.15:
                        dark = sum(shades[rank][:3]) < 1.5
                        panel.text(
                            left + share / 2, place, str(rank + 1), ha="center", va="center", fontsize=7,
                            color="white" if dark else "black",
                        )  # fmt: skip
                    left += share
        panel.set_yticks(list(ticks), list(ticks.values()))
        panel.set_xlim(0, 1)
        panel.set_xlabel("share of samples; number: rank")
        panel.set_title(name)
    return _svg(figure)


def reliability_figure(comparison: Comparison) -> str:
    """A panel a class, how often a predicted probability came true, and below it how many voxels had which."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    classes = comparison.methods[0].classes
    columns = min(COLUMNS, len(classes))
    rows = math.ceil(len(classes) / columns)
    with rc_context(FONT):
        figure = Figure(figsize=(max(3.4, 3.1 * columns), 4.4 * rows + 0.3), layout="constrained")
        panels = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    for place in range(rows * columns):
        above, below = panels[2 * (place // columns) : 2 * (place // columns) + 2, place % columns]
        if place < len(classes):
            _draw_reliability(comparison, classes[place], above, below)
        else:
            above.remove()
            below.remove()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=8, frameon=False)
    return _svg(figure)


def _draw_reliability(comparison: Comparison, name: str, above: Any, below: Any) -> None:
    above.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for i, (method, letter) in enumerate(
        zip(comparison.methods, letters_of(comparison).values(), strict=True)
    ):
        found = method.confidence.classes.get(name)
        if found is None:
            continue
        bins = found["reliability"]
        colour, marker = _look(i)
        p, y = (np.array(bins[key], float) for key in ("mean_probability", "observed_fraction"))
        above.plot(p, y, color=colour, marker=marker, markersize=4.5, linewidth=1, label=letter)
        below.stairs(np.maximum(bins["n"], 0.5), bins["edges"], baseline=0.5, color=colour, linewidth=1.3)
    above.set(title=name, ylabel="observed fraction", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    below.set(xlabel="predicted probability", ylabel="voxels", xlim=(-0.02, 1.02), yscale="log")


def _panels(n: int, *, height: float, width: float | None = None):  # noqa: ANN202 (matplotlib is imported late)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(n, COLUMNS)
    rows = math.ceil(n / columns)
    with rc_context(FONT):
        figure = Figure(figsize=(width or 3.4 * columns, height * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in panels[n:]:
        empty.remove()
    return figure, panels[:n]


def _svg(figure) -> str:  # noqa: ANN001
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(FONT):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _axis(comparison: Comparison, metric: str) -> str:
    definition = comparison.definition(metric)
    return metric if definition["unit"] == "fraction" else f"{metric} ({definition['unit']})"


def _look(method: int) -> tuple[str, str]:
    """A colour and a marker; 49 methods have different pairs of them."""
    n = len(COLOURS)
    return COLOURS[method % n], MARKERS[(method + method // n) % n]
