"""Statistics against statsmodels, which has what scipy lacks: paired tests, shares and errors by groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from edgeopt import intervals, stats
from edgeopt.distributions import group_error

contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
proportion = pytest.importorskip("statsmodels.stats.proportion")
regression = pytest.importorskip("statsmodels.api")

COUNTS = st.integers(min_value=0, max_value=60)


@given(COUNTS, COUNTS)
def test_mcnemars_exact_test(worse: int, better: int) -> None:
    expected = contingency.mcnemar([[40, worse], [better, 30]], exact=True).pvalue
    assert intervals.mcnemar_p(worse, better) == pytest.approx(min(1.0, expected), abs=1e-9)


@given(COUNTS, COUNTS)
def test_the_exact_test_is_never_bolder_than_its_mid_p(worse: int, better: int) -> None:
    """Mid-p (Fagerland, Lydersen, Laake 2013): of what was seen, half; twice the smaller tail, so one time less."""
    seen = scipy_stats.binom.pmf(min(worse, better), worse + better, 0.5)
    tail = scipy_stats.binom.cdf(min(worse, better), worse + better, 0.5)
    mid_p = min(1.0, 2 * (tail - seen / 2))
    exact = intervals.mcnemar_p(worse, better)
    assert mid_p <= exact + 1e-12
    assert exact - mid_p <= seen + 1e-12


@given(COUNTS, COUNTS, st.integers(min_value=1, max_value=2000))
def test_the_interval_of_a_drop_holds_the_exact_conditional_one(worse: int, better: int, same: int) -> None:
    total, n = worse + better, worse + better + same
    low, high = intervals.mcnemar_interval(worse, better, n)
    if total:
        ends = proportion.proportion_confint(worse, total, method="beta")
        assert low <= (2 * ends[0] - 1) * total / n + 1e-9
        assert high >= (2 * ends[1] - 1) * total / n - 1e-9


@given(st.integers(min_value=1, max_value=3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share(case: tuple[int, int]) -> None:
    assert intervals.wilson(*case) == pytest.approx(proportion.proportion_confint(*case, method="wilson"), abs=1e-9)


@given(st.integers(min_value=20, max_value=500), st.floats(min_value=0.1, max_value=9))
def test_what_may_differ_where_nothing_was_seen_to(n: int, size: float) -> None:
    """Clopper and Pearson of none in n, by the size of the scores."""
    scores = np.full(n, size + 1.5)
    most = proportion.proportion_confint(0, n, method="beta")[1] * scores[0]
    assert stats.paired_drop(scores, scores)["drop_interval"] == pytest.approx((-most, most))


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(min_value=3, max_value=30), st.integers(min_value=2, max_value=20))
def test_equal_groups_have_the_cluster_robust_interval(seed: int, groups: int, size: int) -> None:
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(groups), size)
    values = rng.normal(size=groups)[labels] + rng.normal(size=len(labels))
    fit = regression.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": labels}, use_t=True)
    assert intervals.mean_interval(values, labels) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-6)


def test_unequal_groups_have_an_error_that_is_not_too_small() -> None:
    """The variance of the mean is known here. The jackknife (what MacKinnon, Nielsen and Webb 2023 call CV3) is not
    below it on average; the usual cluster-robust one (CV1) is, which is why it is not the one that is used."""
    rng, sizes = np.random.default_rng(0), np.array((8, 17, 36, 76, 160))
    labels, true = np.repeat(np.arange(5), sizes), float(((sizes / sizes.sum()) ** 2).sum())
    own, usual = [], []
    for _ in range(300):
        values = rng.normal(size=5)[labels]
        fit = regression.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": labels})
        sums = np.bincount(labels, weights=values)
        own.append(float(group_error(sums, sizes.astype(np.float64))) ** 2)
        usual.append(float(fit.bse[0]) ** 2)
    assert np.mean(own) > true
    assert np.mean(usual) < 0.9 * true
