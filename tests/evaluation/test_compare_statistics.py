"""The statistics of `samnn compare` against numbers worked by hand, scipy and statsmodels."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from samnn.evaluation3d.paired import (
    bca_interval,
    compare_paired,
    group_sums,
    holm,
    least_p,
    permutation_p,
    wilcoxon_p,
)
from samnn.evaluation3d.ranking import SCHEMES, greater_p, rank_methods

MEAN, RANK, TEST = SCHEMES
DIFFERENCES = np.array([0.05, -0.02, 0.03, 0.08, 0.01, -0.04, 0.06, 0.07, 0.09, 0.1])


def by_hand(differences: np.ndarray) -> float:
    """Two-sided signed-rank p by listing every sign; mean ranks where absolute differences are equal."""
    ranks = stats.rankdata(np.abs(differences))
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in product([0, 1], repeat=len(ranks))
    ]
    observed = ranks[differences > 0].sum()
    upper, lower = np.mean(np.array(sums) >= observed - 1e-9), np.mean(np.array(sums) <= observed + 1e-9)
    return min(1.0, 2 * min(upper, lower))


def test_four_cases_cannot_give_a_p_below_an_eighth():
    found = compare_paired(np.array([0.9, 0.8, 0.7, 0.95]), np.array([0.1, 0.2, 0.3, 0.05]))
    assert (found.wilcoxon_p, found.permutation_p, least_p(4)) == (0.125, 0.125, 0.125)
    assert found.n_sign_changes == 16


def test_wilcoxon_of_three_and_one_worked_by_hand():
    # ranks 1 2 3 4, the smallest negative: sums of at least 9 are 9 and 10, so p = 2 · 2/16
    assert wilcoxon_p(np.array([-1.0, 2, 3, 4])) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "differences", [DIFFERENCES, np.array([1.0, 1, -1, 2, 3, 3]), np.array([-2.0, 2, 5, 1])]
)
def test_wilcoxon_is_exact_for_few_cases_with_and_without_ties(differences):
    assert wilcoxon_p(differences) == pytest.approx(by_hand(differences))


@pytest.mark.parametrize(("n", "ties"), [(14, True), (50, False), (51, False)])
def test_wilcoxon_is_exact_up_to_50_and_with_ties_up_to_13(n, ties):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    differences = np.round(differences, 1) + 0.01 if ties else differences
    method = "approx" if ties or n > 50 else "exact"
    assert wilcoxon_p(differences) == stats.wilcoxon(differences, method=method).pvalue


def test_zero_differences_are_dropped_by_wilcoxon_and_counted_as_ties():
    with_zeros = np.array([0.3, 0.0, -0.1, 0.2, 0.0, 0.5])
    assert wilcoxon_p(with_zeros) == wilcoxon_p(with_zeros[with_zeros != 0])
    found = compare_paired(with_zeros, np.zeros(6))
    assert (found.first_larger, found.equal, found.second_larger) == (3, 2, 1)


def test_rounding_noise_makes_no_winner():
    found = compare_paired(np.array([0.1 + 0.2, 0.5]), np.array([0.3, 0.5]))
    assert (found.equal, found.wilcoxon_p, found.permutation_p) == (2, 1.0, 1.0)


def test_permutation_is_exact_over_all_signs_for_few_cases():
    sums = DIFFERENCES.sum()
    every = [np.dot(signs, np.abs(DIFFERENCES)) for signs in product([-1, 1], repeat=10)]
    p, n = permutation_p(DIFFERENCES)
    assert n == 1024
    assert p == pytest.approx(np.mean(np.abs(every) >= abs(sums) - 1e-9))


def test_permutation_draws_signs_for_many_cases_and_is_near_the_normal_limit():
    differences = np.random.default_rng(3).normal(0.25, 1, 60)
    p, n = permutation_p(differences)
    assert n == 9999
    assert p == pytest.approx(
        2 * stats.norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum())), abs=0.015
    )
    assert permutation_p(np.full(60, 1.0))[0] == pytest.approx(
        2 / 10_000
    )  # never 0: 1 is added to both counts


def test_the_interval_is_that_of_scipy():
    expected = stats.bootstrap((DIFFERENCES,), np.mean, n_resamples=9999, rng=np.random.default_rng(0))
    low, high, note = bca_interval(DIFFERENCES, np.ones(10))
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval))
    assert note == ""


@pytest.mark.parametrize(
    ("differences", "note"),
    [
        ([0.1] * 6, "no interval: all differences are equal"),
        ([0.0] * 6, "no interval: all differences are equal"),
        ([0.1], "no interval: it needs two cases or more"),
        ([], "no pairs"),
    ],
)
def test_where_there_is_no_interval_the_reason_is_said(differences, note):
    found = compare_paired(np.array(differences), np.zeros(len(differences)))
    assert math.isnan(found.ci_low) and math.isnan(found.ci_high)
    assert found.note == note
    assert math.isnan(found.wilcoxon_p) == math.isnan(found.permutation_p) == (not differences)


def test_pairs_in_which_one_is_undefined_are_left_out():
    first, second = np.array([0.9, np.nan, 0.8, 0.7]), np.array([0.5, 0.5, np.nan, 0.6])
    found = compare_paired(first, second)
    assert (found.n, found.mean_difference) == (2, pytest.approx(0.25))


def test_holm_is_that_of_statsmodels_and_leaves_undefined_ones_out():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.9, 0.03])
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm(np.array([0.01, np.nan, 0.04, 0.03])) == pytest.approx(
        [0.03, np.nan, 0.06, 0.06], nan_ok=True
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_holm_is_that_of_statsmodels_for_any_p(p):
    assert holm(np.array(p)) == pytest.approx(multipletests(p, method="holm")[1])


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 2)), min_size=2, max_size=8), st.randoms())
@settings(max_examples=10, deadline=None)
def test_swapping_the_methods_mirrors_the_result_and_the_order_of_cases_does_not_matter(values, random):
    first, second = np.array(values), np.zeros(len(values))
    there, back = compare_paired(first, second, resamples=500), compare_paired(second, first, resamples=500)
    assert back.mean_difference == pytest.approx(-there.mean_difference)
    assert (back.wilcoxon_p, back.permutation_p) == pytest.approx((there.wilcoxon_p, there.permutation_p))
    assert (back.first_larger, back.second_larger) == (there.second_larger, there.first_larger)
    shuffled = list(values)
    random.shuffle(shuffled)
    again = compare_paired(np.array(shuffled), second, resamples=500)
    assert (again.wilcoxon_p, again.permutation_p) == pytest.approx((there.wilcoxon_p, there.permutation_p))


# ---- patients with several cases


def test_cases_of_one_patient_are_one_in_the_tests_but_all_count_in_the_mean():
    first = np.array([3.0, 1, 2, 4, 6, 5])
    groups = np.array(["a", "a", "a", "b", "c", "d"])
    found = compare_paired(first, np.zeros(6), groups=groups)
    assert (found.n, found.n_groups) == (6, 4)
    assert found.mean_difference == pytest.approx(21 / 6)
    assert found.wilcoxon_p == found.permutation_p == 0.125  # four patients, as four cases


def test_a_group_a_case_is_the_same_as_no_groups():
    groups = np.array(list("abcdefghij"))
    assert compare_paired(DIFFERENCES, np.zeros(10), groups=groups) == compare_paired(
        DIFFERENCES, np.zeros(10)
    )


def test_repeating_every_case_of_a_patient_narrows_no_interval():
    once = bca_interval(*group_sums(DIFFERENCES, None))
    thrice = bca_interval(*group_sums(np.repeat(DIFFERENCES, 3), np.repeat(np.arange(10), 3)))
    ignored = bca_interval(*group_sums(np.repeat(DIFFERENCES, 3), None))
    assert thrice[:2] == pytest.approx(once[:2], abs=0.002)  # sums of other sizes round otherwise
    assert ignored[1] - ignored[0] < 0.7 * (once[1] - once[0])


# ---- rankings


def test_three_schemes_worked_by_hand_on_one_outlier():
    # A is best in every case but one, where it fails: its mean is the worst, its mean rank (1 + 1 + 1 + 1 + 3) / 5
    values = np.array([[0.9] * 4 + [0.0], [0.85] * 4 + [0.8], [0.8] * 4 + [0.7]])
    ranked = rank_methods(values, better="higher")
    assert ranked[MEAN].scores == pytest.approx([0.72, 0.84, 0.78])
    assert ranked[MEAN].ranks.tolist() == [3, 1, 2]
    assert ranked[RANK].scores == pytest.approx([7 / 5, 9 / 5, 14 / 5])
    assert ranked[RANK].ranks.tolist() == [1, 2, 3]
    # B beats C in all five cases: one-sided normal approximation p = 0.027; A beats nobody at 5 %
    assert ranked[TEST].scores == pytest.approx([0, 0.5, 0])
    assert ranked[TEST].ranks.tolist() == [2, 1, 2]


def test_lower_is_better_turns_the_ranking_around_but_not_the_scores():
    values = np.random.default_rng(5).normal(size=(3, 20))
    higher, lower = rank_methods(values, better="higher"), rank_methods(-values, better="lower")
    for scheme in SCHEMES:
        assert (higher[scheme].ranks == lower[scheme].ranks).all()
        assert (higher[scheme].frequencies == lower[scheme].frequencies).all()
    assert lower[MEAN].scores == pytest.approx((-values).mean(1))


def test_the_test_of_the_ranking_is_scipys_on_the_drawn_sample():
    rng = np.random.default_rng(7)
    differences = np.round(rng.normal(0.3, 1, 15), 1)
    weights = rng.multinomial(15, np.full(15, 1 / 15), size=20)
    expected = []
    for row in weights:
        drawn = np.repeat(differences, row)
        drawn = drawn[drawn != 0]
        expected.append(stats.wilcoxon(drawn, alternative="greater", correction=True, method="approx").pvalue)
    assert greater_p(differences, weights) == pytest.approx(expected)


def test_a_method_that_always_wins_keeps_its_rank_in_every_bootstrap_sample():
    values = np.random.default_rng(9).uniform(size=(3, 15)) * 0.1 + np.array([[0.2], [0.9], [0.5]])
    for ranking in rank_methods(values, better="higher").values():
        assert ranking.ranks.tolist() == [3, 1, 2]
        assert ranking.frequencies.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
        assert (ranking.tau == 1).all()


def test_tau_is_scipys_and_equal_methods_have_none():
    rng = np.random.default_rng(11)
    ranking = rank_methods(rng.normal(size=(4, 12)), better="higher", bootstraps=50)[MEAN]
    assert ranking.frequencies.sum(1) == pytest.approx(np.ones(4))
    assert set(np.round(ranking.tau, 6)) <= {round(stats.kendalltau([1, 2, 3, 4], p).statistic, 6)
                                             for p in permutations([1, 2, 3, 4])}  # fmt: skip
    equal = rank_methods(np.ones((2, 5)), better="higher")
    assert all(r.ranks.tolist() == [1, 1] and np.isnan(r.tau).all() for r in equal.values())


def test_the_share_of_first_ranks_is_that_of_resampling_cases_by_hand():
    values = np.array([[0.9, 0.5, 0.7, 0.4], [0.8, 0.6, 0.6, 0.5]])
    ranking = rank_methods(values, better="higher", bootstraps=20_000)[MEAN]
    difference = values[0] - values[1]  # +0.1 -0.1 +0.1 -0.1: all 256 samples of four cases
    wins = np.mean([round(sum(difference[list(c)]), 9) >= 0 for c in product(range(4), repeat=4)])
    assert ranking.frequencies[0, 0] == pytest.approx(wins, abs=0.01)
