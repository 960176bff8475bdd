"""Comparison: several methods on the same cases, and every table that is computed from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from .costs import costs_of
from .methods import Method
from .paired import CONFIDENCE, RESAMPLES, SEED, compare_paired, holm
from .ranking import ALPHA, BOOTSTRAPS, rank_methods
from .terminal import MACRO

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods with the same cases against the same reference, the metrics that were asked, and the cases' patients."""

    methods: list[Method]
    metrics: tuple[str, ...]
    group: str | None
    groups: np.ndarray | None  # the patient of each case, in the order of `cases`

    @cached_property
    def key(self) -> str:
        """A hash of all that the output depends on: values, names, costs, and what was asked."""
        keys = [(method.key, method.confidence.key) for method in self.methods]
        asked = [self.metrics, self.group, keys, self._methods()]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    @property
    def cases(self) -> list[str]:
        return sorted(self.methods[0].case_names)

    @property
    def classes(self) -> list[str]:
        """The classes, and their mean where there are several."""
        found = self.methods[0].classes
        return [*found, MACRO] if len(found) > 1 else found

    def definition(self, metric: str) -> dict[str, Any]:
        """What the evaluation says of a metric; a signed one that is best at zero is compared by its size."""
        declared = self.methods[0].summary["definitions"][metric]
        if declared["better"] != "zero":
            return declared
        return declared | {"better": "lower", "formula": f"abs({declared['formula']})"}

    def values(self, metric: str, class_name: str, methods: Sequence[Method]) -> tuple[np.ndarray, int]:
        """Values of (methods, cases), NaN where undefined; and how many (case, class) values are left out.

        A value is left out where one of `methods` has none. In the mean of classes, a case counts with the classes
        in which all of `methods` have a value, so that every method is averaged over the same classes.
        """
        here = [self.methods.index(method) for method in methods]
        cube = self._cubes[metric][here]
        if class_name != MACRO:
            place = self.methods[0].classes.index(class_name)
            cube = cube[:, :, place : place + 1]
        defined = ~np.isnan(cube).any(0)
        counts = defined.sum(1)
        sums = np.where(defined, cube, 0).sum(2)
        values = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
        return values, int((~defined).sum())

    @cached_property
    def _cubes(self) -> dict[str, np.ndarray]:
        """Metric → (methods, cases, classes)."""
        places = (self.cases, self.methods[0].classes)
        signed = {
            metric: np.stack([method.values[metric].loc[places].to_numpy(float) for method in self.methods])
            for metric in self.metrics
        }
        declared = self.methods[0].summary["definitions"]
        return {
            metric: np.abs(cube) if declared[metric]["better"] == "zero" else cube
            for metric, cube in signed.items()
        }

    @cached_property
    def tables(self) -> dict[str, pandas.DataFrame]:
        """Every table of the output by its name."""
        import pandas

        tables = {
            "methods": self._methods(),
            "description": self._description(),
            "failures": self._failures(),
            "pairs": self._pairs(),
            "ranking": self._ranking(),
            "calibration": self._calibration(),
            "reliability": self._reliability(),
            "values": self._values(),
        }
        return {name: pandas.DataFrame(rows) for name, rows in tables.items() if rows}

    def _methods(self) -> list[dict]:
        return [
            {
                "method": method.name,
                "source": str(method.source),
                "folds": " ".join(v.parent.name for v in method.results.validations)
                if method.results
                else None,
                **costs_of(method.results),
            }
            for method in self.methods
        ]

    def _values(self) -> list[dict]:
        return [
            {"metric": metric, "class": name, "case": case, "method": method.name, "value": value}
            for metric in self.metrics
            for name in self.classes
            for method in self.methods
            for case, value in zip(self.cases, self.values(metric, name, [method])[0][0], strict=True)
        ]

    def _description(self) -> list[dict]:
        return [
            {
                "metric": metric,
                "class": name,
                "method": method.name,
                "unit": self.definition(metric)["unit"],
                **_describe(
                    *self.values(metric, name, [method]), self.cases, self.definition(metric)["better"]
                ),
            }
            for metric in self.metrics
            for name in self.classes
            for method in self.methods
        ]

    def _failures(self) -> list[dict]:
        rows = []
        for name in self.methods[0].classes:
            for method in self.methods:
                entry = method.summary["classes"][name]
                rows.append(
                    {
                        "class": name,
                        "method": method.name,
                        "n_cases": len(self.cases),
                        **{outcome: len(entry[outcome]) for outcome in ("missed", "false", "absent")},
                        "missed_cases": " ".join(entry["missed"]),
                        "false_cases": " ".join(entry["false"]),
                    }
                )
        return rows

    def _pairs(self) -> list[dict]:
        rows = [
            self._pair(metric, name, first, second)
            for metric in self.metrics
            for name in self.classes
            for first, second in combinations(self.methods, 2)
        ]
        for test in ("wilcoxon_p", "permutation_p"):
            adjusted = holm(np.array([row[test] for row in rows]))
            for row, value in zip(rows, adjusted, strict=True):
                row[f"{test}_holm"] = value
        return rows

    def _pair(self, metric: str, name: str, first: Method, second: Method) -> dict:
        definition = self.definition(metric)
        values, n_left_out = self.values(metric, name, [first, second])
        found = compare_paired(*values, groups=self.groups)
        wins = [found.first_larger, found.second_larger]
        towards = found.mean_difference
        if definition["better"] == "lower":
            wins, towards = wins[::-1], -towards
        return {
            "metric": metric,
            "class": name,
            "method_a": first.name,
            "method_b": second.name,
            "unit": definition["unit"],
            "n": found.n,
            "n_left_out": n_left_out,
            "n_groups": found.n_groups,
            "mean_difference": found.mean_difference,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "better_on_average": first.name if towards > 0 else second.name if towards < 0 else None,
            "wins_a": wins[0],
            "ties": found.equal,
            "wins_b": wins[1],
            "win_rate_a": (wins[0] + found.equal / 2) / found.n if found.n else np.nan,
            "wilcoxon_p": found.wilcoxon_p,
            "wilcoxon_p_holm": np.nan,
            "permutation_p": found.permutation_p,
            "permutation_p_holm": np.nan,
            "n_sign_changes": found.n_sign_changes,
            "note": found.note,
        }

    def _ranking(self) -> list[dict]:
        rows = []
        if len(self.methods) < 2:
            return rows
        for metric in self.metrics:
            for name in self.classes:
                values, n_left_out = self.values(metric, name, self.methods)
                defined = ~np.isnan(values).any(0)
                if not defined.any():
                    continue
                groups = None if self.groups is None else self.groups[defined]
                better = self.definition(metric)["better"]
                for scheme, ranking in rank_methods(values[:, defined], better=better, groups=groups).items():
                    tau = ranking.tau[~np.isnan(ranking.tau)]
                    quartiles = np.quantile(tau, [0.25, 0.75]) if len(tau) else [np.nan, np.nan]
                    rows += [
                        {
                            "metric": metric,
                            "class": name,
                            "scheme": scheme,
                            "method": method.name,
                            "n": int(defined.sum()),
                            "n_left_out": n_left_out,
                            "score": ranking.scores[m],
                            "rank": int(ranking.ranks[m]),
                            **{f"rank_{r + 1}": share for r, share in enumerate(ranking.frequencies[m])},
                            "tau_mean": tau.mean() if len(tau) else np.nan,
                            "tau_q1": quartiles[0],
                            "tau_q3": quartiles[1],
                            "n_tau": len(tau),
                        }
                        for m, method in enumerate(self.methods)
                    ]
        return rows

    def _calibration(self) -> list[dict]:
        return [
            {
                "class": name,
                "method": method.name,
                "n_cases": len(self.cases),
                "n_voxels": sum(found["reliability"]["n"]),
                **{key: value for key, value in found.items() if key != "reliability"},
            }
            for name in self.methods[0].classes
            for method in self.methods
            if (found := method.confidence.classes.get(name))
        ]

    def _reliability(self) -> list[dict]:
        """A row a bin; n counts voxels."""
        names = ("low", "high", "n", "mean_probability", "observed_fraction")
        return [
            {"class": name, "method": method.name, **dict(zip(names, bin_, strict=True))}
            for name in self.methods[0].classes
            for method in self.methods
            if (found := method.confidence.classes.get(name))
            for edges in [found["reliability"]["edges"]]
            for bin_ in zip(
                edges[:-1], edges[1:], *(found["reliability"][key] for key in names[2:]), strict=True
            )
        ]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was asked and how it was computed."""
        first = self.methods[0].summary
        return {
            "reference": first["reference"],
            "tolerance_mm": first["tolerance_mm"],
            "ignore_label": first["ignore_label"],
            "n_cases": len(self.cases),
            "cases": self.cases,
            "classes": self.methods[0].classes,
            "metrics": list(self.metrics),
            "group": self.group,
            "n_groups": len(np.unique(self.groups)) if self.groups is not None else None,
            "family": self._family(),
            "confidence": CONFIDENCE,
            "bootstrap_resamples": RESAMPLES,
            "sign_changes_at_most": RESAMPLES,
            "ranking_bootstraps": BOOTSTRAPS,
            "ranking_test_alpha": ALPHA,
            "seed": SEED,
        }

    def _family(self) -> str | None:
        """Say over which tests Holm's correction goes."""
        pairs = self.tables.get("pairs")
        if pairs is None:
            return None
        n_pairs, n_untested = len(list(combinations(self.methods, 2))), int(pairs["wilcoxon_p"].isna().sum())
        return (
            f"{len(self.metrics)} metrics × {len(self.classes)} classes"
            + (f" ('{MACRO}' is one)" if MACRO in self.classes else "")
            + f" × {n_pairs} pairs of methods = {len(pairs)} comparisons"
            + (f", less {n_untested} without any pair of values" if n_untested else "")
            + ". Wilcoxon and permutation p are corrected each for itself."
        )


def _describe(values: np.ndarray, n_left_out: int, cases: list[str], better: str) -> dict[str, Any]:
    """Statistics over the cases of one method; quartiles interpolate linearly between cases."""
    defined = values[0][~np.isnan(values[0])]
    row: dict[str, Any] = {"n": len(defined), "n_undefined": n_left_out}
    if not len(defined):
        return row
    q1, median, q3 = np.quantile(defined, [0.25, 0.5, 0.75])
    worst = int(np.nanargmin(values[0]) if better == "higher" else np.nanargmax(values[0]))
    return row | {
        "mean": defined.mean(),
        "sd": defined.std(ddof=1) if len(defined) > 1 else np.nan,
        "median": median,
        "q1": q1,
        "q3": q3,
        "iqr": q3 - q1,
        "worst": values[0][worst],
        "worst_case": cases[worst],
    }
