"""Compare methods case by case: the tables of `samnn compare`, and what can honestly be said with so many cases."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samnn.errors import Problems, SamnnError

from .costs import costs_of
from .methods import Method, load_methods
from .paired import CONFIDENCE, RESAMPLES, SEED, compare_paired, holm, least_p
from .ranking import ALPHA, BOOTSTRAPS, rank_methods
from .terminal import MACRO

if TYPE_CHECKING:
    import pandas

METRICS = ("dice", "nsd", "hausdorff95")
FEW = 10  # below so many patients a BCa interval is too narrow; measured in tests/evaluation/test_compare_errors.py


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
        asked = [self.metrics, self.group, [method.key for method in self.methods], self._methods()]
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
        return self.methods[0].summary["definitions"][metric]

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
        return {
            metric: np.stack([method.values[metric].loc[places].to_numpy(float) for method in self.methods])
            for metric in self.metrics
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

    @cached_property
    def cautions(self) -> list[str]:
        """What must be said beside these numbers, the gravest first."""
        lines = []
        pairs = self.tables.get("pairs")
        what = "cases" if self.groups is None else "patients"
        if pairs is not None:
            n, n_tests = int(pairs["n_groups"].max()), int(pairs["wilcoxon_p"].notna().sum())
            if least_p(n) >= ALPHA:
                lines.append(
                    f"{n} {what} cannot give a two-sided p below {least_p(n):.3g} in either test, however large the "
                    "difference: nothing here can be called significant."
                )
            elif least_p(n) * n_tests >= ALPHA:
                lines.append(
                    f"{n} {what} cannot give a p below {least_p(n):.3g}, and after Holm's correction over {n_tests} "
                    f"tests none below {least_p(n) * n_tests:.3g}: no corrected p here can be significant. Ask for "
                    "fewer metrics, or add cases."
                )
            if n < FEW:
                lines.append(
                    f"Bootstrap intervals of {n} {what} are too narrow: they hold the truth less often than 95 %."
                )
        folds = {v.parent.name for m in self.methods if m.results for v in m.results.validations}
        if len(folds) > 1:
            lines.append(
                f"The cases come from {len(folds)} folds. The models of two folds share most of their training cases, so "
                "the cases are not independent draws; tests and intervals treat them as if they were."
            )
        lines.append(
            "Each method is one training (per fold). How much a method changes from one training seed to the next is "
            "not in these numbers: intervals and p speak of these trained models on other cases."
        )
        if self.groups is None:
            lines.append(
                "Every case counts as a patient of its own. If patients have several cases, use --group REGEX."
            )
        unknown = [m.name for m in self.methods if m.results is None]
        if unknown:
            lines.append(
                f"Whether these were trained on the cases cannot be seen from the files: {', '.join(unknown)}."
            )
        if pairs is not None and (pairs["n_left_out"] > 0).any():
            worst = pairs.loc[pairs["n_left_out"].idxmax()]
            lines.append(
                "Values that one of two methods lacks are left out of their comparison and of the ranking: at most "
                f"{worst['n_left_out']} ({worst['metric']}, {worst['class']}). A missed organ has no distance, so "
                "distances flatter the method that misses it: read them together with the failures."
            )
        skipped = max(len(m.summary["missing"]) for m in self.methods)
        if skipped:
            lines.append(f"{skipped} references have no prediction and are not part of anything here.")
        return lines


def compare(
    sources: Sequence[Path],
    *,
    reference: Path | None = None,
    names: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    group: str | None = None,
    tolerance_mm: float = 1.0,
    labels: Path | None = None,
    workers: int | None = 1,
    out: Path | None = None,
    show_progress: bool = False,
) -> Comparison:
    """Load and check the methods; metrics are kept in `out`/metrics, and taken from there while no file has changed.

    `sources`: results folders, folders of predictions, metrics.csv files. `group`: a regular expression for case
    names; its first group, or else the whole match, names the patient. Tables are computed when first asked for.

    Raises:
        SamnnError: what is wrong, or in what the methods differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        methods = load_methods(
            sources,
            reference=reference,
            names=names,
            tolerance_mm=tolerance_mm,
            labels=labels,
            workers=workers,
            cache_folder=(Path(scratch) if out is None else Path(out)) / "metrics",
            show_progress=show_progress,
        )
    _refuse_metrics(methods, metrics)
    comparison = Comparison(methods, tuple(metrics), group, None)
    if group is None:
        return comparison
    return Comparison(methods, tuple(metrics), group, _groups(comparison.cases, group))


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


def _refuse_metrics(methods: Sequence[Method], metrics: Sequence[str]) -> None:
    """Every metric must be there in every method, by the same definition."""
    problems = [] if metrics else ["no metric was asked for."]
    for metric in metrics:
        definitions = {method.name: method.summary["definitions"].get(metric) for method in methods}
        first_name, first = next(iter(definitions.items()))
        for name, definition in definitions.items():
            if definition is None:
                known = ", ".join(next(m for m in methods if m.name == name).summary["definitions"])
                problems.append(f"{name}: has no metric {metric!r}. It has: {known}.")
            elif first is not None and (
                differing := sorted(k for k in first if first[k] != definition.get(k))
            ):
                problems.append(
                    f"{name}: defines {metric} differently from {first_name}: "
                    + "; ".join(f"{key} is {definition.get(key)!r}, not {first[key]!r}" for key in differing)
                )
        if list(metrics).count(metric) > 1:
            problems.append(f"the metric {metric!r} was asked for twice.")
    if problems:
        raise Problems("The metrics cannot be compared.", list(dict.fromkeys(problems)))


def _groups(cases: list[str], group: str) -> np.ndarray:
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise SamnnError(f"--group {group!r}: is no regular expression ({error}).") from error
    found = {case: pattern.search(case) for case in cases}
    if without := [case for case, match in found.items() if match is None]:
        raise SamnnError(f"--group {group!r}: does not match {len(without)} cases: {', '.join(without[:8])}.")
    return np.array([match[1] if pattern.groups else match[0] for match in found.values()])
