"""Raw samples in, figures with interval (95 %) and validity out; SI units. A percentile's interval takes samples for
independent; neighbouring latencies are not, so it is the least of the uncertainty. Two artifacts are compared by
`ratio_of_medians` alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import intervals
from .distributions import TAIL, smallest_count
from .distributions import Floats as Floats
from .distributions import student_t as student_t
from .intervals import Interval

DRIFT_TOLERANCE = 0.05


@dataclass(frozen=True)
class Figure:
    """One number with what it rests on. `value` is None where nothing valid can be said; `invalid` then says why
    ("n=40, needs 64"). `n` counts what the figure was made from; `how`: "measured", "estimated" or "simulated"."""

    value: float | None
    interval: Interval | None
    n: int
    how: str = "measured"
    invalid: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The form that run.json keeps."""
        return asdict(self) | {"interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True)
class Mode:
    """How long to measure an artifact: until both minima are met, and never longer than `max_seconds`; in how many
    rounds, how many samples of a block to keep (None: all); where artifacts are compared, after how many rounds to
    begin with new processes (0: never), and how long a block of A B B A lasts at least: a round has as many turns of
    these as it has time for, since a neighbour on the host comes and goes within a second.

    Twelve rounds give the ratio's order-statistics interval 96 % confidence within one job."""

    min_queries: int
    min_seconds: float
    max_seconds: float = 600.0
    rounds: int = 12
    keep: int | None = None
    renew: int = 1
    block_s: float = 0.025


KEPT = 20_000  # samples of a block
MODES = {
    "rapid": Mode(64, 6.0, keep=KEPT),
    "quick": Mode(256, 10.0, keep=KEPT),
    "normal": Mode(1024, 60.0, keep=KEPT),
}
SUSTAINED = "sustained"  # no fixed length: `sustained`


def sustained(minutes: float, artifacts: int) -> Mode:
    """The mode for a run of `minutes` in all, in which `artifacts` take turns in blocks of five seconds."""
    seconds = minutes * 60 / artifacts
    return Mode(64, seconds, 1.5 * seconds, max(12, math.ceil(seconds / 10)), 200, 0, seconds)


@lru_cache(maxsize=64)
def early_stopping_minimum(percentile: float, confidence: float = 0.99) -> int:
    """Smallest count at which a percentile (in percent) may be given: 64, 130, 219, 662, 6,636 for p90 … p99.9.

    MLPerf's early stopping, single-stream scenario (mlcommons/inference, loadgen/early_stopping.cc and results.cc):
    with t queries above a bound and h within it, the percentile p is proven to lie within when
    P(Binomial(h + t, 1 - p) <= t) = I_p(h, t + 1) < 1 - confidence (I: regularized incomplete beta). The least t that
    LoadGen takes is 1, so the minimum is the smallest n = h + 1 with p^n + n (1 - p) p^(n - 1) < 1 - confidence.
    """
    if not (0 < percentile < 100 and 0 < confidence < 1):
        raise ValueError(f"percentile {percentile} must be within 0…100 and confidence {confidence} within 0…1")
    p = percentile / 100
    return smallest_count(lambda n: p**n + n * (1 - p) * p ** (n - 1) < 1 - confidence, 2)


def percentile_figure(seconds: Floats, percentile: float) -> Figure:
    """The percentile (in percent) of seconds (n,); without value where n is below `early_stopping_minimum`."""
    n = len(seconds)
    if n < (needs := early_stopping_minimum(percentile)):
        return Figure(None, None, n, invalid=f"n={n}, needs {needs}")
    return Figure(float(np.percentile(seconds, percentile)), _enclosed(seconds, percentile / 100), n)


def summarize(seconds: Floats, mode: str) -> dict[str, Any]:
    """Latency of single invokes: seconds (n,), each > 0. Keys: mode, n, duration_s (their sum), and the Figures p50_s,
    p90_s, p95_s, p99_s, mean_s, min_s. "rapid" gives no p95 and p99. `summary_to_json` makes run.json's form.
    Raises ValueError for an unknown mode and for samples that are not finite and positive.
    """
    if mode not in (*MODES, SUSTAINED):
        raise ValueError(f"mode {mode!r} is unknown; allowed: {', '.join((*MODES, SUSTAINED))}")
    seconds, n = _times(seconds), len(seconds)
    figures = {f"p{p}_s": percentile_figure(seconds, p) for p in (50, 90, 95, 99)}
    if mode == "rapid":
        figures |= dict.fromkeys(("p95_s", "p99_s"), Figure(None, None, n, invalid="not given in rapid mode"))
    for name, function in (("mean_s", np.mean), ("min_s", np.min)):
        figures[name] = (
            Figure(float(function(seconds)), None, n) if n else Figure(None, None, 0, invalid="n=0, needs 1")
        )
    return {"mode": mode, "n": n, "duration_s": float(seconds.sum()), **figures}


def summary_to_json(summary: dict[str, Any]) -> dict[str, Any]:
    """A dictionary with Figures among its values, in plain JSON values."""
    return {key: value.to_json() if isinstance(value, Figure) else value for key, value in summary.items()}


def ratio_of_medians(a_blocks: Sequence[Floats], b_blocks: Sequence[Floats], turns: int = 1) -> Figure:
    """median(a) / median(b) from alternating blocks (A B B A, or A B C C B A: blocks 2t and 2t + 1 are turn t).
    Each block is (n_i,) seconds. A turn gives the ratio of its pooled medians: a drift in a straight line through it
    meets both alike and cancels. turns: so many in a row are a round, whose ratio is their median; the same processes
    ran them, so they are not independent. The value is the median over rounds, with its order-statistics interval,
    which needs six rounds; with fewer the value stays, the interval is None, `invalid` says so, and no verdict may rest
    on it. `n` counts rounds. Raises ValueError when the blocks are not whole turns or one is empty.
    """
    a, b = [_times(block) for block in a_blocks], [_times(block) for block in b_blocks]
    if len(a) != len(b) or len(a) % 2 or not a or not all(map(len, (*a, *b))):
        raise ValueError(f"{len(a)} and {len(b)} blocks are not whole turns of A B B A, or one is empty")
    medians = [np.median(np.concatenate(side[i : i + 2])) for side in (a, b) for i in range(0, len(side), 2)]
    of_turns = np.divide(*np.split(np.array(medians), 2))
    ratios = np.array([np.median(of_turns[i : i + turns]) for i in range(0, len(of_turns), turns)])
    rounds, interval = len(ratios), _enclosed(ratios, 0.5)
    invalid = None if interval else f"n={rounds} rounds, needs 6"
    return Figure(float(np.median(ratios)), interval, rounds, invalid=invalid)


@dataclass(frozen=True)
class Drift:
    """`ratio` is second half / first half; both are None when there are too few samples to tell."""

    drifted: bool | None
    ratio: float | None
    reason: str


def drift(blocks: Sequence[Floats]) -> Drift:
    """Whether the second half of one artifact's samples departs from its first. blocks: (n_i,) seconds, in order.
    They are cut into ten consecutive pieces: of equally many blocks (a slow half has fewer samples, not less time), of
    equally many samples where there are fewer blocks. The run has drifted when the halves' median piece
    medians differ by more than 5 % *and* the pieces are apart by the exact rank-sum test of five against five (U <= 2,
    two-sided level 0.032): the first keeps harmless differences quiet, the second a single disturbance. Needs 80.
    """
    seconds = _times(np.concatenate([np.zeros(0), *blocks]))
    if len(seconds) < 80:
        return Drift(None, None, f"n={len(seconds)}, needs 80")
    if len(blocks) >= 10:
        edges = [number * len(blocks) // 10 for number in range(11)]
        pieces = [np.concatenate(blocks[first:last]) for first, last in itertools.pairwise(edges)]
    else:
        pieces = np.array_split(seconds, 10)
    medians = np.array([np.median(piece) for piece in pieces])
    ratio = float(np.median(medians[5:]) / np.median(medians[:5]))
    larger = float((np.sign(medians[5:, None] - medians[None, :5]) + 1).sum() / 2)
    apart = min(larger, 25 - larger) <= 2
    if apart and max(ratio, 1 / ratio) > 1 + DRIFT_TOLERANCE:
        return Drift(True, ratio, f"the second half is {'slower' if ratio > 1 else 'faster'}, ratio {ratio:.3f}")
    return Drift(False, ratio, f"the halves agree, ratio {ratio:.3f}")


def score(scores: Floats, groups: NDArray[Any] | None = None, seed: int = 0) -> Figure:
    """Mean of scores (n,), with Wilson's interval for right/wrong (0 and 1), else `mean_interval`; with groups (n,) the
    one over groups, never narrower than without."""
    values = _scores(scores)
    binary = bool(np.isin(values, (0, 1)).all())
    right = int(values.sum())
    interval = intervals.wilson(right, len(values)) if binary else intervals.mean_interval(values, None, seed)
    interval = _with_groups(interval, values, groups, (0.0, 1.0) if binary else None)
    return Figure(float(values.mean()), interval, len(values))


def paired_drop(
    reference_scores: Floats, candidate_scores: Floats, groups: NDArray[Any] | None = None, seed: int = 0
) -> dict[str, Any]:
    """{drop, drop_interval, test, n, groups}: mean(reference) - mean(candidate) on identical inputs, all (n,).

    Right/wrong without groups: `mcnemar_interval`. Other scores: paired bootstrap (t below 20). Groups (subjects,
    speakers): the jackknife of `mean_interval`, since the question is the next group; never narrower than without
    groups, as a few groups may agree by chance: where groups do not differ at all it therefore covers 96-99 %. With
    three groups "undecided" is the usual and honest answer; one alone gives no interval.
    """
    reference, candidate = _scores(reference_scores), _scores(candidate_scores)
    if len(reference) != len(candidate):
        raise ValueError(f"{len(reference)} reference and {len(candidate)} candidate scores: need the same inputs")
    differences, n = reference - candidate, len(reference)
    binary = bool(np.isin((reference, candidate), (0, 1)).all())
    if binary:
        worse, better = int((differences > 0).sum()), int((differences < 0).sum())
        interval: Interval | None = intervals.mcnemar_interval(worse, better, n)
        test = f"McNemar's exact test, p={intervals.mcnemar_p(worse, better):.2g}"
    elif not differences.any():
        # No sample differed: up to 1 - 0.025^(1/n) of all may (Clopper-Pearson at 0 of n), by the size of the scores.
        most = (1 - TAIL ** (1 / n)) * float(np.abs(reference).max())
        interval, test = (-most, most), "bound from n samples without a difference"
    else:
        interval = intervals.mean_interval(differences, None, seed)
        test = "paired bootstrap" if n >= intervals.BOOTSTRAP_FROM else "paired t"
    interval = _with_groups(interval, differences, groups, (-1.0, 1.0) if binary else None)
    count = None if groups is None else len(np.unique(groups))
    if count is not None:
        test = f"group jackknife, {count} groups" if count > 1 else "none: one group says nothing of others"
    return {"drop": float(differences.mean()), "drop_interval": interval, "test": test, "n": n, "groups": count}


def verdict(drop: float, interval: Interval | None, floor: float, n: int, groups: int | None = None) -> tuple[str, str]:
    """("pass" | "fail" | "undecided", reason) for a drop against the floor, the greatest drop allowed.

    Pass: the interval's worse (upper) end is within the floor. Fail: its better end is outside. Else undecided, with
    about the n (and groups, where given) that would decide if the point estimate stayed where it is.
    """
    side = "inside" if drop <= floor else "outside"
    if interval is None:
        return "undecided", f"point estimate {side} the floor; no interval from one sample or group, needs at least 2"
    low, high = interval
    if high <= floor:
        return "pass", "the interval's worse end is within the floor"
    if low > floor:
        return "fail", "the interval's better end is outside the floor"
    gap, half = abs(floor - drop), high - drop if drop <= floor else drop - low
    if gap == 0:
        return "undecided", "point estimate on the floor; no n would decide"
    more = f"about n={_two_digits(n * (half / gap) ** 2)}"
    if groups is not None and groups > 1:
        error = half / student_t(groups - 1) * math.sqrt(groups)
        enough = smallest_count(lambda g: student_t(g - 1) * error <= gap * math.sqrt(g), groups + 1)
        more = f"about {_two_digits(enough)} groups (n={_two_digits(n * enough / groups)})"
    return "undecided", f"point estimate {side} the floor; needs {more}"


def worst_class(scores: Floats, labels: NDArray[Any], minimum: int = 20) -> dict[str, Any]:
    """{label, value, n, invalid, too_few}: the class of lowest mean score among those with `minimum` samples.

    scores, labels: (n,). too_few counts the classes left out; when all are, label and value are None, n is the
    largest class's count and invalid says "n=…, needs …".
    """
    values = _scores(scores)
    names, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.where(counts >= minimum, np.bincount(index, weights=values) / counts, np.inf)
    worst, largest, too_few = int(np.argmin(means)), int(counts.max()), int((counts < minimum).sum())
    if too_few == len(names):
        label, value, n, invalid = None, None, largest, f"n={largest}, needs {minimum}"
    else:
        label, value, n, invalid = names[worst].item(), float(means[worst]), int(counts[worst]), None
    return {"label": label, "value": value, "n": n, "invalid": invalid, "too_few": too_few}


def agreement(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Share of inputs on which two decisions (n,) are equal; NaN agrees with nothing."""
    if np.ndim(a) != 1 or np.shape(a) != np.shape(b) or len(a) == 0:
        raise ValueError(f"decisions of shapes {np.shape(a)} and {np.shape(b)}: need two of (n,), n >= 1")
    return float(np.mean(np.asarray(a) == np.asarray(b)))


def _enclosed(values: Floats, p: float) -> Interval | None:
    ranks, ordered = intervals.rank_interval(len(values), p), np.sort(values)
    return None if ranks is None else (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]))


def _with_groups(
    interval: Interval | None, values: Floats, groups: NDArray[Any] | None, limits: Interval | None
) -> Interval | None:
    if groups is None:
        return interval
    if np.shape(groups) != values.shape:
        raise ValueError(f"groups of shape {np.shape(groups)} for scores of shape {values.shape}: need one a sample")
    over = intervals.mean_interval(values, groups)
    if interval is None or over is None:
        return None
    low, high = min(interval[0], over[0]), max(interval[1], over[1])
    return (low, high) if limits is None else (max(limits[0], low), min(limits[1], high))


def _two_digits(count: float) -> str:
    if count > 1e7:
        return "10,000,000 or more"
    step = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return f"{math.ceil(count / step) * step:,}"


def _times(seconds: Floats) -> Floats:
    if np.ndim(seconds) != 1 or not np.isfinite(seconds).all() or (np.asarray(seconds) <= 0).any():
        raise ValueError(f"latencies of shape {np.shape(seconds)} must be (n,), finite and above zero")
    return np.asarray(seconds, dtype=np.float64)


def _scores(scores: Floats) -> Floats:
    if np.ndim(scores) != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError(f"scores of shape {np.shape(scores)} must be (n,), n >= 1, and finite")
    return np.asarray(scores, dtype=np.float64)
