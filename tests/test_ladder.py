"""The ladder's pure functions: what is tried next, what is kept and why, what is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import ladder, plan
from edgeopt.ladder import Recipe, Stop, Trial
from edgeopt.lower import abilities
from edgeopt.plan import Plan
from edgeopt.stats import Figure

PRECISE = 0.01


def make_plan(tmp_path: Path, **changes: object) -> Plan:
    """A plan of a run file in `tmp_path`, with fields replaced."""
    (tmp_path / "edgeopt.toml").write_text(
        """
name = "x"
model.torch = "m:load"
task = { arrays = "d.npz", inputs = ["x"], labels = "y", metric = "top1" }
splits = { calibration = { count = 1 }, selection = { count = 1 }, final = { count = 1 } }
device.profile = "generic-x86-64"
ladder.floor_drop = 0.01
ladder.rungs = ["fp32", "int8", "prune"]
prune.ratios = [0.3, 0.5]
"""
    )
    return dataclasses.replace(plan.load(tmp_path, abilities()), **changes)  # type: ignore[arg-type]


def trial(
    recipe: Recipe,
    *,
    ratio: float,
    step: float,
    score: float = 0.9,
    drop: float = 0.0,
    size: float = 1e5,
    agreement: float = 1.0,
    watts: float | None = None,
) -> Trial:
    """ratio: to the baseline; step: to the best so far; both with a narrow interval."""
    values = {"latency_p50_s": ratio * 1e-3, "latency_p95_s": None, "size_bytes": size, "peak_memory_bytes": None}
    values |= {"energy_j": None if watts is None else watts * ratio * 1e-3, "power_w": watts}

    def figure(value: float) -> Figure:
        return Figure(value, (value * (1 - PRECISE), value * (1 + PRECISE)), 12)

    return Trial(recipe, values, figure(ratio), figure(step), score, drop, agreement, {})


def climb(made: Plan, found: Sequence[dict[str, float]]) -> tuple[list[Trial], str]:
    """Climb with measurements given in the order of the proposals."""
    queue = list(found)

    def run(recipe: Recipe, _before: Sequence[Trial]) -> Trial:
        return trial(recipe, **queue.pop(0))

    return ladder.climb(made, run, lambda _trials: None)


def test_conservative_rungs_come_first_and_each_once(tmp_path: Path) -> None:
    found = [
        {"ratio": 1, "step": 1},
        {"ratio": 0.5, "step": 0.5},
        {"ratio": 0.4, "step": 0.8},
        {"ratio": 0.3, "step": 0.7},
    ]
    trials, why = climb(make_plan(tmp_path), found)
    assert [t.recipe.name for t in trials] == ["fp32", "int8", "prune30-int8", "prune50-int8"]
    assert [t.verdict for t in trials] == ["baseline", "kept", "kept", "kept"]
    assert why == "no rung is left to try"


def test_steps_run_in_the_flow_order(tmp_path: Path) -> None:
    trials, _ = climb(make_plan(tmp_path), [{"ratio": 1, "step": 1}, *[{"ratio": 0.5, "step": 0.5}] * 3])
    assert [step.kind for step in trials[2].recipe.steps] == ["prune", "recover", "lower"]


def test_pruning_builds_on_fp32_when_int8_was_rejected(tmp_path: Path) -> None:
    found = [
        {"ratio": 1, "step": 1},
        {"ratio": 1.4, "step": 1.4},
        {"ratio": 0.7, "step": 0.7},
        {"ratio": 0.5, "step": 0.7},
    ]
    trials, _ = climb(make_plan(tmp_path), found)
    assert [t.recipe.name for t in trials] == ["fp32", "int8", "prune30-fp32", "prune50-fp32"]
    assert trials[1].verdict == "rejected"
    assert "1.400 times" in trials[1].reason


def test_slower_schemes_are_left_out_where_int8_was_no_gain(tmp_path: Path) -> None:
    made = make_plan(tmp_path, rungs=("fp32", "int8"), schemes=SCHEMES)
    trials, why = climb(made, [{"ratio": 1, "step": 1}, {"ratio": 1.3, "step": 1.3, "agreement": 0.9, "drop": 0.005}])
    assert [t.recipe.name for t in trials] == ["fp32", "int8"]
    assert why == "no rung is left to try"


def test_a_loss_names_the_operators_that_left_the_accelerator(tmp_path: Path) -> None:
    made = make_plan(tmp_path, rungs=("fp32", "int8"))
    places = [
        {"XNNPACK": {"CONV_2D": 20}, "CPU": {"CUMSUM": 1}},
        {"XNNPACK": {"CONV_2D": 20}, "CPU": {"HARD_SWISH": 14}},
    ]

    def run(recipe: Recipe, before: Sequence[Trial]) -> Trial:
        found = trial(recipe, ratio=6.6 if before else 1, step=6.6 if before else 1)
        return dataclasses.replace(found, record={"executed": {"places": places[len(before)]}})

    trials, _ = ladder.climb(made, run, lambda _trials: None)
    assert trials[1].verdict == "rejected"
    assert "14 HARD_SWISH" in trials[1].reason
    assert "outside XNNPACK" in trials[1].reason
    assert "CUMSUM" not in trials[1].reason


def test_the_nearest_misses_the_least(tmp_path: Path) -> None:
    made = make_plan(tmp_path, rungs=("fp32", "int8"), budgets={"latency_p50_s": 1e-4})
    trials, _ = climb(made, [{"ratio": 1, "step": 1}, {"ratio": 0.5, "step": 0.5, "drop": 0.012, "score": 0.89}])
    assert ladder.choose(made, trials) is None
    near = ladder.nearest(made, trials)
    assert near is trials[1]
    first, second = ladder.misses(made, near)
    assert (first.what, first.over) == ("latency_p50_s", pytest.approx(5))
    assert (second.what, second.value, second.allowed) == ("floor_drop", 0.012, 0.01)


def test_no_further_pruning_after_a_rejected_one(tmp_path: Path) -> None:
    found = [
        {"ratio": 1, "step": 1},
        {"ratio": 0.5, "step": 0.5},
        {"ratio": 0.4, "step": 0.8, "drop": 0.3, "score": 0.6},
    ]
    trials, why = climb(make_plan(tmp_path), found)
    assert [t.recipe.name for t in trials] == ["fp32", "int8", "prune30-int8"]
    assert trials[2].verdict == "rejected"
    assert (
        "drops by 0.3000 against the source model (100.0% of decisions agree), beyond the floor of 0.01"
        in trials[2].reason
    )
    assert why == "no rung is left to try"


def test_climbing_stops_when_budgets_are_met_and_little_is_promised(tmp_path: Path) -> None:
    made = make_plan(tmp_path, min_gain=0.4, budgets={"latency_p50_s": 1.0})
    trials, why = climb(made, [{"ratio": 1, "step": 1}, {"ratio": 0.5, "step": 0.5}])
    assert [t.recipe.name for t in trials] == ["fp32", "int8"]
    assert "'int8' meets every budget" in why
    assert "prune30-int8 promises about 26% less median latency, prune50-int8 promises about 38%" in why
    assert "min_gain = 40%" in why


def test_a_missed_budget_climbs_on(tmp_path: Path) -> None:
    made = make_plan(tmp_path, min_gain=0.9, budgets={"size_bytes": 5e4}, objective="size_bytes")
    found = [{"ratio": 1, "step": 1}, {"ratio": 0.5, "step": 0.5}, {"ratio": 0.2, "step": 0.4, "size": 4e4}]
    trials, why = climb(made, found)
    assert trials[-1].recipe.name == "prune30-int8"
    assert "'prune30-int8' meets every budget" in why
    chosen = ladder.choose(made, trials)
    assert chosen is not None
    assert chosen.recipe.name == "prune30-int8"


def test_a_gain_that_the_interval_does_not_confirm_is_rejected(tmp_path: Path) -> None:
    found = [{"ratio": 1, "step": 1}, {"ratio": 0.985, "step": 0.985}, *[{"ratio": 1, "step": 1}] * 2]
    trials, _ = climb(make_plan(tmp_path), found)
    assert trials[1].verdict == "rejected"
    assert "no gain of more than 2% that its interval confirms" in trials[1].reason


def test_a_better_score_at_the_same_objective_is_kept(tmp_path: Path) -> None:
    found = [{"ratio": 1, "step": 1, "score": 0.8}, {"ratio": 1, "step": 1, "score": 0.9, "drop": -0.1}]
    trials, _ = climb(make_plan(tmp_path, rungs=("fp32", "int8")), found)
    assert trials[1].verdict == "kept"
    assert "the score is 0.1000 above that of fp32" in trials[1].reason


SCHEMES = {"fp16": ("fp16", "fp16-compute"), "int8": ("int8", "int8-safe", "int8-mixed")}


def test_fp16_is_tried_where_it_promises_something(tmp_path: Path) -> None:
    rungs = ("fp32", "fp16")
    fast = make_plan(tmp_path, rungs=rungs, schemes=SCHEMES)  # for latency, float16 weights alone promise nothing
    trials, why = climb(fast, [{"ratio": 1, "step": 1}, {"ratio": 0.6, "step": 0.6}])
    assert [t.recipe.name for t in trials] == ["fp32", "fp16-compute"]
    assert "fp16 promises about 0% less median latency" in why
    small = make_plan(tmp_path, rungs=rungs, schemes=SCHEMES, objective="size_bytes")
    trials, _ = climb(small, [{"ratio": 1, "step": 1}, {"ratio": 0.5, "step": 0.5}, {"ratio": 0.5, "step": 1}])
    assert [t.recipe.name for t in trials] == ["fp32", "fp16", "fp16-compute"]


def test_other_int8_schemes_repair_what_the_first_cost(tmp_path: Path) -> None:
    made = make_plan(tmp_path, rungs=("fp32", "int8"), schemes=SCHEMES)
    first = {"ratio": 0.5, "step": 0.5, "drop": 0.005, "score": 0.895, "agreement": 0.97}
    closer = {"ratio": 0.5, "step": 1.0, "drop": 0.005, "score": 0.895, "agreement": 0.98}
    slower = {"ratio": 0.7, "step": 1.4, "drop": 0.0, "score": 0.9, "agreement": 0.985}
    trials, _ = climb(made, [{"ratio": 1, "step": 1}, first, closer, slower])
    assert [(t.recipe.name, t.verdict) for t in trials] == [
        ("fp32", "baseline"),
        ("int8", "kept"),
        ("int8-safe", "kept"),
        ("int8-mixed", "rejected"),
    ]
    assert "98.0% of decisions agree with the source model, of int8 97.0%" in trials[2].reason
    faithful = {"ratio": 0.5, "step": 0.5, "agreement": 0.995}
    trials, why = climb(made, [{"ratio": 1, "step": 1}, faithful])
    assert [t.recipe.name for t in trials] == ["fp32", "int8"]
    assert why == "no rung is left to try"


def test_a_scheme_that_agrees_more_but_falls_through_the_floor_is_rejected(tmp_path: Path) -> None:
    made = make_plan(tmp_path, rungs=("fp32", "int8"), schemes={"int8": ("int8", "int8-safe")})
    first = {"ratio": 0.5, "step": 0.5, "drop": 0.005, "score": 0.895, "agreement": 0.97}
    lower = {"ratio": 0.5, "step": 1.0, "drop": 0.05, "score": 0.85, "agreement": 0.98}
    trials, _ = climb(made, [{"ratio": 1, "step": 1}, first, lower])
    assert trials[2].verdict == "rejected"


def test_threads_are_added_until_they_bring_nothing_and_pruning_keeps_them(tmp_path: Path) -> None:
    made = make_plan(tmp_path, rungs=("fp32", "int8", "threads", "prune"), more_threads=(2, 4, 8))
    steps = [1, 0.5, 0.7, 1.1, 0.8, 0.8]
    trials, _ = climb(made, [{"ratio": 1, "step": step} for step in steps])
    assert [t.recipe.name for t in trials] == [
        "fp32",
        "int8",
        "int8-2threads",
        "int8-4threads",
        "prune30-int8",
        "prune50-int8",
    ]
    assert trials[3].verdict == "rejected"
    assert [step.count for step in trials[4].recipe.steps if step.kind == "threads"] == [2]


def test_nothing_is_chosen_when_no_trial_fits(tmp_path: Path) -> None:
    made = make_plan(tmp_path, budgets={"size_bytes": 1e3})
    trials, _ = climb(made, [{"ratio": 1, "step": 1}, *[{"ratio": 0.5, "step": 0.5}] * 3])
    assert ladder.choose(made, trials) is None


def test_an_unmeasured_budget_is_missed(tmp_path: Path) -> None:
    made = make_plan(tmp_path, budgets={"latency_p95_s": 1.0}, rungs=("fp32",))
    trials, _ = climb(made, [{"ratio": 1, "step": 1}])
    assert ladder.broken_budgets(made, trials[0]) == ["latency_p95_s was not measured, the budget is 1"]
    assert ladder.choose(made, trials) is None


ratios = st.floats(0.05, 3.0)


@given(data=st.lists(st.tuples(ratios, ratios, st.floats(0.5, 1.0), st.floats(-0.1, 0.4)), min_size=4, max_size=4))
def test_whatever_is_measured(tmp_path_factory: pytest.TempPathFactory, data: list[tuple[float, ...]]) -> None:
    """The climb ends, every trial has a verdict and a reason, and the chosen one holds its floor."""
    made = make_plan(tmp_path_factory.mktemp("plan"))
    found = [{"ratio": r, "step": s, "score": score, "drop": drop} for r, s, score, drop in data]
    trials, why = climb(made, found)
    assert why
    assert len({t.recipe.name for t in trials}) == len(trials)
    assert trials[0].verdict == "baseline"
    for t in trials:
        assert t.reason
        assert t.verdict in ("baseline", "kept", "rejected")
    for index, t in enumerate(trials[1:], start=1):
        best = ladder.incumbent(trials[:index])
        assert t.step.interval is not None
        gains = t.step.interval[1] < 1 - ladder.MARGIN and t.drop <= made.floor_drop
        better = t.score > best.score and t.step.interval[1] <= 1 + ladder.MARGIN
        assert (t.verdict == "kept") == (gains or better)
    chosen = ladder.choose(made, trials)
    if chosen is not None:
        assert chosen.drop <= made.floor_drop
        assert chosen.verdict in ("baseline", "kept")
    assert isinstance(ladder.propose(made, trials), Stop)


def test_slower_pruning_does_not_end_the_climb(tmp_path: Path) -> None:
    """Widths meet the kernels' lanes at some ratios only: 30 % may be no faster, and 50 % much."""
    found = [
        {"ratio": 1, "step": 1},
        {"ratio": 0.5, "step": 0.5},
        {"ratio": 0.51, "step": 1.02},
        {"ratio": 0.3, "step": 0.6},
    ]
    trials, _ = climb(make_plan(tmp_path), found)
    assert [t.verdict for t in trials] == ["baseline", "kept", "rejected", "kept"]


def test_the_first_to_meet_every_budget_is_kept_and_chosen(tmp_path: Path) -> None:
    """No faster than int8, but the only one that is small enough."""
    made = make_plan(tmp_path, budgets={"latency_p50_s": 1.0, "size_bytes": 5e4})
    found = [{"ratio": 1, "step": 1}, {"ratio": 0.5, "step": 0.5}, {"ratio": 0.5, "step": 1.0, "size": 3e4}]
    trials, _ = climb(made, [*found, {"ratio": 0.5, "step": 1.0, "size": 2e4}])
    assert trials[2].verdict == "kept"
    assert "it meets every budget, int8 does not" in trials[2].reason
    chosen = ladder.choose(made, trials)
    assert chosen is not None
    assert chosen.recipe.name == "prune30-int8"


def test_choosing_follows_the_paired_steps_not_ratios_of_different_jobs(tmp_path: Path) -> None:
    found = [
        {"ratio": 1, "step": 1},
        {"ratio": 0.50, "step": 0.5},
        {"ratio": 0.52, "step": 0.9},
        {"ratio": 0.53, "step": 0.9},
    ]
    made = make_plan(tmp_path)
    trials, _ = climb(made, found)
    chosen = ladder.choose(made, trials)
    assert chosen is not None
    assert chosen.recipe.name == "prune50-int8"


def test_an_invalid_ratio_decides_nothing(tmp_path: Path) -> None:
    made = make_plan(tmp_path)
    first, _ = climb(dataclasses.replace(made, rungs=("fp32",)), [{"ratio": 1, "step": 1}])
    second = trial(Recipe("int8", "int8", ()), ratio=0.5, step=0.5, score=0.99)
    unsure = dataclasses.replace(second, step=Figure(0.5, None, 3, invalid="n=3 rounds, needs 6"))
    judged = ladder.judge(made, unsure, first)
    assert judged.verdict == "rejected"
    assert judged.reason == "no verdict can rest on its median latency: n=3 rounds, needs 6"


CLOCKS = (1.5e9, 1.2e9, 9e8, 6e8)


def capped(tmp_path: Path, **changes: object) -> Plan:
    return make_plan(tmp_path, **{"rungs": ("fp32", "frequency"), "clocks_hz": CLOCKS, **changes})


def test_clocks_are_capped_until_the_power_budget_is_met(tmp_path: Path) -> None:
    made = capped(tmp_path, budgets={"latency_p50_s": 2e-3, "power_w": 4.0})
    found = [{"ratio": 1, "step": 1, "watts": 6.0}, {"ratio": 1.2, "step": 1.2, "watts": 4.5}]
    trials, why = climb(made, [*found, {"ratio": 1.6, "step": 1.6, "watts": 3.5}])
    assert [(t.recipe.name, t.verdict) for t in trials] == [
        ("fp32", "baseline"),
        ("fp32-1200MHz", "rejected"),
        ("fp32-900MHz", "kept"),
    ]
    assert trials[2].reason.startswith("it meets every budget, fp32 does not")
    assert [step.kind for step in trials[2].recipe.steps] == ["lower", "frequency"]
    assert why == "no rung is left to try"
    chosen = ladder.choose(made, trials)
    assert chosen is not None
    assert chosen.recipe.name == "fp32-900MHz"


def test_no_lower_clock_after_one_that_was_too_slow(tmp_path: Path) -> None:
    made = capped(tmp_path, budgets={"latency_p50_s": 1.1e-3, "power_w": 4.0})
    found = [{"ratio": 1, "step": 1, "watts": 6.0}, {"ratio": 1.2, "step": 1.2, "watts": 4.5}]
    trials, _ = climb(made, found)
    assert [t.recipe.name for t in trials] == ["fp32", "fp32-1200MHz"]
    assert ladder.choose(made, trials) is None


def test_no_cap_where_the_watts_are_allowed(tmp_path: Path) -> None:
    trials, _ = climb(capped(tmp_path, budgets={"power_w": 7.0}), [{"ratio": 1, "step": 1, "watts": 6.0}])
    assert [t.recipe.name for t in trials] == ["fp32"]


def test_joules_are_improved_as_long_as_a_lower_clock_brings_some(tmp_path: Path) -> None:
    made = capped(tmp_path, budgets={"energy_j": 1.0}, objective="energy_j", min_gain=0.01)
    found = [{"ratio": 1, "step": step, "watts": 6.0} for step in (1, 0.9, 1.05)]
    trials, _ = climb(made, found)
    assert [(t.recipe.name, t.verdict) for t in trials][1:] == [("fp32-1200MHz", "kept"), ("fp32-900MHz", "rejected")]
    assert "energy of one inference is 0.900 times" in trials[1].reason


def test_fewer_threads_meet_the_power_budget_and_pruning_keeps_them(tmp_path: Path) -> None:
    made = make_plan(tmp_path, rungs=("fp32", "int8", "threads", "prune"), threads=4, fewer_threads=(2, 1))
    made = dataclasses.replace(made, budgets={"power_w": 5.0}, more_threads=(), objective="latency_p50_s", min_gain=0.0)
    found = [{"ratio": 1, "step": 1, "watts": 8.0}, {"ratio": 0.5, "step": 0.5, "watts": 8.0}]
    found += [{"ratio": 0.7, "step": 1.4, "watts": 6.0}, {"ratio": 1.1, "step": 2.2, "watts": 4.0}]
    trials, _ = climb(made, [*found, *[{"ratio": 0.9, "step": 0.8, "watts": 4.0}] * 2])
    assert [(t.recipe.name, t.verdict) for t in trials][2:4] == [
        ("int8-2threads", "rejected"),
        ("int8-1threads", "kept"),
    ]
    assert [step.count for step in trials[4].recipe.steps if step.kind == "threads"] == [1]


def test_what_breaks_a_budget_that_is_met_is_not_kept(tmp_path: Path) -> None:
    made = make_plan(tmp_path, rungs=("fp32", "threads"), more_threads=(2,), budgets={"power_w": 5.0})
    trials, _ = climb(made, [{"ratio": 1, "step": 1, "watts": 4.0}, {"ratio": 0.5, "step": 0.5, "watts": 6.0}])
    assert trials[1].verdict == "rejected"
    assert trials[1].reason.startswith("fp32 meets every budget, it does not: power_w 6 over the budget of 5")


def test_watts_without_a_figure_say_why(tmp_path: Path) -> None:
    made = capped(tmp_path, budgets={"power_w": 5.0})
    one = trial(Recipe("fp32", "fp32", ()), ratio=1, step=1)
    one.record["energy"] = {"work_w": {"value": None, "invalid": "2 valid windows, needs 3"}}
    words = "power_w was not measured (2 valid windows, needs 3), the budget is 5"
    assert ladder.broken_budgets(made, one) == [words]


measured = st.tuples(ratios, ratios, st.floats(0.5, 10.0))
budgets = st.fixed_dictionaries({}, optional={"latency_p50_s": st.floats(1e-4, 3e-3), "power_w": st.floats(1.0, 9.0)})


@given(
    data=st.lists(measured, min_size=4, max_size=4),
    asked=budgets,
    objective=st.sampled_from(["latency_p50_s", "power_w"]),
)
def test_whatever_clocks_cost(
    tmp_path_factory: pytest.TempPathFactory, data: list[tuple[float, ...]], asked: dict[str, float], objective: str
) -> None:
    """Caps go down, none is tried that nobody asked for, none below one that was too slow; the chosen meets all."""
    made = capped(tmp_path_factory.mktemp("plan"), budgets=asked, objective=objective)
    trials, _ = climb(made, [{"ratio": r, "step": s, "watts": watts} for r, s, watts in data])
    caps = [step.frequency_max_hz for t in trials for step in t.recipe.steps if step.kind == "frequency"]
    assert caps == sorted(set(caps), reverse=True)
    for index, t in enumerate(trials[1:], start=1):
        before = trials[:index]
        missed = ladder.broken_budgets(made, ladder.incumbent(before))
        assert objective == "power_w" or any("power_w" in words for words in missed)
        assert t.recipe.steps[:-1] == trials[0].recipe.steps
        for slower in before:
            assert not any("latency" in words for words in ladder.broken_budgets(made, slower))
    chosen = ladder.choose(made, trials)
    assert chosen is None or not ladder.broken_budgets(made, chosen)
