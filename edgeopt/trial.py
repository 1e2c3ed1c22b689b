"""One trial: a recipe's artifact is made, run on the board beside its rivals, and what was found is written down."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import evidence, fidelity, ladder, measure, parity, placement, power, stages
from .artifact import Artifact
from .device.session import Session
from .errors import AgentFailure, ModelError, PlanError
from .ladder import Recipe, Trial
from .measure import Comparison
from .plan import Lower, Plan, Prune
from .sampled import sampled
from .stages import Workbench
from .stats import Figure
from .task import CLASS_METRICS, Array


@dataclasses.dataclass
class Run:
    """One optimize on one board; `scratch` becomes runs/<name>/ when it is complete."""

    bench: Workbench
    session: Session
    facts: dict[str, Any]
    scratch: Path
    sources: dict[str, tuple[Array, ...]]
    artifacts: dict[str, Artifact]
    outputs: dict[str, tuple[Array, ...]]

    @property
    def plan(self) -> Plan:
        return self.bench.plan


def attempt(run: Run, recipe: Recipe, trials: Sequence[Trial]) -> Trial:
    """Make the candidate, run it on the board beside the baseline and the best so far, and write down what was found.

    A candidate that cannot be made or gives NaN is a failed trial; a baseline that fails ends the run.
    """
    try:
        artifact, notes = stages.artifact(run.bench, recipe)
        if why := placement.planned(notes["notes"].get("npu"), _demand(run, recipe)):
            return _failed(recipe, why)
        if why := parity.refusal(notes["notes"]["parity"]):
            raise ModelError(f"its answers are noise {why}")
        artifact.require_fit(run.facts["runtimes"], run.session.address)
        run.artifacts[recipe.name] = artifact
        run.outputs[recipe.name] = stages.board_outputs(run.bench, run.session, run.facts, artifact, "selection")
        if why := _noise(run, recipe):
            raise ModelError(f"its answers on {run.session.address} are noise: {why}")
    except (ModelError, PlanError, AgentFailure) as error:
        if not trials or (isinstance(error, AgentFailure) and error.kind not in ("runtime", "fallback")):
            raise
        return _failed(recipe, str(error))
    rivals = [recipe.name]
    if trials:
        rivals = list(dict.fromkeys([trials[0].recipe.name, ladder.incumbent(trials).recipe.name, recipe.name]))
    together = [run.artifacts[name] for name in rivals]
    try:
        comparison = stages.measured(run.bench, run.session, run.facts, together)
        readings = sampled(run.bench, run.session, run.facts, together)
    except AgentFailure as error:
        if together[-1].frequency_max_hz is None or error.kind != "bad-request":
            raise
        return _failed(recipe, str(error))  # the board does not keep this cap
    if why := _other_precision(together[-1], comparison.executed(len(together) - 1)):
        return _failed(recipe, why)
    if why := _fell_back(run, recipe, together[-1], comparison.executed(len(together) - 1)):
        return _failed(recipe, why)
    return _trial(run, recipe, notes, comparison, readings, together)


def _other_precision(artifact: Artifact, executed: dict[str, Any]) -> str | None:
    """What the runtime computed in is read back: another precision than the one asked for is another candidate."""
    asked, found = artifact.options.get("precision"), executed["precision"]
    if asked is None or asked == found:
        return None
    return f"{artifact.runtime} computed in {found} on this board, though {asked} was asked for"


def _noise(run: Run, recipe: Recipe) -> str | None:
    """Why the board's answers are none, beside the source model's; a pruned model learned other ones of its own."""
    if any(isinstance(step, Prune) for step in recipe.steps):
        return None
    source = run.sources["selection"]
    found = [own.reshape(other.shape) for own, other in zip(run.outputs[recipe.name], source, strict=True)]
    return fidelity.refusal(fidelity.errors(found, source))


def _demand(run: Run, recipe: Recipe) -> placement.Demand:
    """A share of int8 is asked of artifacts that are made int8."""
    is_int8 = any(isinstance(step, Lower) and step.scheme.startswith("int8") for step in recipe.steps)
    return placement.Demand(run.plan.require_int8 if is_int8 else None, run.plan.allow_fallback)


def _fell_back(run: Run, recipe: Recipe, artifact: Artifact, executed: dict[str, Any]) -> str | None:
    """Why the operators did not run where and as the plan wants, with their names; None where they did."""
    demand = _demand(run, recipe)
    if not placement.may_be_refused(executed, artifact, demand):
        return None
    one = dataclasses.replace(run.bench.splits["selection"].take(np.arange(1)), labels=None)
    found = placement.operators(run.session, artifact, measure.shards(one), 0)
    return placement.refusal(found["operators"], artifact, demand)


def _failed(recipe: Recipe, why: str) -> Trial:
    nothing = Figure(None, None, 0, invalid="not measured: the candidate failed")
    record = {
        **_record(recipe),
        **dict.fromkeys(
            (
                "artifact",
                "score",
                "latency",
                "baseline_latency",
                "load_s",
                "first_inference_s",
                "memory",
                "energy",
                "samples",
            )
        ),
        "ratios": {},
        "step": None,
        "executed": None,
        "conditions": {"marks": []},
        "notes": {},
    }
    return Trial(recipe, {}, nothing, nothing, float("-inf"), float("inf"), None, record, "failed", why)


def _record(recipe: Recipe) -> dict[str, Any]:
    return {"rung": recipe.rung, "steps": [dataclasses.asdict(step) for step in recipe.steps]}


def _trial(
    run: Run,
    recipe: Recipe,
    notes: dict[str, Any],
    comparison: Comparison,
    readings: power.Run | None,
    together: Sequence[Artifact],
) -> Trial:
    """together: baseline, best so far, candidate (the last), as far as they differ."""
    artifact, plan = together[-1], run.plan
    score = _score(run, recipe.name)
    names, sizes = [own.name for own in together], [own.size_bytes for own in together]
    found = evidence.of_job(comparison, names, sizes)
    metered = _energy(run, names, readings)
    found |= {key: found[key] | metered[key] for key in ("ratios", "step")}
    latency, memory, energy = found["latency"], found["memory"], metered["energy"]
    values = {
        "latency_p50_s": latency["p50_s"]["value"],
        "latency_p95_s": latency["p95_s"]["value"],
        "size_bytes": float(artifact.size_bytes),
        "peak_memory_bytes": memory["above_runtime_bytes"] if memory else None,
        **{name: energy[key]["value"] if energy else None for name, key in ladder.FIGURES.items()},
    }
    samples = f"samples/{artifact.name}.npz"
    evidence.write_job(run.scratch / samples, comparison, names)
    record = {
        **_record(recipe),
        "artifact": _keep_artifact(run, artifact),
        "score": score,
        **found,
        "energy": energy,
        "step": found["step"][plan.objective],
        "samples": samples,
        "notes": notes.get("notes", {}) | {"compress": notes.get("compress")},
    }
    return Trial(
        recipe,
        values,
        _figure(found["ratios"][plan.objective]),
        _figure(found["step"][plan.objective]),
        score["value"],
        score["drop"],
        score["agreement"],
        record,
    )


def _energy(run: Run, names: Sequence[str], readings: power.Run | None) -> dict[str, Any]:
    """As evidence.of_energy, with the file of the raw readings; nothing of what was not measured."""
    if readings is None:
        return {"energy": None, "ratios": {}, "step": {}}
    samples, most_w = f"samples/{names[-1]}.energy.npz", power.most_w(run.plan.profile)
    evidence.write_energy(run.scratch / samples, readings, names, most_w)
    found = evidence.of_energy(readings, names, most_w)
    return found | {"energy": found["energy"] | {"samples": samples}}


def _figure(told: dict[str, Any]) -> Figure:
    """Of its form in run.json."""
    ends = told["interval"]
    return Figure(told["value"], (ends[0], ends[1]) if ends else None, told["n"], told["how"], told["invalid"])


def _score(run: Run, name: str) -> dict[str, Any]:
    """The point estimate on selection, with the drop below the source model and the agreement with it."""
    selection = run.bench.splits["selection"]
    source = run.sources["selection"]
    classify = run.plan.run_file.task.metric in CLASS_METRICS
    scored = evidence.Scored.of(run.outputs[name], source, selection, run.bench.scores, classify)
    scored.write(run.scratch / "samples" / f"{name}.selection.npz")
    judged = evidence.judged(scored, run.plan.floor_drop)
    kept = ("value", "interval", "n", "drop", "drop_interval", "agreement", "reference", "output_error")
    return {"metric": run.plan.to_json()["metric"], "split": "selection"} | {key: judged[key] for key in kept}


def _keep_artifact(run: Run, artifact: Artifact) -> dict[str, Any]:
    folder = run.scratch / "candidates" / artifact.name
    folder.mkdir()
    for path in artifact.paths:
        shutil.copyfile(path, folder / path.name)
    return {
        "file": f"candidates/{artifact.name}/{artifact.file}",
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "runtime": artifact.runtime,
        "threads": artifact.threads,
        "frequency_max_hz": artifact.frequency_max_hz,
        "files": artifact.entry()["files"],
        "options": artifact.options,
    }
