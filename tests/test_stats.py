"""Figures and their validity: scipy and simulation as oracles."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from edgeopt import intervals, stats
from edgeopt.distributions import group_t
from edgeopt.stats import Figure

COUNTS = st.integers(min_value=0, max_value=60)


@pytest.mark.parametrize(("percentile", "minimum"), [(90, 64), (95, 130), (97, 219), (99, 662), (99.9, 6636)])
def test_mlperf_minimum_counts(percentile: float, minimum: int) -> None:
    assert stats.early_stopping_minimum(percentile) == minimum


@given(st.floats(min_value=5, max_value=99.5), st.sampled_from([0.9, 0.95, 0.99]))
def test_minimum_is_the_first_count_whose_beta_tail_is_small(percentile: float, confidence: float) -> None:
    n = stats.early_stopping_minimum(percentile, confidence)
    assert oracle.beta.cdf(percentile / 100, n - 1, 2) < 1 - confidence
    assert n == 2 or oracle.beta.cdf(percentile / 100, n - 2, 2) >= 1 - confidence


@pytest.mark.parametrize("percentile", [0, 100, -1, 101])
def test_minimum_of_no_percentile(percentile: float) -> None:
    with pytest.raises(ValueError, match="within 0…100"):
        stats.early_stopping_minimum(percentile)


@given(st.integers(min_value=1, max_value=4000), st.floats(min_value=0.02, max_value=0.98))
def test_ranks_enclose_the_quantile_and_no_narrower_ones_do(n: int, p: float) -> None:
    ranks = intervals.rank_interval(n, p)
    below = oracle.binom(n, p)
    if ranks is None:
        assert below.cdf(0) > 0.025 or below.sf(n - 1) > 0.025
        return
    low, high = ranks
    assert below.cdf(low - 1) <= 0.025 + 1e-12
    assert below.cdf(low) > 0.025 - 1e-12
    assert below.sf(high - 1) <= 0.025 + 1e-12
    assert below.sf(high - 2) > 0.025 - 1e-12


def test_percentile_intervals_cover_on_skewed_latencies() -> None:
    rng = np.random.default_rng(1)
    truth = {p: math.exp(oracle.norm.ppf(p / 100)) for p in (50, 90, 95)}
    hits = dict.fromkeys(truth, 0)
    for _ in range(600):
        samples = rng.lognormal(size=150)
        for p, value in truth.items():
            interval = stats.percentile_figure(samples, p).interval
            assert interval is not None
            hits[p] += interval[0] <= value <= interval[1]
    assert min(hits.values()) / 600 > 0.93


@given(st.integers(min_value=0, max_value=800), st.sampled_from(sorted(stats.MODES)))
@settings(max_examples=40, deadline=None)
def test_a_percentile_below_its_count_is_never_a_number(n: int, mode: str) -> None:
    summary = stats.summarize(np.random.default_rng(n).gamma(4, 1e-3, n), mode)
    for p in (50, 90, 95, 99):
        figure = summary[f"p{p}_s"]
        allowed = n >= stats.early_stopping_minimum(p) and not (mode == "rapid" and p >= 95)
        assert (figure.value is not None) == allowed
        assert (figure.invalid is None) == allowed
        if allowed:
            assert figure.interval[0] <= figure.value <= figure.interval[1]
    json.dumps(stats.summary_to_json(summary), allow_nan=False)


def test_summary_says_why() -> None:
    summary = stats.summarize(np.full(70, 0.002), "rapid")
    assert summary["p95_s"] == Figure(None, None, 70, invalid="not given in rapid mode")
    assert summary["p90_s"].value == pytest.approx(0.002)
    assert summary["duration_s"] == pytest.approx(0.14)
    assert stats.summarize(np.full(40, 0.002), "quick")["p90_s"].invalid == "n=40, needs 64"
    assert stats.summarize(np.zeros(0), "quick")["mean_s"].invalid == "n=0, needs 1"


def test_every_figure_of_a_summary_by_hand() -> None:
    """700 latencies, 1 to 700 ms: enough for a p99."""
    found = stats.summarize(np.random.default_rng(0).permutation(np.arange(1, 701) / 1000), "normal")
    expected = {"p50_s": 0.3505, "p90_s": 0.6301, "p95_s": 0.66505, "p99_s": 0.69301, "mean_s": 0.3505, "min_s": 0.001}
    assert {key: found[key].value for key in expected} == pytest.approx(expected)
    for percent in (50, 90, 95):
        low, high = oracle.binom.ppf([0.025, 0.975], 700, percent / 100)
        assert found[f"p{percent}_s"].interval == pytest.approx((low / 1000, (high + 1) / 1000))


def test_a_thousand_samples_at_72_percent_are_sure_to_2_8_points() -> None:
    low, high = intervals.wilson(720, 1000)
    assert (high - low) / 2 == pytest.approx(0.028, abs=0.0005)


@pytest.mark.parametrize("bad", [[0.1, float("nan")], [0.1, 0.0], [0.1, -1.0], [[0.1]]])
def test_impossible_latencies_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="finite and above zero"):
        stats.summarize(np.array(bad), "rapid")


def test_unknown_mode_names_the_allowed() -> None:
    with pytest.raises(ValueError, match="'fast' is unknown; allowed: rapid, quick, normal"):
        stats.summarize(np.ones(3), "fast")


def abba(rng: np.random.Generator, rounds: int, ratio: float, drift: float = 0.0) -> tuple[list[Any], list[Any]]:
    """Blocks of a machine whose speed wanders from round to round and drifts within each."""
    a: list[Any] = []
    b: list[Any] = []
    for _ in range(rounds):
        speed = rng.lognormal(0, 0.2)
        for position, side in enumerate((a, b, b, a)):
            base = ratio if side is a else 1.0
            side.append(1e-3 * base * speed * (1 + drift * position) * rng.gamma(100, 0.01, 20))
    return a, b


def test_ratio_interval_covers_while_the_machine_wanders() -> None:
    rng = np.random.default_rng(2)
    figures = [stats.ratio_of_medians(*abba(rng, 8, 0.5)) for _ in range(300)]
    covered = [f.interval is not None and f.interval[0] <= 0.5 <= f.interval[1] for f in figures]
    assert np.mean(covered) > 0.95
    assert all(f.value == pytest.approx(0.5, abs=0.03) for f in figures)


def test_ratio_is_blind_to_a_drift_in_a_straight_line() -> None:
    figure = stats.ratio_of_medians(*abba(np.random.default_rng(3), 40, 1.0, drift=0.1))
    assert figure.interval is not None
    assert figure.interval[0] <= 1 <= figure.interval[1]


def test_turns_of_the_same_processes_are_one_round_and_a_disturbed_one_is_outvoted() -> None:
    rng = np.random.default_rng(5)
    a, b = abba(rng, 36, 0.5)
    for turn in range(0, 36, 3):
        a[2 * turn] = a[2 * turn] * 3
        a[2 * turn + 1] = a[2 * turn + 1] * 3
    figure = stats.ratio_of_medians(a, b, turns=3)
    assert figure.n == 12
    assert figure.interval is not None
    assert 0.48 < figure.interval[0] <= 0.5 <= figure.interval[1] < 0.55
    alone = stats.ratio_of_medians(a, b)
    assert alone.n == 36
    assert alone.interval is not None
    assert alone.interval[1] > figure.interval[1]


def test_ratio_needs_six_rounds_for_an_interval() -> None:
    figure = stats.ratio_of_medians(*abba(np.random.default_rng(4), 5, 0.5))
    assert figure.interval is None
    assert figure.invalid == "n=5 rounds, needs 6"
    assert figure.value == pytest.approx(0.5, abs=0.05)
    assert stats.ratio_of_medians(*abba(np.random.default_rng(4), 6, 0.5)).interval is not None


@pytest.mark.parametrize(("a", "b"), [(0, 0), (2, 4), (3, 3)])
def test_ratio_refuses_half_turns(a: int, b: int) -> None:
    with pytest.raises(ValueError, match="whole turns"):
        stats.ratio_of_medians([np.ones(3)] * a, [np.ones(3)] * b)


def test_ratio_refuses_an_empty_block() -> None:
    with pytest.raises(ValueError, match="one is empty"):
        stats.ratio_of_medians([np.ones(3), np.zeros(0)], [np.ones(3)] * 2)


def test_drift_needs_size_and_order() -> None:
    rng = np.random.default_rng(5)
    steady = [1e-3 * rng.gamma(100, 0.01, 50) for _ in range(10)]
    heating = [block * (1 + 0.02 * i) for i, block in enumerate(steady)]
    disturbed = [*steady[:7], steady[7] * 3, *steady[8:]]
    assert stats.drift(steady).drifted is False
    assert stats.drift(heating).drifted is True
    assert "slower" in stats.drift(heating).reason
    assert "faster" in stats.drift([b for block in heating[::-1] for b in [block]]).reason
    assert stats.drift(disturbed).drifted is False
    assert stats.drift(steady[:1]) == stats.Drift(None, None, "n=50, needs 80")
    assert stats.drift([]).drifted is None


@pytest.mark.parametrize("freedom", [*range(1, 60), 999, 1000, 2000, 2001, 10_000])
def test_student_t(freedom: int) -> None:
    assert stats.student_t(freedom) == pytest.approx(oracle.t.ppf(0.975, freedom), rel=1e-3)


@given(st.integers(min_value=1, max_value=3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson(case: tuple[int, int]) -> None:
    correct, n = case
    expected = oracle.binomtest(correct, n).proportion_ci(method="wilson")
    assert intervals.wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(COUNTS, COUNTS)
def test_mcnemar_p(worse: int, better: int) -> None:
    expected = oracle.binomtest(worse, worse + better).pvalue if worse + better else 1.0
    assert intervals.mcnemar_p(worse, better) == pytest.approx(expected, abs=1e-9)


@given(COUNTS, COUNTS, st.integers(min_value=0, max_value=2000))
def test_interval_excludes_zero_exactly_when_mcnemar_rejects(worse: int, better: int, same: int) -> None:
    n = worse + better + same + 1
    low, high = intervals.mcnemar_interval(worse, better, n)
    assert -1 <= low <= (worse - better) / n <= high <= 1
    assert low < high
    assert (low > 0 or high < 0) == (intervals.mcnemar_p(worse, better) <= 0.05)
    mirrored = intervals.mcnemar_interval(better, worse, n)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("n", [60, 250])
@pytest.mark.parametrize(
    ("worse", "better"), [(0.005, 0.005), (0.01, 0.0), (0.02, 0.0), (0.02, 0.01), (0.05, 0.02), (0.05, 0.05)]
)
def test_mcnemar_interval_keeps_its_level(n: int, worse: float, better: float) -> None:
    """Exact coverage: every outcome of the trinomial with its probability."""
    covered = 0.0
    for b in range(n // 5):
        rest = oracle.binom.pmf(b, n, worse) * oracle.binom.pmf(np.arange(n // 5), n - b, better / (1 - worse))
        for c in np.flatnonzero(rest > 1e-7):
            low, high = intervals.mcnemar_interval(b, int(c), n)
            covered += float(rest[c]) if low - 1e-12 <= worse - better <= high + 1e-12 else 0.0
    assert covered > 0.9499


def subjects(rng: np.random.Generator, groups: int, spread: float) -> tuple[Any, Any, Any]:
    """Right/wrong of reference and candidate; the true drop is 0.02 over all subjects and differs between them."""
    labels = np.repeat(np.arange(groups), 60)
    drop = 0.02 + spread * rng.normal(size=groups)[labels]
    draw = rng.random(len(labels))
    reference = (draw > 0.10).astype(float)
    candidate = np.where(draw < 0.05, 1.0, (draw > 0.15 + drop).astype(float))
    return reference, candidate, labels


@pytest.mark.parametrize("groups", [3, 5, 12])
@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_group_interval_keeps_its_level_with_few_groups(groups: int, spread: float) -> None:
    rng = np.random.default_rng(groups)
    hits = 0
    for _ in range(250):
        low, high = stats.paired_drop(*subjects(rng, groups, spread))["drop_interval"]
        hits += low <= 0.02 <= high
    assert hits / 250 >= 0.925


def test_other_scores_keep_their_level() -> None:
    rng = np.random.default_rng(7)
    for n in (12, 60):
        hits = 0
        for seed in range(100):
            reference = rng.random(n)
            result = stats.paired_drop(reference, reference - rng.gamma(4, 0.01, n), seed=seed)
            hits += result["drop_interval"][0] <= 0.04 <= result["drop_interval"][1]
        assert hits >= 88
        assert result["test"] == ("paired t" if n == 12 else "paired bootstrap")


def share_that_holds(truth: float, found: Iterable[intervals.Interval | None]) -> float:
    held = [interval is not None and interval[0] <= truth <= interval[1] for interval in found]
    return float(np.mean(held))


def test_heavy_tails_keep_their_level() -> None:
    """Bootstrap percentiles held 92 % of these; tests/bench/coverage.py has all settings, 10,000 times each."""
    rng = np.random.default_rng(10)
    draws = rng.standard_t(3, (700, 40))
    assert 0.94 <= share_that_holds(0, (intervals.mean_interval(own, None) for own in draws)) <= 0.975


def test_bootstrap_is_student_where_that_is_right() -> None:
    for n in (50, 400):
        values = np.random.default_rng(n).normal(3, 1, n)
        expected = oracle.ttest_1samp(values, 0).confidence_interval(0.95)
        found = intervals.mean_interval(values, None)
        assert found is not None
        assert found[1] - found[0] == pytest.approx(expected.high - expected.low, rel=0.06)
        assert sum(found) / 2 == pytest.approx(values.mean())


def test_one_value_among_equals_has_a_finite_interval() -> None:
    values = np.zeros(60)
    values[7] = 0.5
    low, high = intervals.mean_interval(values, None) or (math.nan, math.nan)
    assert low < values.mean() < high < 0.5
    assert intervals.mean_interval(np.full(60, 0.25), None) == (0.25, 0.25)


UNEQUAL = {5: (8, 17, 36, 76, 160), 8: (8, 12, 19, 29, 44, 68, 104, 160)}


@pytest.mark.parametrize("groups", [5, 8])
@pytest.mark.parametrize("within", [0.0, 2.0])
def test_groups_of_unequal_size_keep_their_level(groups: int, within: float) -> None:
    """Student's t on groups - 1 held 89 % of these. within: spread of a group's samples, that between groups being
    1."""
    rng, sizes = np.random.default_rng(groups), np.array(UNEQUAL[groups])
    labels = np.repeat(np.arange(groups), sizes)
    draws = rng.normal(size=(3000, groups)).repeat(sizes, axis=1)
    draws += within * rng.normal(size=draws.shape)
    assert 0.938 <= share_that_holds(0, (intervals.mean_interval(own, labels) for own in draws)) <= 0.965


@given(st.integers(min_value=2, max_value=40), st.integers(min_value=1, max_value=100))
def test_equal_groups_have_students_t(groups: int, size: int) -> None:
    assert group_t((size,) * groups) == stats.student_t(groups - 1)


@pytest.mark.parametrize("sizes", [(1, 9), (10, 20, 90), (8, 17, 36, 76, 160), (5, *[40] * 20)])
def test_unequal_groups_have_the_quantile_of_their_sizes(sizes: tuple[int, ...]) -> None:
    """The definition, group by group, with draws of its own."""
    rng, n = np.random.default_rng(99), sum(sizes)
    ratios = []
    for means in rng.normal(size=(20_000, len(sizes))):
        total = float(means @ sizes)
        without = np.array([(total - m * size) / (n - size) for m, size in zip(means, sizes, strict=True)])
        error = math.sqrt((len(sizes) - 1) / len(sizes) * ((without - total / n) ** 2).sum())
        ratios.append(abs(total / n) / error)
    assert group_t(sizes) == pytest.approx(np.quantile(ratios, 0.95), rel=0.08 if len(sizes) == 2 else 0.04)


def test_paired_tests_keep_their_level_with_groups() -> None:
    """No drop at all: the interval excludes 0 in at most 5 % (here: 4 standard deviations more)."""
    rng, labels = np.random.default_rng(12), np.repeat(np.arange(5), UNEQUAL[5])
    own = 0.15 * rng.uniform(-1, 1, (600, 5))
    held = []
    for drops in own:
        change, reference = rng.random(len(labels)), rng.random(len(labels)) > 0.3
        worse, better = (0.02 + np.maximum(sign * drops, 0)[labels] for sign in (1, -1))
        candidate = np.where(reference, change > worse / 0.7, change < better / 0.3)
        held.append(stats.paired_drop(reference * 1.0, candidate * 1.0, labels)["drop_interval"])
    assert share_that_holds(0.0, held) >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / 600)


def test_the_simulation_of_coverage_runs() -> None:
    script = REPOSITORY / "tests" / "bench" / "coverage.py"
    command = [sys.executable, script, "--only", "share", "ratio", "--experiments", "40", "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert {row["method"] for row in rows} == {"score, Wilson", "ratio of medians"}
    assert all(row["experiments"] == 40 and row["coverage"] >= 0.7 for row in rows)
    assert all(0.93 < row["exact"] < 1 for row in rows)


def test_paired_drop_is_repeatable_and_names_its_test() -> None:
    rng = np.random.default_rng(8)
    reference, candidate, labels = subjects(rng, 3, 0.01)
    plain = stats.paired_drop(reference, candidate)
    grouped = stats.paired_drop(reference, candidate, labels)
    assert plain["test"].startswith("McNemar's exact test, p=")
    assert grouped["test"] == "group jackknife, 3 groups"
    assert grouped["groups"] == 3
    assert plain["groups"] is None
    assert plain["drop"] == pytest.approx(reference.mean() - candidate.mean())
    assert grouped["drop_interval"][0] <= plain["drop_interval"][0]
    assert grouped["drop_interval"][1] >= plain["drop_interval"][1]
    noise = rng.random(100)
    assert stats.paired_drop(noise, noise[::-1], seed=3) == stats.paired_drop(noise, noise[::-1], seed=3)


def test_no_difference_seen_is_not_no_difference() -> None:
    right = np.ones(200)
    assert stats.paired_drop(right, right)["drop_interval"][1] > 0.01
    other = np.linspace(0.1, 0.9, 200)
    assert stats.paired_drop(other, other)["drop_interval"][1] > 0.01
    assert stats.paired_drop(right, right, np.repeat([0, 1], 100))["drop_interval"][1] > 0.01


def test_one_group_decides_nothing() -> None:
    right = np.ones(50)
    result = stats.paired_drop(right, right, np.zeros(50))
    assert result["drop_interval"] is None
    assert stats.verdict(result["drop"], None, 0.01, 50)[0] == "undecided"
    assert stats.score(right, np.zeros(50)).interval is None


@pytest.mark.parametrize(
    ("reference", "candidate", "groups", "said"),
    [
        ([1.0, 0.0], [1.0], None, "same inputs"),
        ([1.0, float("nan")], [1.0, 0.0], None, "finite"),
        ([], [], None, "n >= 1"),
        ([1.0, 0.0], [1.0, 0.0], [1], "one a sample"),
    ],
)
def test_paired_drop_refuses(reference: Any, candidate: Any, groups: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stats.paired_drop(np.array(reference), np.array(candidate), None if groups is None else np.array(groups))


def test_score_intervals() -> None:
    rng = np.random.default_rng(9)
    right = (rng.random(512) < 0.87).astype(float)
    assert stats.score(right).interval == intervals.wilson(int(right.sum()), 512)
    labels = np.repeat(np.arange(4), 128)
    low, high = stats.score(right, labels).interval or (math.nan, math.nan)
    plain = intervals.wilson(int(right.sum()), 512)
    assert 0 <= low <= plain[0] < plain[1] <= high <= 1
    graded = rng.random(300)
    interval = stats.score(graded).interval
    assert interval is not None
    assert interval[0] < graded.mean() < interval[1]


@pytest.mark.parametrize(
    ("drop", "interval", "expected", "said"),
    [
        (0.004, (-0.001, 0.009), "pass", "worse end is within"),
        (0.01, (0.01, 0.01), "pass", "worse end"),
        (0.05, (0.02, 0.08), "fail", "better end is outside"),
        (0.004, (-0.02, 0.028), "undecided", "point estimate inside the floor; needs about n=8,000"),
        (0.02, (0.0, 0.04), "undecided", "point estimate outside the floor; needs about n=2,000"),
        (0.01, (0.0, 0.02), "undecided", "inside the floor"),
        (0.0099999, (0.0, 0.02), "undecided", "10,000,000 or more"),
    ],
)
def test_verdicts(drop: float, interval: tuple[float, float], expected: str, said: str) -> None:
    result, reason = stats.verdict(drop, interval, 0.01, 500)
    assert result == expected
    assert said in reason or "no n would decide" in reason


def test_verdict_counts_groups_with_the_t_that_they_would_have() -> None:
    _, reason = stats.verdict(0.0, (-0.043, 0.043), 0.01, 450, groups=3)
    assert reason == "point estimate inside the floor; needs about 14 groups (n=2,100)"


def test_worst_class_leaves_out_small_ones() -> None:
    labels = np.array(["a"] * 30 + ["b"] * 30 + ["c"] * 5)
    scores = np.concatenate([np.ones(30), np.ones(20), np.zeros(10), np.zeros(5)])
    worst = stats.worst_class(scores, labels)
    assert worst == {"label": "b", "value": pytest.approx(2 / 3), "n": 30, "invalid": None, "too_few": 1}
    none = stats.worst_class(scores, labels, minimum=50)
    assert none == {"label": None, "value": None, "n": 30, "invalid": "n=30, needs 50", "too_few": 3}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_agreement_is_a_share(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs).T
    assert stats.agreement(a, b) == pytest.approx(sum(x == y for x, y in pairs) / len(pairs))
    assert stats.agreement(a, a) == 1.0


def test_agreement_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="need two"):
        stats.agreement(np.zeros(3), np.zeros(4))
