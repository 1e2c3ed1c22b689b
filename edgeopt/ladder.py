"""The ladder: what to try next, what a trial is worth, which candidate is chosen. Pure functions, and the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .plan import BUDGETS, OF_ENERGY, Frequency, Lower, Plan, Prune, Step, Threads
from .stats import Figure

# What a rung may bring of each objective, before it is measured: float16 weights are half of the size, int8 ones a
# quarter; of the MACs that pruning takes away, latency loses about half (Torch-Pruning's ResNet-50: 2.04x fewer MACs,
# 1.35x faster); threads beyond the first share about two thirds of the work. Joules go with the time, as watts at work
# change little; more threads draw more of them meanwhile, and a lower clock draws fewer for longer.
FP16_GAIN = {"latency_p50_s": 0.0, "size_bytes": 0.5, "peak_memory_bytes": 0.0, "energy_j": 0.0, "power_w": 0.0}
COMPUTE_GAIN = {"latency_p50_s": 0.3, "size_bytes": 0.5, "peak_memory_bytes": 0.2, "energy_j": 0.3, "power_w": 0.0}
THREADED_SHARE = {"latency_p50_s": 0.65, "size_bytes": 0.0, "peak_memory_bytes": 0.0, "energy_j": 0.2, "power_w": 0.0}
INT8_GAIN = {"latency_p50_s": 0.4, "size_bytes": 0.7, "peak_memory_bytes": 0.4, "energy_j": 0.4, "power_w": 0.0}
NPU_GAIN = {"latency_p50_s": 0.5, "size_bytes": 0.1, "peak_memory_bytes": 0.0, "energy_j": 0.5, "power_w": 0.3}
PRUNED_SHARE = {"latency_p50_s": 0.5, "size_bytes": 1.0, "peak_memory_bytes": 0.5, "energy_j": 0.5, "power_w": 0.0}
SPARED_SHARE = {"energy_j": 0.2, "power_w": 0.5}  # of the threads or the clock that are taken away
# Two processes of one artifact differ by about this much in median latency, whatever the interval within a job says.
MARGIN = 0.02
NAMED = 4  # operators
FAITHFUL = 0.99  # of decisions as the source model's: an int8 scheme that keeps so many needs no other
WORDS = {
    "latency_p50_s": "median latency",
    "size_bytes": "file size",
    "peak_memory_bytes": "peak memory",
    "energy_j": "energy of one inference",
    "power_w": "power at work",
}
FIGURES = {"energy_j": "gross_j", "power_w": "work_w"}  # of a trial's energy


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The steps that make one candidate, in the flow's order."""

    name: str
    rung: str
    steps: tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why climbing ends."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate with what was found of it. Axes are ratios to the baseline of the same job.

    score, drop: on selection; drop is the source model's score less this one's. agreement: with the source model.
    objective: ratio to the baseline; step: the same against the best trial so far, from the same job's blocks.
    `record` holds the rest of what run.json says.
    """

    recipe: Recipe
    values: dict[str, float | None]  # the budgeted quantities, absolute, in the plan's terms
    objective: Figure
    step: Figure
    score: float
    drop: float
    agreement: float | None
    record: dict[str, Any]
    verdict: str = ""
    reason: str = ""


def propose(plan: Plan, trials: Sequence[Trial]) -> Recipe | Stop:
    """The next recipe, conservative first, or why none is worth trying."""
    tried = {trial.recipe.name for trial in trials}
    skipped: list[str] = []
    for recipe, gain in _candidates(plan, trials):
        if recipe.name in tried:
            continue
        if gain is not None and gain < plan.min_gain and not broken_budgets(plan, incumbent(trials)):
            skipped.append(f"{recipe.name} promises about {gain:.0%} less {WORDS[plan.objective]}")
            continue
        return recipe
    if not skipped:
        return Stop("no rung is left to try")
    met = "meets every budget" if plan.budgets else "has no budget to meet"
    return Stop(
        f"'{incumbent(trials).recipe.name}' {met}, and {', '.join(skipped)}, below [ladder] min_gain = "
        f"{plan.min_gain:.0%}"
    )


def _candidates(plan: Plan, trials: Sequence[Trial]) -> Iterator[tuple[Recipe, float | None]]:
    """Recipes in the ladder's order, each with the gain that it may bring (None: it is not for the gain's sake)."""
    yield Recipe("fp32", "fp32", (Lower(plan.runtime, "fp32"),)), None
    for rung, recipes in RECIPES.items():
        if rung in plan.rungs:
            yield from recipes(plan, trials)


def _fp16(plan: Plan, _trials: Sequence[Trial]) -> Iterator[tuple[Recipe, float | None]]:
    for scheme in plan.schemes.get("fp16", ()):
        gains = COMPUTE_GAIN if scheme.endswith("compute") else FP16_GAIN
        yield Recipe(scheme, "fp16", (Lower(plan.runtime, scheme),)), gains[plan.objective]


def _int8(plan: Plan, trials: Sequence[Trial]) -> Iterator[tuple[Recipe, float | None]]:
    """The first scheme for its gain; the others, as long as quantizing has cost something, to repair that. They are
    slower by design, so where the first was no gain, none of them is."""
    schemes = plan.schemes.get("int8", ())
    for number, scheme in enumerate(schemes):
        done = [trial for trial in trials if trial.recipe.name in schemes[:number]]
        if done and _is_no_gain(done[0]):
            return
        if any(trial.drop <= 0 and (trial.agreement is None or trial.agreement >= FAITHFUL) for trial in done):
            return
        yield Recipe(scheme, "int8", (Lower(plan.runtime, scheme),)), None if number else INT8_GAIN[plan.objective]


def _is_no_gain(trial: Trial) -> bool:
    """Whether it was measured, and its objective is no better than that of the best before it."""
    low, high = trial.step.interval or (trial.step.value, trial.step.value)
    return trial.verdict == "rejected" and low is not None and high is not None and high >= 1 - MARGIN


def _npu(plan: Plan, _trials: Sequence[Trial]) -> Iterator[tuple[Recipe, float | None]]:
    """The int8 artifact compiled for the board's NPU, which takes no other."""
    if plan.npu is not None:
        yield Recipe("int8-npu", "npu", (Lower(plan.runtime, "int8"), plan.npu)), NPU_GAIN[plan.objective]


def _threads(plan: Plan, trials: Sequence[Trial]) -> Iterator[tuple[Recipe, float | None]]:
    """What is best so far, with more threads; not with more than a number that brought nothing."""
    if _kept(trials, "npu"):
        return  # the processor's threads are not what computes
    fewer = plan.threads
    lowering = _lowering(plan, trials)
    for count in plan.more_threads:
        name = f"{lowering.scheme}-{count}threads"
        gain = (1 - fewer / count) * THREADED_SHARE[plan.objective]
        yield Recipe(name, "threads", (lowering, Threads(count))), gain
        done = _of(trials, name)
        if done is not None and done.verdict != "kept":
            break
        fewer = count if done is not None else fewer
    yield from _spared_threads(plan, trials, lowering)


def _spared_threads(plan: Plan, trials: Sequence[Trial], lowering: Lower) -> Iterator[tuple[Recipe, float | None]]:
    """The plan's own number of threads may draw more watts than is allowed; fewer draw less."""
    last, before = _of(trials, lowering.scheme) or trials[0], plan.threads
    for count in plan.fewer_threads:
        if not _spares(plan, trials, last):
            return
        name = f"{lowering.scheme}-{count}threads"
        yield Recipe(name, "threads", (lowering, Threads(count))), _spared(plan, count / before)
        if (done := _of(trials, name)) is not None:
            last, before = done, count


def _frequency(plan: Plan, trials: Sequence[Trial]) -> Iterator[tuple[Recipe, float | None]]:
    """What is best so far under a lower clock."""
    last = best = incumbent([trial for trial in trials if trial.recipe.rung != "frequency"])
    before = plan.clocks_hz[0] if plan.clocks_hz else 0.0
    for cap_hz in plan.clocks_hz[1:]:
        if not _spares(plan, trials, last):
            return
        name = f"{best.recipe.name}-{cap_hz / 1e6:.0f}MHz"
        yield Recipe(name, "frequency", (*best.recipe.steps, Frequency(cap_hz))), _spared(plan, cap_hz / before)
        if (done := _of(trials, name)) is not None:
            last, before = done, cap_hz


def _spares(plan: Plan, trials: Sequence[Trial], last: Trial) -> bool:
    """Whether to try what costs time and spares watts: these are asked for, and the last step left time to lose."""
    if any(name.startswith("latency") for name in _broken(plan, last)):
        return False
    is_better = plan.objective in OF_ENERGY and last.verdict in ("kept", "baseline")
    return is_better or any(name in OF_ENERGY for name in _broken(plan, incumbent(trials)))


def _spared(plan: Plan, share: float) -> float:
    """The gain that running with this share of the threads or the clock promises."""
    return (1 - share) * SPARED_SHARE.get(plan.objective, 0.0)


def _prune(plan: Plan, trials: Sequence[Trial]) -> Iterator[tuple[Recipe, float | None]]:
    """No more pruning after one that fell through the floor. One that was not faster says little of the next: widths
    meet the kernels' lanes at some ratios only."""
    removed = 0.0
    lowering = _lowering(plan, trials)
    threads = tuple(step for trial in _kept(trials, "threads") for step in trial.recipe.steps if step.kind == "threads")
    npu = plan.npu if _kept(trials, "npu") else None
    if npu is not None:
        lowering = Lower(plan.runtime, "int8")
    for prune, recover in plan.prunes:
        name = f"prune{round(prune.ratio * 100)}-{lowering.scheme}" + ("-npu" if npu else "")
        gain = _removed_share(prune, removed) * PRUNED_SHARE[plan.objective]
        yield Recipe(name, "prune", (prune, recover, lowering, *((npu,) if npu else threads[-1:]))), gain
        done = _of(trials, name)
        if done is not None and done.drop > plan.floor_drop:
            return  # more pruning loses more
        if done is not None and done.verdict == "kept":
            removed = prune.ratio


RECIPES = {
    "fp16": _fp16,
    "int8": _int8,
    "npu": _npu,
    "threads": _threads,
    "prune": _prune,
    "frequency": _frequency,
}


def _lowering(plan: Plan, trials: Sequence[Trial]) -> Lower:
    """The scheme of the last kept trial that changed it; before int8 was tried, what it would be."""
    schemes = [trial.recipe.name for rung in ("fp16", "int8") for trial in _kept(trials, rung)]
    is_open = "int8" in plan.rungs and not any(trial.recipe.rung == "int8" for trial in trials)
    return Lower(plan.runtime, "int8" if is_open else schemes[-1] if schemes else "fp32")


def _kept(trials: Sequence[Trial], rung: str) -> list[Trial]:
    return [trial for trial in trials if trial.recipe.rung == rung and trial.verdict == "kept"]


def _of(trials: Sequence[Trial], name: str) -> Trial | None:
    return next((trial for trial in trials if trial.recipe.name == name), None)


def _removed_share(prune: Prune, before: float) -> float:
    """Share of MACs and weights that going from one pruning ratio to the next removes: they go with the square."""
    return 1 - ((1 - prune.ratio) / (1 - before)) ** 2


def incumbent(trials: Sequence[Trial]) -> Trial:
    """The last trial that was kept: what the next one must beat."""
    return next(trial for trial in reversed(trials) if trial.verdict in ("kept", "baseline"))


def broken_budgets(plan: Plan, trial: Trial) -> list[str]:
    """Every budget that the trial misses, in words; a quantity that was not measured is missed."""
    return list(_broken(plan, trial).values())


def _broken(plan: Plan, trial: Trial) -> dict[str, str]:
    """broken_budgets by name."""
    broken = {}
    for name in BUDGETS:
        if name in plan.budgets:
            value = trial.values.get(name)
            if value is None:
                figure = (trial.record.get("energy") or {}).get(FIGURES.get(name)) or {}
                why = f" ({figure['invalid']})" if figure.get("invalid") else ""
                broken[name] = f"{name} was not measured{why}, the budget is {plan.budgets[name]:g}"
            elif value > plan.budgets[name]:
                broken[name] = f"{name} {value:.6g} over the budget of {plan.budgets[name]:g}"
    return broken


def judge(plan: Plan, trial: Trial, trials: Sequence[Trial]) -> Trial:
    """The trial with its verdict and the reason. It is kept if its score holds the floor and either the objective gains
    or it is the first to meet every budget; or if its score is better and the objective is no worse. None is kept that
    breaks a budget where the best so far meets all. Among the schemes of int8 the one closest to the source model wins,
    unless it is shown to be worse in the objective."""
    if trial.verdict == "failed":
        return trial
    if not trials:
        return dataclasses.replace(trial, verdict="baseline", reason="every other rung is measured against it")
    best = incumbent(trials)
    against, step = best.recipe.name, trial.step
    if step.value is None or step.invalid:
        unknown = f"no verdict can rest on its {WORDS[plan.objective]}: {step.invalid or 'it was not measured'}"
        return dataclasses.replace(trial, verdict="rejected", reason=unknown)
    change = f"{WORDS[plan.objective]} is {_times(step)} that of {against}"
    low, high = step.interval or (step.value, step.value)
    margin = MARGIN if step.interval else 0.0
    holds = trial.drop <= plan.floor_drop
    score = _score_words(plan, trial, holds)
    broken, of_best = broken_budgets(plan, trial), broken_budgets(plan, best)
    if broken and not of_best:
        lost = f"{against} meets every budget, it does not: {', '.join(broken)}"
        return dataclasses.replace(trial, verdict="rejected", reason=f"{lost}; {change}")
    mended = bool(of_best) and not broken
    if holds and high < 1 - margin:
        return dataclasses.replace(trial, verdict="kept", reason=f"{change}, and {score}")
    if holds and mended:
        return dataclasses.replace(trial, verdict="kept", reason=f"it meets every budget, {against} does not; {score}")
    if holds and low <= 1 + margin and _repairs(trial, best):
        more = f"{trial.agreement:.1%} of decisions agree with the source model, of {against} {best.agreement:.1%}"
        return dataclasses.replace(trial, verdict="kept", reason=f"{more}, and {change}, not shown to be worse")
    if trial.score > best.score and high <= 1 + margin:
        better = f"the score is {trial.score - best.score:.4f} above that of {against}"
        return dataclasses.replace(trial, verdict="kept", reason=f"{better}, and {change}, no worse")
    why = [] if holds else [score]
    if high >= 1 - margin:
        sure = f": no gain of more than {margin:.0%} that its interval confirms" if margin else ": no gain"
        why.append(f"{change}{sure}{_fallen_out(trial, trials[0])}")
    return dataclasses.replace(trial, verdict="rejected", reason="; ".join(why))


def _fallen_out(trial: Trial, baseline: Trial) -> str:
    """The cause that the runtime itself tells of a loss: operators that left the place where most of them ran."""
    places, before = (dict((own.record.get("executed") or {}).get("places") or {}) for own in (trial, baseline))
    if not places:
        return ""
    most = max(places, key=lambda place: sum(places[place].values()))
    outside = {op: n for place, own in places.items() if place != most for op, n in own.items()}
    known = {op: n for place, own in before.items() if place != most for op, n in own.items()}
    fallen = {op: n - known.get(op, 0) for op, n in outside.items() if n > known.get(op, 0)}
    named = ", ".join(f"{n} {op}" for op, n in sorted(fallen.items(), key=lambda item: -item[1])[:NAMED])
    return f", because operators run outside {most} that do not in {baseline.recipe.name}: {named}" if fallen else ""


def _repairs(trial: Trial, best: Trial) -> bool:
    """Whether a scheme of int8 stays closer to the source model than the one before it: more decisions agree, which
    scatters less than the score of a small split does; then the score."""
    if trial.recipe.rung != "int8" or best.recipe.rung != "int8" or trial.agreement is None or best.agreement is None:
        return False
    return (trial.agreement, trial.score) > (best.agreement, best.score)


def choose(plan: Plan, trials: Sequence[Trial]) -> Trial | None:
    """The last kept trial that holds the floor and meets every budget; None where none does. Each kept trial was better
    than the one kept before it, in one job with it, so no figures of different jobs are compared."""
    fitting = [
        trial
        for trial in trials
        if trial.verdict in ("kept", "baseline") and trial.drop <= plan.floor_drop and not broken_budgets(plan, trial)
    ]
    return fitting[-1] if fitting else None


@dataclasses.dataclass(frozen=True)
class Miss:
    """A demand that a trial does not meet. what: a budget or "floor_drop"; value None: not measured; over: how many
    times what is allowed, as far as that can be said."""

    what: str
    value: float | None
    allowed: float
    over: float


def misses(plan: Plan, trial: Trial) -> list[Miss]:
    """Every demand that the trial does not meet, the worst first."""
    found = []
    for name in _broken(plan, trial):
        value, allowed = trial.values.get(name), plan.budgets[name]
        found.append(Miss(name, value, allowed, float("inf") if value is None else value / allowed))
    if trial.drop > plan.floor_drop:
        scale = plan.floor_drop or 0.01  # a floor of no loss at all has no share
        found.append(Miss("floor_drop", trial.drop, plan.floor_drop, 1 + (trial.drop - plan.floor_drop) / scale))
    return sorted(found, key=lambda miss: -miss.over)


def nearest(plan: Plan, trials: Sequence[Trial]) -> Trial | None:
    """Where nothing fits: the measured trial whose worst miss is the least; None where none was measured."""
    measured = [trial for trial in trials if trial.verdict != "failed"]
    return min(measured, key=lambda trial: max((miss.over for miss in misses(plan, trial)), default=1.0), default=None)


def climb(
    plan: Plan, run: Callable[[Recipe, Sequence[Trial]], Trial], note: Callable[[Sequence[Trial]], None]
) -> tuple[list[Trial], str]:
    """Propose, run and judge until a Stop: (trials in order, why it stopped). `note` is told after every verdict."""
    trials: list[Trial] = []
    while True:
        step = propose(plan, trials)
        if isinstance(step, Stop):
            return trials, step.reason
        trials.append(judge(plan, run(step, trials), trials))
        note(trials)


def _score_words(plan: Plan, trial: Trial, holds: bool) -> str:
    moved = f"drops by {trial.drop:.4f}" if trial.drop > 0 else f"rises by {-trial.drop:.4f}" if trial.drop else "stays"
    side = "within" if holds else "beyond"
    same = f" ({trial.agreement:.1%} of decisions agree)" if trial.agreement is not None else ""
    return f"the score {moved} against the source model{same}, {side} the floor of {plan.floor_drop:g}"


def _times(figure: Figure) -> str:
    interval = f" ({figure.interval[0]:.3f} to {figure.interval[1]:.3f})" if figure.interval else ""
    return f"{figure.value:.3f} times{interval}"
