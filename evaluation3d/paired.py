"""Statistics of paired differences: an interval, two tests, Holm's correction, wins; patients stay together."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0  # each call starts from it, so that no result depends on what was asked before
DIGITS = 12  # differences are rounded to so many decimals: rounding noise neither makes nor breaks ties


@dataclass(frozen=True)
class Paired:
    """What is known of the differences `first − second` over the cases where both have a value.

    `n` counts cases, `n_groups` the patients (or whatever is resampled together). NaN: not defined, `note` says why.
    """

    n: int
    n_groups: int
    mean_difference: float
    ci_low: float
    ci_high: float
    wilcoxon_p: float
    permutation_p: float
    n_sign_changes: int
    first_larger: int
    equal: int
    second_larger: int
    note: str


def compare_paired(
    first: np.ndarray, second: np.ndarray, *, groups: np.ndarray | None = None, resamples: int = RESAMPLES
) -> Paired:
    """Compare two methods on the same cases; cases that are NaN in one of the two are left out.

    `first`, `second`: a value a case. `groups`: the patient of each case; None: every case is one.
    """
    defined = ~(np.isnan(first) | np.isnan(second))
    differences = np.round(first[defined] - second[defined], DIGITS)
    sums, sizes = group_sums(differences, None if groups is None else groups[defined])
    low, high, note = bca_interval(sums, sizes, resamples=resamples)
    permutation, n_sign_changes = permutation_p(sums, resamples=resamples)
    return Paired(
        n=len(differences),
        n_groups=len(sums),
        mean_difference=float(differences.mean()) if len(differences) else math.nan,
        ci_low=low,
        ci_high=high,
        wilcoxon_p=wilcoxon_p(np.round(sums / sizes, DIGITS)),
        permutation_p=permutation,
        n_sign_changes=n_sign_changes,
        first_larger=int((differences > 0).sum()),
        equal=int((differences == 0).sum()),
        second_larger=int((differences < 0).sum()),
        note=note,
    )


def group_sums(differences: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the differences of each group, in the order of the groups' names."""
    if groups is None:
        return differences, np.ones(len(differences))
    names, member = np.unique(groups, return_inverse=True)
    return (
        np.bincount(member, weights=differences, minlength=len(names)),
        np.bincount(member, minlength=len(names)).astype(float),
    )


def bca_interval(
    sums: np.ndarray, sizes: np.ndarray, *, resamples: int = RESAMPLES
) -> tuple[float, float, str]:
    """The BCa bootstrap interval of the mean over all cases when whole groups are drawn; and why there is none.

    Efron 1987, doi:10.1080/01621459.1987.10478410, as in scipy.stats.bootstrap.
    """
    means = sums / sizes
    if len(means) < 2:
        return math.nan, math.nan, "no interval: it needs two cases or more" if len(means) else "no pairs"
    if np.ptp(means) <= 1e-9 * np.abs(means).max():
        return math.nan, math.nan, "no interval: all differences are equal"
    with (
        warnings.catch_warnings()
    ):  # where it is not defined, scipy warns and returns NaN: we say so ourselves
        warnings.simplefilter("ignore")
        interval = stats.bootstrap(
            (sums, sizes),
            lambda total, size, axis=-1: total.sum(axis) / size.sum(axis),
            paired=True,
            vectorized=True,
            method="BCa",
            n_resamples=resamples,
            confidence_level=CONFIDENCE,
            random_state=np.random.default_rng(SEED),
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return (
        low,
        high,
        "" if math.isfinite(low + high) else "no interval: BCa is not defined for these differences",
    )


def wilcoxon_p(differences: np.ndarray) -> float:
    """The two-sided p of the signed-rank test; zeros are dropped, ties share their mean rank.

    Exact up to 50 differences without ties, and up to 13 with ties; the normal approximation beyond. 1 where no
    difference remains, NaN where there was none. Wilcoxon 1945, doi:10.2307/3001968, as in scipy.stats.wilcoxon.
    """
    if not len(differences):
        return math.nan
    differences = differences[differences != 0]
    n, tied = len(differences), len(np.unique(np.abs(differences))) < len(differences)
    if n == 0:
        return 1.0
    method = stats.PermutationMethod() if tied and n <= 13 else "approx" if tied or n > 50 else "exact"
    return float(
        stats.wilcoxon(differences, method=method).pvalue
    )  # what "auto" does depends on scipy's version


def permutation_p(sums: np.ndarray, *, resamples: int = RESAMPLES) -> tuple[float, int]:
    """The two-sided p of the mean when the signs of whole groups are changed, and over how many sign changes.

    Exact over all 2ⁿ where these are at most `resamples`, else that many random ones and the observed one.
    """
    if not len(sums):
        return math.nan, 0
    if len(sums) == 1:  # both signs are as far from zero: scipy wants two
        return 1.0, 2
    result = stats.permutation_test(
        (sums,),
        lambda values, axis=-1: values.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        random_state=np.random.default_rng(SEED),
    )
    return float(result.pvalue), len(result.null_distribution)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction over all that are not NaN: p times the number not yet rejected, never falling, at most 1.

    Holm 1979, doi:10.2307/4615733.
    """
    adjusted = np.full(len(p_values), math.nan)
    order = [i for i in np.argsort(p_values, kind="stable") if not math.isnan(p_values[i])]
    largest = 0.0
    for done, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - done) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def least_p(n: int) -> float:
    """The smallest two-sided p that a signed-rank or sign-change test of `n` differences can give: 2 / 2ⁿ."""
    return min(1.0, 2.0 ** (1 - n))
