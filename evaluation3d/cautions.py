"""What must be said beside the numbers of a comparison: too few cases, shared training, values left out."""

from __future__ import annotations

from .comparison import Comparison
from .paired import least_p
from .ranking import ALPHA

FEW = 20  # below so many patients a BCa interval is too narrow: simulated in tests/evaluation/test_compare_errors.py


def cautions_of(comparison: Comparison) -> list[str]:
    """What must be said beside these numbers, the gravest first."""
    lines = []
    pairs = comparison.tables.get("pairs")
    what = "cases" if comparison.groups is None else "patients"
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
                f"Bootstrap intervals of {n} {what} are too narrow: in simulations of skewed differences the 95 % "
                "interval held the truth in 84 % of trials with 5 cases, 88 % with 8, 90 % with 10, 93 % with 20."
            )
    folds = {v.parent.name for m in comparison.methods if m.results for v in m.results.validations}
    if len(folds) > 1:
        lines.append(
            f"The cases come from {len(folds)} folds. The models of two folds share most of their training cases, so "
            "the cases are not independent draws; tests and intervals treat them as if they were."
        )
    lines.append(
        "Each method is one training (per fold). How much a method changes from one training seed to the next is "
        "not in these numbers: intervals and p speak of these trained models on other cases."
    )
    if comparison.groups is None:
        lines.append(
            "Every case counts as a patient of its own. If patients have several cases, use --group REGEX."
        )
    unknown = [m.name for m in comparison.methods if m.results is None]
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
    lines += [
        f"No reliability of {m.name}: {m.confidence.note}" for m in comparison.methods if m.confidence.note
    ]
    skipped = max(len(m.summary["missing"]) for m in comparison.methods)
    if skipped:
        lines.append(f"{skipped} references have no prediction and are not part of anything here.")
    return lines
