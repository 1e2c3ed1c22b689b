"""Quantiles of the distributions that intervals rest on; scipy is the tests' oracle for them, and no dependency."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TAIL = 0.025
Z = NormalDist().inv_cdf(1 - TAIL)
GROUP_DRAWS = 20_000
MOST_DRAWN = 20_000_000  # numbers, so that thousands of groups take a second, too


@lru_cache(maxsize=256)
def student_t(freedom: int) -> float:
    """97.5 % quantile of Student's t for whole degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    if freedom > 2000:
        return Z
    return math.sqrt(freedom) * math.tan(bisect(lambda a: _inside_t(a, freedom) < 1 - 2 * TAIL, 0, math.pi / 2))


def _inside_t(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) tan(angle))."""
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    total = math.sin(angle) * total if freedom > 1 else 0.0
    return 2 / math.pi * (angle + total) if odd else total


def group_error(sums: Floats, counts: Floats) -> Floats:
    """Delete-one-group jackknife error of the mean over all samples; sums (..., groups) of each group's values, counts
    (groups,). Returns (...,)."""
    n, groups = counts.sum(), len(counts)
    without = (sums.sum(axis=-1, keepdims=True) - sums) / (n - counts)
    away = without - sums.sum(axis=-1, keepdims=True) / n
    error: Floats = np.sqrt((groups - 1) / groups * (away**2).sum(axis=-1))
    return error


@lru_cache(maxsize=64)
def group_t(counts: tuple[int, ...]) -> float:
    """What Student's t is to groups of unequal size: 95 % quantile of |mean| / `group_error` for groups whose own means
    are normal and equally spread; with counts all equal that is Student's t on groups - 1, exactly.

    The ratio's distribution depends on nothing but the sizes, so it is drawn (Monte Carlo, seeded; 20,000 draws give it
    to 1 or 2 %). With sizes of 1:20 Student's t covers 89 % where there are 5 or 8 groups, and with the Satterthwaite
    degrees of freedom of Bell and McCaffrey (Survey Methodology 28, 2002: 169-181) 99 %.
    """
    groups = len(counts)
    if len(set(counts)) == 1:
        return student_t(groups - 1)
    sizes, rng, ratios = np.array(counts, dtype=np.float64), np.random.default_rng(0), []
    draws = max(1000, min(GROUP_DRAWS, MOST_DRAWN // groups))
    step = max(1, 1_000_000 // groups)
    for start in range(0, draws, step):
        sums = rng.normal(size=(min(step, draws - start), groups)) * sizes
        ratios.append(np.abs(sums.sum(axis=-1)) / sizes.sum() / group_error(sums, sizes))
    return float(np.quantile(np.concatenate(ratios), 1 - 2 * TAIL))


def binomial_cdf(n: int, p: float) -> tuple[int, Floats]:
    """Where Binomial(n, p) has all but 1e-30 of its mass: the first outcome, and P(X <= outcome) from there on."""
    reach = 12 * math.sqrt(n * p * (1 - p)) + 40
    first, last = max(0, math.floor(n * p - reach)), min(n, math.ceil(n * p + reach))
    k = np.arange(first, last, dtype=np.float64)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k) / (k + 1)) + math.log(p / (1 - p)))])
    mass = np.exp(logs - logs.max())
    return first, np.cumsum(mass / mass.sum())


def at_most(k: int, n: int, p: float) -> float:
    first, cumulative = binomial_cdf(n, p)
    return 0.0 if k < first else float(cumulative[min(k - first, len(cumulative) - 1)])


def bisect(before: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if before(middle) else (low, middle)
    return (low + high) / 2


def smallest_count(passes: Callable[[int], bool], start: int) -> int:
    """Smallest count from `start` that passes, where every greater one does too."""
    low, high = start - 1, start
    while not passes(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
