"""Intervals and tests against published examples, slow definitions, and what must hold for all
counts.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimvla.sim.evaluation.statistics import (
    Pairs,
    bootstrap_interval,
    compare,
    count_pairs,
    mcnemar_p,
    mean_maximum_rank_violation,
    pearson,
    tango_interval,
    wilson_interval,
)

# Complete response before and after consolidation therapy (Cavo et al. 2012), worked through in
# Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.
CAVO = Pairs(both=59, candidate_only=6, reference_only=16, neither=80)
Z = 1.959964

counts = st.integers(0, 60)
pairs = st.builds(Pairs, counts, counts, counts, counts).filter(lambda it: it.n > 0)


def exchanged(it: Pairs) -> Pairs:
    return Pairs(it.both, it.reference_only, it.candidate_only, it.neither)


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, table I
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-3)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-3)


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        (81, 263, (0.255288520, 0.366209577)),
        (533, 600, (0.860620721, 0.911105025)),
        (14, 24, (0.388346659, 0.755323974)),
        (1, 30, (0.005908590, 0.166703910)),
    ],
)
def test_wilson_agrees_with_scipy(successes: int, n: int, expected: tuple[float, float]) -> None:
    """scipy 1.18: binomtest(successes, n).proportion_ci(method="wilson")."""
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=1e-8)


@given(st.integers(1, 500), st.data())
@settings(deadline=None)
def test_wilson_holds_the_rate(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0


def test_more_confidence_is_a_wider_interval() -> None:
    low, high = wilson_interval(30, 40, confidence=0.99)
    assert (low, high) != wilson_interval(30, 40)
    assert low < wilson_interval(30, 40)[0] < wilson_interval(30, 40)[1] < high


@pytest.mark.parametrize(("successes", "n"), [(5, 4), (-1, 4), (0, 0)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {n}"):
        wilson_interval(successes, n)


def test_pairs_are_counted_by_who_succeeded() -> None:
    it = count_pairs([1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0])
    assert it == Pairs(both=1, candidate_only=2, reference_only=1, neither=2)
    assert it.difference == pytest.approx(1 / 6)


@pytest.mark.parametrize(("candidate", "reference"), [([], []), ([1], [1, 0])])
def test_outcomes_without_partners_are_refused(candidate: list[int], reference: list[int]) -> None:
    with pytest.raises(ValueError, match="expected as many outcomes of both"):
        count_pairs(candidate, reference)


def test_mcnemar_matches_published_values() -> None:
    assert mcnemar_p(CAVO.candidate_only, CAVO.reference_only) == pytest.approx(0.052479, abs=5e-7)
    # Agresti 1990, p. 350, as R's exact2x2 has it
    assert mcnemar_p(150, 86) == pytest.approx(3.716e-05, abs=5e-9)


def test_mcnemar_without_a_discordant_pair_says_nothing() -> None:
    assert mcnemar_p(0, 0) == 1.0


@pytest.mark.parametrize("tosses", range(1, 9))
def test_mcnemar_is_the_share_of_coin_sequences_that_are_as_uneven(tosses: int) -> None:
    unevenness = [abs(2 * sum(coins) - tosses) for coins in product((0, 1), repeat=tosses)]
    for won in range(tosses + 1):
        as_uneven = sum(it >= abs(2 * won - tosses) for it in unevenness)
        assert mcnemar_p(won, tosses - won) == pytest.approx(as_uneven / 2**tosses)


@given(st.integers(0, 300), st.integers(0, 300))
@settings(deadline=None)
def test_mcnemar_agrees_with_scipy(won: int, lost: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar_p(won, lost) == pytest.approx(expected, rel=1e-9)


def test_tango_matches_published_values() -> None:
    assert tango_interval(CAVO) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


@pytest.mark.parametrize("n", [1, 20, 300])
def test_without_a_discordant_pair_tangos_interval_is_no_point(n: int) -> None:
    reach = Z**2 / (n + Z**2)
    assert tango_interval(Pairs(n, 0, 0, 0)) == pytest.approx((-reach, reach), abs=1e-6)
    assert bootstrap_interval(Pairs(n, 0, 0, 0)) == (0.0, 0.0)


@given(pairs)
@settings(deadline=None)
def test_tango_holds_the_difference_and_is_fair_to_both(it: Pairs) -> None:
    low, high = tango_interval(it)
    assert -1.0 <= low <= it.difference <= high <= 1.0
    assert low < high
    assert tango_interval(exchanged(it)) == pytest.approx((-high, -low), abs=1e-12)


@given(pairs)
@settings(deadline=None)
def test_tango_is_narrower_with_more_of_the_same(it: Pairs) -> None:
    fourfold = Pairs(4 * it.both, 4 * it.candidate_only, 4 * it.reference_only, 4 * it.neither)
    assert np.ptp(tango_interval(fourfold)) < np.ptp(tango_interval(it))


@given(pairs.filter(lambda it: abs(it.difference) < 1))
@settings(max_examples=30, deadline=None)
def test_at_tangos_limit_the_score_test_just_does_not_reject(it: Pairs) -> None:
    """The definition, with the nuisance rate found by search: q is the rate of `reference_only`
    under `limit`.
    """
    limit = tango_interval(it)[0]
    concordant = it.both + it.neither
    q = np.linspace(max(0.0, -limit), (1 - limit) / 2, 200_001)[1:-1]
    likelihood = (
        it.candidate_only * np.log(q + limit)
        + it.reference_only * np.log(q)
        + concordant * np.log(1 - 2 * q - limit)
    )
    best = q[np.argmax(likelihood)]
    score = (it.difference - limit) / np.sqrt((2 * best + limit - limit**2) / it.n)
    assert score == pytest.approx(Z, rel=2e-2)


def test_bootstrap_agrees_with_drawing_the_pairs_themselves() -> None:
    differences = np.repeat(
        [1, -1, 0], [CAVO.candidate_only, CAVO.reference_only, CAVO.both + CAVO.neither]
    )
    means = np.random.default_rng(7).choice(differences, (20_000, CAVO.n)).mean(axis=1)
    assert bootstrap_interval(CAVO) == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=1 / CAVO.n
    )


def test_bootstrap_depends_on_its_seed_alone() -> None:
    assert bootstrap_interval(CAVO, seed=3) == bootstrap_interval(CAVO, seed=3)
    draws = {
        bootstrap_interval(Pairs(900, 400, 300, 900), resamples=200, seed=seed) for seed in range(5)
    }
    assert len(draws) > 1


@given(pairs)
@settings(max_examples=25, deadline=None)
def test_bootstrap_never_crosses_zero_where_one_side_never_won_alone(it: Pairs) -> None:
    low, high = bootstrap_interval(it, resamples=500)
    assert -1.0 <= low <= high <= 1.0
    assert low >= 0 or it.reference_only
    assert high <= 0 or it.candidate_only


def outcomes(it: Pairs) -> tuple[list[int], list[int]]:
    kinds = [
        ((1, 1), it.both),
        ((1, 0), it.candidate_only),
        ((0, 1), it.reference_only),
        ((0, 0), it.neither),
    ]
    told = [kind for kind, count in kinds for _ in range(count)]
    return [a for a, _ in told], [b for _, b in told]


def test_a_comparison_reports_the_bound_that_decides() -> None:
    it = compare(*outcomes(CAVO), margin=0.13)
    assert (it.both, it.candidate_only, it.reference_only, it.neither) == (59, 6, 16, 80)
    assert it.difference == pytest.approx(-10 / 161)
    assert it.lower_bound == it.interval[0] == pytest.approx(-0.1240, abs=5e-5)
    assert it.p_value == pytest.approx(0.052479, abs=5e-7)
    assert it.bootstrap_interval == bootstrap_interval(CAVO)
    assert it.non_inferior
    assert not compare(*outcomes(CAVO), margin=0.12).non_inferior


@pytest.mark.parametrize(("episodes", "decided"), [(20, False), (300, True)])
def test_agreement_in_few_episodes_is_no_proof(episodes: int, decided: bool) -> None:
    assert compare([1] * episodes, [1] * episodes, margin=0.05).non_inferior is decided


@given(pairs, st.floats(0.01, 0.99))
@settings(max_examples=25, deadline=None)
def test_a_wider_margin_never_undoes_non_inferiority(it: Pairs, margin: float) -> None:
    narrow, wide = (compare(*outcomes(it), margin=m).non_inferior for m in (margin / 2, margin))
    assert wide or not narrow


@pytest.mark.parametrize("margin", [0.0, -0.05, 1.0, 5.0, float("nan")])
def test_a_margin_that_cannot_be_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < margin < 1"):
        compare([1], [1], margin=margin)


# Success of six policies on "move near", in the simulator (visual matching) and on the robot:
# RT-2-X, RT-1 converged, RT-1 at 15 %, RT-1-X, RT-1 at the beginning, Octo-Base. SIMPLER's own
# table (Li et al. 2024, arXiv
# 2405.05941).
SIMULATED = (0.779, 0.442, 0.354, 0.317, 0.050, 0.042)
REAL = (0.733, 0.633, 0.583, 0.450, 0.017, 0.350)


def test_rank_violation_of_a_published_table() -> None:
    """One pair is out of order: Octo-Base is ranked below RT-1 at the beginning.

    Both are charged their real gap.
    """
    assert mean_maximum_rank_violation(SIMULATED, REAL) == pytest.approx(2 * (0.350 - 0.017) / 6)


def test_rank_violation_is_not_symmetric_and_counts_ties_on_one_side() -> None:
    """By hand: the only wrong pair is (2, 3), 0.4 apart in reality and 0.1 in the simulator."""
    assert mean_maximum_rank_violation((0.1, 0.5, 0.6), (0.0, 0.9, 0.5)) == pytest.approx(
        (0.4 + 0.4) / 3
    )
    assert mean_maximum_rank_violation((0.0, 0.9, 0.5), (0.1, 0.5, 0.6)) == pytest.approx(
        (0.1 + 0.1) / 3
    )
    assert mean_maximum_rank_violation((0.5, 0.5), (0.2, 0.8)) == pytest.approx(0.3)
    assert mean_maximum_rank_violation((0.2, 0.4, 0.9), (0.1, 0.3, 0.5)) == 0.0


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=2, max_size=8))
@settings(deadline=None)
def test_rank_violation_is_its_definition(rates: list[tuple[int, int]]) -> None:
    n = len(rates)
    total = 0.0
    for i in range(n):
        worst = 0.0
        for j in range(n):
            if (rates[i][0] > rates[j][0]) != (rates[i][1] > rates[j][1]):
                worst = max(worst, abs(rates[i][1] - rates[j][1]))
        total += worst
    assert mean_maximum_rank_violation(*zip(*rates, strict=True)) == pytest.approx(total / n)


def test_pearson_of_a_worked_example() -> None:
    """Anscombe's first set (1973): r = 0.816, printed to three digits; and of the published
    table.
    """
    x = (10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5)
    y = (8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68)
    assert pearson(x, y) == pytest.approx(0.81642, abs=5e-6)
    assert pearson(y, x) == pearson(x, y)
    assert pearson(SIMULATED, REAL) == pytest.approx(np.corrcoef(SIMULATED, REAL)[0, 1])


@pytest.mark.parametrize(
    ("simulated", "real"), [([0.5], [0.5]), ([0.1, 0.2], [0.1]), ([0.3, 0.3], [0.1, 0.2])]
)
def test_rates_that_say_nothing_are_refused(simulated: list[float], real: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        pearson(simulated, real)
