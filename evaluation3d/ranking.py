"""Rankings of methods under three schemes, and how stable they are when the cases are drawn again.

The schemes and the bootstrap follow challengeR (Wiesenfarth et al. 2021, doi:10.1038/s41598-021-82017-6). A drawn
sample is a row of weights: how often each case is in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .paired import DIGITS, SEED, group_sums

BOOTSTRAPS = 1000
ALPHA = 0.05  # of the tests of the test-based scheme


@dataclass(frozen=True)
class Ranking:
    """One scheme: score and rank (1 is best, equal ones share the better rank) of each method, and their stability.

    `frequencies[m, r]`: the share of bootstrap samples that put method m on rank r + 1. `tau`: Kendall's tau-b
    between each bootstrap ranking and the full one, NaN where one of the two ranks all methods equal.
    """

    scores: np.ndarray
    ranks: np.ndarray
    frequencies: np.ndarray
    tau: np.ndarray


def rank_methods(
    values: np.ndarray, *, better: str, groups: np.ndarray | None = None, bootstraps: int = BOOTSTRAPS
) -> dict[str, Ranking]:
    """Rank methods under every scheme. `values`: (methods, cases), all defined; `better`: "higher" or "lower".

    `groups` names the patient of each case; the cases of a patient are drawn together.
    """
    goodness = np.round(values if better == "higher" else -values, DIGITS)
    n_methods, n_cases = values.shape
    names, member = np.unique(np.arange(n_cases) if groups is None else groups, return_inverse=True)
    n = len(names)
    drawn = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=bootstraps)
    rankings = {}
    for scheme, score in SCHEMES.items():
        full = score(goodness, np.ones((1, n), int), member)
        ranks = _ranks(full)
        again_ranks = _ranks(score(goodness, drawn, member))
        lower_is_better = scheme == RANK_THEN_MEAN or (scheme == MEAN_THEN_RANK and better == "lower")
        rankings[scheme] = Ranking(
            scores=-full[0] if lower_is_better else full[0],
            ranks=ranks[0],
            frequencies=np.stack([(again_ranks == rank).mean(0) for rank in range(1, n_methods + 1)], axis=1),
            tau=_tau(again_ranks, ranks),
        )
    return rankings


def by_means(goodness: np.ndarray, weights: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Score: the mean over the cases."""
    weights = weights[:, member]
    return weights @ goodness.T / weights.sum(1, keepdims=True)


def by_ranks(goodness: np.ndarray, weights: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Score: minus the mean of the ranks in each case; equal ones share the better rank."""
    return by_means(-_ranks(goodness.T).T, weights, member)


def by_tests(goodness: np.ndarray, weights: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Score: the share of the other methods than which one is significantly better.

    One-sided signed-rank tests at 5 %, by the normal approximation with continuity correction, not corrected for
    their number: challengeR's defaults. With groups, on the means of the groups.
    """
    n_methods = len(goodness)
    better = np.zeros((len(weights), n_methods))
    for first in range(n_methods):
        for second in range(n_methods):
            if first != second:
                sums, sizes = group_sums(goodness[first] - goodness[second], member)
                p = greater_p(np.round(sums / sizes, DIGITS), weights)
                better[:, first] += p < ALPHA
    return better / max(1, n_methods - 1)


def greater_p(differences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One-sided signed-rank p that the differences lie above zero, for each row of weights (samples, differences).

    As R's `wilcox.test(exact = FALSE)`: zeros dropped, ties share their mean rank and correct the variance. 1 where
    no difference remains.
    """
    kept = differences != 0
    differences, weights = differences[kept], weights[:, kept]
    sizes, tied = np.unique(np.abs(differences), return_inverse=True)
    n_tied = np.zeros((len(weights), len(sizes)))
    np.add.at(n_tied.T, tied, weights.T)
    mid_ranks = np.cumsum(n_tied, 1) - (n_tied - 1) / 2
    positive = differences > 0
    rank_sum = (weights[:, positive] * mid_ranks[:, tied[positive]]).sum(1)
    n = weights.sum(1)
    variance = n * (n + 1) * (2 * n + 1) / 24 - (n_tied**3 - n_tied).sum(1) / 48
    excess = rank_sum - n * (n + 1) / 4
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (excess - 0.5) / np.sqrt(variance)
    return np.where(n > 0, stats.norm.sf(z), 1.0)


MEAN_THEN_RANK, RANK_THEN_MEAN, TEST_THEN_RANK = "mean, then rank", "rank, then mean", "tests, then rank"
SCHEMES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    MEAN_THEN_RANK: by_means,
    RANK_THEN_MEAN: by_ranks,
    TEST_THEN_RANK: by_tests,
}


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, 1 for the largest score, equal ones share the better rank."""
    return stats.rankdata(-np.round(scores, DIGITS), method="min", axis=-1).astype(int)


def _tau(ranks: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Kendall's tau-b between each row of `ranks` and the one row of `full`."""
    first, second = np.triu_indices(ranks.shape[1], 1)
    a = np.sign(ranks[:, first] - ranks[:, second])
    b = np.sign(full[:, first] - full[:, second])
    pairs = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), pairs, out=np.full(len(ranks), math.nan), where=pairs > 0)
