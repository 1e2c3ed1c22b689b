"""The ladder: what to try next, what a trial is worth, which candidate is chosen. Pure functions, and the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from .plan import BUDGETS, Lower, Plan, Prune, Step
from .stats import Figure

# What a rung may bring of each objective, before it is measured: int8 weights are a quarter of the size; of the MACs
# that pruning takes away, latency loses about half (Torch-Pruning's ResNet-50: 2.04x fewer MACs, 1.35x faster).
INT8_GAIN = {"latency_p50_s": 0.4, "size_bytes": 0.7, "peak_memory_bytes": 0.4}
PRUNED_SHARE = {"latency_p50_s": 0.5, "size_bytes": 1.0, "peak_memory_bytes": 0.5}
# Two processes of one artifact differ by about this much in median latency, whatever the interval within a job says.
MARGIN = 0.02
WORDS = {"latency_p50_s": "median latency", "size_bytes": "file size", "peak_memory_bytes": "peak memory"}


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
    for recipe, gain in _candidates(plan, trials):
        if recipe.name in tried:
            continue
        if trials and gain is not None:
            best = incumbent(trials)
            if not broken_budgets(plan, best) and gain < plan.min_gain:
                met = "meets every budget" if plan.budgets else "has no budget to meet"
                return Stop(
                    f"'{best.recipe.name}' {met}, and {recipe.name} promises about {gain:.0%} less "
                    f"{WORDS[plan.objective]}, below [ladder] min_gain = {plan.min_gain:.0%}"
                )
        return recipe
    return Stop("no rung is left to try")


def _candidates(plan: Plan, trials: Sequence[Trial]) -> list[tuple[Recipe, float | None]]:
    """Recipes in the ladder's order with the gain that each may bring; no more pruning after one that fell through the
    floor. One that was not faster says little of the next: widths meet the kernels' lanes at some ratios only."""
    found: list[tuple[Recipe, float | None]] = [(Recipe("fp32", "fp32", (Lower(plan.runtime, "fp32"),)), None)]
    scheme = "fp32"
    if "int8" in plan.rungs:
        found.append((Recipe("int8", "int8", (Lower(plan.runtime, "int8"),)), INT8_GAIN[plan.objective]))
        int8 = next((trial for trial in trials if trial.recipe.name == "int8"), None)
        scheme = "int8" if int8 is None or int8.verdict == "kept" else "fp32"
    if "prune" in plan.rungs:
        removed = 0.0
        for prune, recover in plan.prunes:
            name = f"prune{round(prune.ratio * 100)}-{scheme}"
            gain = _removed_share(prune, removed) * PRUNED_SHARE[plan.objective]
            found.append((Recipe(name, "prune", (prune, recover, Lower(plan.runtime, scheme))), gain))
            done = next((trial for trial in trials if trial.recipe.name == name), None)
            if done is not None and done.drop > plan.floor_drop:
                break  # more pruning loses more
            if done is not None and done.verdict == "kept":
                removed = prune.ratio
    return found


def _removed_share(prune: Prune, before: float) -> float:
    """Share of MACs and weights that going from one pruning ratio to the next removes: they go with the square."""
    return 1 - ((1 - prune.ratio) / (1 - before)) ** 2


def incumbent(trials: Sequence[Trial]) -> Trial:
    """The last trial that was kept: what the next one must beat."""
    return next(trial for trial in reversed(trials) if trial.verdict in ("kept", "baseline"))


def broken_budgets(plan: Plan, trial: Trial) -> list[str]:
    """Every budget that the trial misses, in words; a quantity that was not measured is missed."""
    broken = []
    for name in BUDGETS:
        if name in plan.budgets:
            value = trial.values.get(name)
            if value is None:
                broken.append(f"{name} was not measured, the budget is {plan.budgets[name]:g}")
            elif value > plan.budgets[name]:
                broken.append(f"{name} {value:.6g} over the budget of {plan.budgets[name]:g}")
    return broken


def judge(plan: Plan, trial: Trial, trials: Sequence[Trial]) -> Trial:
    """The trial with its verdict and the reason. It is kept if its score holds the floor and either the objective gains
    or it is the first to meet every budget; or if its score is better and the objective is no worse."""
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
    _, high = step.interval or (step.value, step.value)
    margin = MARGIN if step.interval else 0.0
    holds = trial.drop <= plan.floor_drop
    score = _score_words(plan, trial, holds)
    mended = bool(broken_budgets(plan, best)) and not broken_budgets(plan, trial)
    if holds and high < 1 - margin:
        return dataclasses.replace(trial, verdict="kept", reason=f"{change}, and {score}")
    if holds and mended:
        return dataclasses.replace(trial, verdict="kept", reason=f"it meets every budget, {against} does not; {score}")
    if trial.score > best.score and high <= 1 + margin:
        better = f"the score is {trial.score - best.score:.4f} above that of {against}"
        return dataclasses.replace(trial, verdict="kept", reason=f"{better}, and {change}, no worse")
    why = [] if holds else [score]
    if high >= 1 - margin:
        sure = f": no gain of more than {margin:.0%} that its interval confirms" if margin else ": no gain"
        why.append(f"{change}{sure}")
    return dataclasses.replace(trial, verdict="rejected", reason="; ".join(why))


def choose(plan: Plan, trials: Sequence[Trial]) -> Trial | None:
    """The last kept trial that holds the floor and meets every budget; None where none does. Each kept trial was better
    than the one kept before it, in one job with it, so no figures of different jobs are compared."""
    fitting = [
        trial
        for trial in trials
        if trial.verdict in ("kept", "baseline") and trial.drop <= plan.floor_drop and not broken_budgets(plan, trial)
    ]
    return fitting[-1] if fitting else None


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
