"""How often the intervals of `edgeopt.stats` hold the truth: 10,000 simulated experiments a setting, as a table.

python tests/bench/coverage.py [--only group] [--experiments 10000] [--seconds 60] [--json]

Every experiment draws new samples from a population whose truth is known and asks the public functions of stats. The
bar is 94 to 96 %. `below` and `above`: the interval lay wholly below or above the truth; `below` is how often a drop
that is exactly on the floor would pass. `level`: how often the paired test rejects a true hypothesis at 5 %. `exact`:
what theory says for order statistics and counts, whose coverage moves in steps. No setting takes longer than --seconds;
it then says how many experiments it made.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeopt import distributions, intervals, stats

LOW, HIGH = 0.94, 0.96
DROPS = (0.0, 0.005, 0.02)
Draw = Callable[[np.random.Generator], tuple[intervals.Interval | None, bool | None]]


@dataclass(frozen=True)
class Setting:
    """`draw` makes one experiment: (the interval, whether the test rejects the truth; None: the interval is the
    test)."""

    method: str
    n: str
    what: str
    truth: float
    draw: Draw
    exact: float | None = None


@dataclass(frozen=True)
class Row:
    method: str
    n: str
    what: str
    experiments: int
    coverage: float
    below: float
    above: float
    level: float | None
    exact: float | None
    within: bool
    width: float


def simulate(setting: Setting, experiments: int, seconds: float, seed: int) -> Row:
    """One setting's row; each experiment is seeded by its number alone."""
    rng = np.random.default_rng([seed, len(setting.what), len(setting.n)])
    below = above = rejected = done = 0
    tested, widths, end = False, 0.0, time.monotonic() + seconds
    while done < experiments and time.monotonic() < end:
        interval, rejects = setting.draw(rng)
        assert interval is not None, f"{setting.method}, {setting.n}, {setting.what}: no interval"
        below += interval[1] < setting.truth - 1e-12
        above += interval[0] > setting.truth + 1e-12
        rejected += bool(rejects)
        tested |= rejects is not None
        widths += interval[1] - interval[0]
        done += 1
    coverage = 1 - (below + above) / done
    names = (setting.method, setting.n, setting.what, done, coverage, below / done, above / done)
    level = rejected / done if tested else None
    return Row(*names, level, setting.exact, LOW <= coverage <= HIGH, widths / done)


# Shares and percentiles


def share_settings() -> Iterator[Setting]:
    for n in (100, 200, 1000, 5000):
        for share in (0.72, 0.9, 0.97):

            def draw(rng: np.random.Generator, n: int = n, share: float = share) -> Any:
                right = np.zeros(n)
                right[: rng.binomial(n, share)] = 1
                return stats.score(right).interval, None

            yield Setting("score, Wilson", f"n={n}", f"share {share}", share, draw, _exact_wilson(n, share))


def _exact_wilson(n: int, share: float) -> float:
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    mass = [math.exp(log + k * math.log(share) + (n - k) * math.log(1 - share)) for k, log in enumerate(logs)]
    return sum(mass[k] for k in range(n + 1) if intervals.wilson(k, n)[0] <= share <= intervals.wilson(k, n)[1])


def percentile_settings() -> Iterator[Setting]:
    for percentile, counts in ((50, (64, 256, 1024)), (90, (64, 256, 1024)), (95, (256, 1024)), (99, (1024,))):
        truth = math.exp(0.3 * statistics.NormalDist().inv_cdf(percentile / 100))
        for n in counts:

            def draw(rng: np.random.Generator, n: int = n, percentile: int = percentile) -> Any:
                return stats.percentile_figure(rng.lognormal(0, 0.3, n), percentile).interval, None

            yield Setting(f"percentile p{percentile}", f"n={n}", "lognormal", truth, draw, _exact_ranks(n, percentile))


def _exact_ranks(n: int, percentile: float) -> float:
    ranks = intervals.rank_interval(n, percentile / 100)
    assert ranks is not None
    first, cumulative = distributions.binomial_cdf(n, percentile / 100)
    below = np.concatenate([np.zeros(first), cumulative, np.ones(n)])
    return float(below[ranks[1] - 1] - below[ranks[0] - 1])


def ratio_settings() -> Iterator[Setting]:
    for rounds in (6, 8, 12, 20):
        for what, wander, gain in (("steady", 0.0, 1.0), ("speed wanders", 0.2, 1.0), ("speed wanders", 0.2, 0.5)):

            def draw(rng: np.random.Generator, rounds: int = rounds, wander: float = wander, gain: float = gain) -> Any:
                speed = np.repeat(rng.lognormal(0, wander, rounds) if wander else np.ones(rounds), 2)[:, None]
                sides = 1e-3 * speed * rng.gamma(100, 0.01, (2, 2 * rounds, 21))
                return stats.ratio_of_medians(list(sides[0] * gain), list(sides[1])).interval, None

            exact = _exact_ranks(rounds, 50)
            yield Setting("ratio of medians", f"{rounds} rounds", f"{what}, ratio {gain:g}", gain, draw, exact)


# Paired drops


def binary_settings() -> Iterator[Setting]:
    """Right and wrong without groups: better is the share that only the candidate has right."""
    for n in (100, 300, 1000, 5000):
        for drop in DROPS:
            for better in (0.0, 0.005, 0.02, 0.05):
                if drop + better == 0:
                    continue

                def draw(rng: np.random.Generator, n: int = n, drop: float = drop, better: float = better) -> Any:
                    worse, gained, _ = rng.multinomial(n, [drop + better, better, 1 - drop - 2 * better])
                    rejects = intervals.mcnemar_p(int(worse), int(gained)) <= 0.05 if drop == 0 else None
                    return intervals.mcnemar_interval(int(worse), int(gained), n), rejects

                what = f"drop {drop:g}, better {better:g}"
                yield Setting("paired, McNemar and Tango", f"n={n}", what, drop, draw)


def normal(rng: np.random.Generator, n: int) -> Any:
    return rng.normal(0, 0.05, n)


def skewed(rng: np.random.Generator, n: int) -> Any:
    return rng.gamma(1, 0.05, n) - 0.05


def heavy(rng: np.random.Generator, n: int) -> Any:
    return rng.standard_t(3, n) * 0.03


def sparse(rng: np.random.Generator, n: int) -> Any:
    """Nine in ten samples do not differ at all."""
    return np.where(rng.random(n) < 0.1, rng.normal(0, 0.3, n), 0.0)


def graded_settings() -> Iterator[Setting]:
    for n in (12, 40, 100, 300, 1000):
        for noise in (normal, skewed, heavy, sparse):
            if noise is sparse and n < 100:
                continue
            for drop in DROPS if n == 300 else DROPS[2:]:

                def draw(
                    rng: np.random.Generator,
                    n: int = n,
                    drop: float = drop,
                    noise: Callable[[np.random.Generator, int], Any] = noise,
                ) -> Any:
                    reference = rng.normal(-1, 0.3, n)
                    return stats.paired_drop(reference, reference - drop - noise(rng, n))["drop_interval"], None

                what = f"drop {drop:g}, {noise.__name__} differences"
                yield Setting("paired, other scores", f"n={n}", what, drop, draw)


# Groups


def sizes_of(groups: int, shape: str) -> Any:
    """Samples of each group: all 40, from 15 to 75, or from 8 to 160 in equal ratios."""
    if shape == "equal":
        return np.full(groups, 40)
    if shape == "1:5":
        return np.linspace(15, 75, groups).round().astype(int)
    return np.geomspace(8, 160, groups).round().astype(int)


def group_settings() -> Iterator[Setting]:
    """Groups differ in how hard they are, and in what the candidate loses there (`spread`, a standard deviation)."""
    for groups in (3, 5, 8, 20, 50):
        for shape in ("equal", "1:5", "1:20"):
            for spread in (0.0, 0.03, 0.1):
                for drop in DROPS if (shape, spread) == ("1:5", 0.03) else DROPS[2:]:
                    draw = functools.partial(_grouped, sizes=sizes_of(groups, shape), drop=drop, spread=spread)
                    what = f"sizes {shape}, drop {drop:g}, spread {spread:g}"
                    yield Setting("paired, groups, right/wrong", f"{groups} groups", what, drop, draw)
    for groups in (5, 8, 20, 50):
        for shape in ("1:5", "1:20"):
            draw = functools.partial(_graded_groups, sizes=sizes_of(groups, shape), drop=0.02)
            yield Setting("paired, groups, other scores", f"{groups} groups", f"sizes {shape}, drop 0.02", 0.02, draw)
            draw = functools.partial(_score_groups, sizes=sizes_of(groups, shape))
            yield Setting("score, groups", f"{groups} groups", f"sizes {shape}, share 0.85", 0.85, draw)


def _grouped(rng: np.random.Generator, sizes: Any, drop: float, spread: float) -> Any:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    # uniform, so that no probability is cut off and the mean drop stays what it is said to be
    own = drop + spread * math.sqrt(3) * rng.uniform(-1, 1, len(sizes))
    wrong = rng.uniform(0.2, 0.35, len(sizes))
    draw, change = rng.random(len(labels)), rng.random(len(labels))
    reference = draw > wrong[labels]
    # of every sample alike 2 % change in each direction, and what the group loses or gains comes on top
    worse = 0.02 + np.maximum(own, 0)
    better = 0.02 + np.maximum(-own, 0)
    candidate = np.where(
        reference,
        change > (worse / (1 - wrong))[labels],
        change < (better / wrong)[labels],
    )
    return stats.paired_drop(reference.astype(float), candidate.astype(float), labels)["drop_interval"], None


def _graded_groups(rng: np.random.Generator, sizes: Any, drop: float) -> Any:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    lost = drop + 0.03 * rng.normal(size=len(sizes))[labels] + skewed(rng, len(labels))
    reference = rng.normal(-1, 0.3, len(labels))
    return stats.paired_drop(reference, reference - lost, labels)["drop_interval"], None


def _score_groups(rng: np.random.Generator, sizes: Any) -> Any:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    share = rng.beta(0.85 * 20, 0.15 * 20, len(sizes))[labels]
    return stats.score((rng.random(len(labels)) < share).astype(float), labels).interval, None


FAMILIES = {
    "share": share_settings,
    "percentile": percentile_settings,
    "ratio": ratio_settings,
    "binary": binary_settings,
    "graded": graded_settings,
    "group": group_settings,
}


def text(rows: list[Row]) -> str:
    right = "".join(f"{name:>7}" for name in ("below", "above", "level", "exact"))
    lines = [f"{'method':<29}{'n':<11}{'setting':<38}{'runs':>7}{'coverage':>9}{right}"]
    for row in rows:
        level = "" if row.level is None else f"{row.level:.1%}"
        exact = "" if row.exact is None else f"{row.exact:.1%}"
        mark = "" if row.within else "  outside"
        lines.append(
            f"{row.method:<29}{row.n:<11}{row.what:<38}{row.experiments:>7}{row.coverage:>9.2%}{row.below:>7.1%}{row.above:>7.1%}"
            f"{level:>7}{exact:>7}{mark}"
        )
    within = sum(row.within for row in rows)
    return "\n".join([*lines, f"{within} of {len(rows)} settings within {LOW:.0%} to {HIGH:.0%}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAMILIES, nargs="*", default=list(FAMILIES))
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="most time of one setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # The same functions, remembered: counts of disagreements repeat, and so do the resamples of one seed. Coverage does
    # not depend on how many there are (Hall, Annals of Statistics 14, 1986: 1453-1462).
    intervals.mcnemar_interval = functools.lru_cache(maxsize=None)(intervals.mcnemar_interval)
    resamples, intervals.RESAMPLES = intervals._resamples, 199
    intervals._resamples = functools.lru_cache(maxsize=2)(lambda n, seed: list(resamples(n, seed)))
    rows = []
    for name in options.only:
        settings = list(FAMILIES[name]())
        for number, setting in enumerate(settings, 1):
            print(f"\r{name}: {number} of {len(settings)}    ", end="", file=sys.stderr, flush=True)
            rows.append(simulate(setting, options.experiments, options.seconds, options.seed))
    print(file=sys.stderr)
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else text(rows))


if __name__ == "__main__":
    main()
