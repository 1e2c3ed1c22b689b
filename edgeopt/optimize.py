"""The main job: climb the ladder on the board, score the chosen candidate once, bundle it, write runs/<name>/."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from . import bundle, ladder, measure, stages, validate
from . import plan as plans
from .cache import Cache, sha256_bytes
from .device.session import Session
from .errors import AgentFailure, ConfigError, IntegrityError, ModelError, PlanError
from .ladder import Recipe, Trial
from .measure import Artifact, Comparison
from .plan import Plan
from .report import html, units
from .stages import Say, Workbench
from .stats import Figure
from .task import Array

HEALTH_SAMPLES = 64
HEALTH_SPARE = 0.05  # of the health shard's samples may turn wrong before the board refuses
HEALTH_OUTPUT_ERROR = 0.1  # of an output's range: other kernels round otherwise, a wrong model is far off
HEALTH_LATENCY = 3.0  # times the measured median at most, or the budget where that is less
LEAST_HEALTH_LATENCY = 1.25  # times it at least: the median of a few queries scatters
SCHEDULING_S = 0.001
CLASS_METRICS = ("top1", "top5")


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


Connect = Callable[[], tuple[Session, str]]


def optimize(
    plan: Plan, connect: Connect, cache: Cache, out: Path, say: Say, remeasure: bool = False
) -> dict[str, Any]:
    """Run the plan and return what run.json holds; `out` is replaced as a whole at the end.

    connect: gives the session and the board's Python. What is quick to check comes first: packages and data, then the
    board, then the model. Finished stages come from the cache, so a run that was interrupted goes on where it was.
    Raises EdgeoptError.
    """
    _require_own(out)
    plans.require_packages(plan)
    splits = stages.open_data(plan, cache)
    session, python = connect()
    with session:
        facts = session.facts()
        plans.require_board(plan, facts, session.address)
        measure.require_runtime(facts, plan.runtime, session.address, python)
        bench = stages.open_workbench(plan, splits, cache, say, remeasure)
        return _into(out, bench, session, facts)


def _into(out: Path, bench: Workbench, session: Session, facts: dict[str, Any]) -> dict[str, Any]:
    sources = {name: stages.reference(bench, name) for name in ("selection", "final")}
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for folder in ("candidates", "samples"):
            (scratch / folder).mkdir()
        run = Run(bench, session, facts, scratch, sources, {}, {})
        document = _climb(run)
        (scratch / "run.json").write_text(json.dumps(document, indent=1, allow_nan=False))
        html.write(document, scratch)
        _replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return document


def _climb(run: Run) -> dict[str, Any]:
    plan = run.plan
    trials, stop = ladder.climb(plan, lambda recipe, before: _try(run, recipe, before), lambda done: _tell(run, done))
    chosen = ladder.choose(plan, trials)
    final = _final(run, chosen) if chosen else None
    document: dict[str, Any] = {
        "schema": 1,
        "name": plan.name,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "edgeopt": metadata.version("edgeopt"),
        "verdict": final["verdict"] if final else "fail",
        "plan": dict(plan.to_json(), splits=_split_sizes(run)),
        "board": dict(run.facts, address=run.session.address),
        "trials": [
            dict(trial.record, name=trial.recipe.name, verdict=trial.verdict, reason=trial.reason) for trial in trials
        ],
        "stop": stop,
        "notes": _notes(plan),
        "chosen": chosen.recipe.name if chosen else None,
        "final": final,
        "bundle": None,
        "manifest": None,
    }
    document["sentence"] = sentence(document, _missed(plan, trials))
    if chosen is not None and final is not None and final["verdict"] != "fail":
        made = _bundle(run, chosen, final["verdict"])
        document["bundle"] = {"file": made.path.name, "release": made.release, "size_bytes": made.path.stat().st_size}
        document["manifest"] = made.manifest.model_dump(mode="json")
    return document


def _tell(run: Run, trials: Sequence[Trial]) -> None:
    last = trials[-1]
    run.bench.say({"event": "verdict", "what": f"{last.recipe.name}: {last.verdict}, {last.reason}"})


def _try(run: Run, recipe: Recipe, trials: Sequence[Trial]) -> Trial:
    """Make the candidate, run it on the board beside the baseline and the best so far, and write down what was found.

    A candidate that cannot be made or gives NaN is a failed trial; a baseline that fails ends the run.
    """
    try:
        artifact, notes = stages.artifact(run.bench, recipe)
        run.artifacts[recipe.name] = artifact
        run.outputs[recipe.name] = stages.board_outputs(run.bench, run.session, run.facts, artifact, "selection")
    except (ModelError, PlanError, AgentFailure) as error:
        if not trials or (isinstance(error, AgentFailure) and error.kind != "runtime"):
            raise
        return _failed(recipe, str(error))
    rivals = [recipe.name]
    if trials:
        rivals = list(dict.fromkeys([trials[0].recipe.name, ladder.incumbent(trials).recipe.name, recipe.name]))
    together = [run.artifacts[name] for name in rivals]
    comparison = stages.measured(run.bench, run.session, run.facts, together)
    return _trial(run, recipe, notes, comparison, together)


def _failed(recipe: Recipe, why: str) -> Trial:
    nothing = Figure(None, None, 0, invalid="not measured: the candidate failed")
    record = {
        **_record(recipe),
        **dict.fromkeys(("artifact", "score", "latency", "load_s", "first_inference_s", "memory", "energy", "samples")),
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
    run: Run, recipe: Recipe, notes: dict[str, Any], comparison: Comparison, together: Sequence[Artifact]
) -> Trial:
    """together: baseline, best so far, candidate (the last), as far as they differ."""
    artifact, plan, index = together[-1], run.plan, len(together) - 1
    score = _score(run, recipe.name)
    latency, memory = comparison.latency(index), comparison.memory(index)
    values = {
        "latency_p50_s": latency["p50_s"]["value"],
        "latency_p95_s": latency["p95_s"]["value"],
        "size_bytes": float(artifact.size_bytes),
        "peak_memory_bytes": memory["above_runtime_bytes"] if memory else None,
    }
    ratios = _ratios(comparison, together, index, 0)
    step = _ratios(comparison, together, index, max(0, index - 1))
    record = {
        **_record(recipe),
        "artifact": _keep_artifact(run, artifact),
        "score": score,
        "latency": latency,
        "load_s": comparison.result["artifacts"][index]["load_s"],
        "first_inference_s": comparison.result["artifacts"][index]["first_inference_s"],
        "memory": memory,
        "energy": None,
        "ratios": {name: dict(figure.to_json(), against=together[0].name) for name, figure in ratios.items()},
        "step": dict(step[plan.objective].to_json(), against=together[max(0, index - 1)].name),
        "executed": comparison.executed(index),
        "conditions": comparison.conditions(),
        "samples": _keep_samples(run, comparison, [artifact.name for artifact in together]),
        "notes": notes.get("notes", {}) | {"compress": notes.get("compress")},
    }
    return Trial(
        recipe,
        values,
        ratios[plan.objective],
        step[plan.objective],
        score["value"],
        score["drop"],
        score["agreement"],
        record,
    )


def _ratios(comparison: Comparison, together: Sequence[Artifact], index: int, against: int) -> dict[str, Figure]:
    """Each objective as a ratio between two artifacts of one job."""
    own, other = comparison.memory(index), comparison.memory(against)
    memory = Figure(None, None, 0, invalid="not measured")
    if own and other and own["above_runtime_bytes"] and other["above_runtime_bytes"]:
        memory = Figure(own["above_runtime_bytes"] / other["above_runtime_bytes"], None, 1)
    return {
        "latency_p50_s": comparison.ratio(index, against),
        "size_bytes": Figure(together[index].size_bytes / together[against].size_bytes, None, 1),
        "peak_memory_bytes": memory,
    }


def _score(run: Run, name: str) -> dict[str, Any]:
    """The point estimate on selection, with the drop below the source model and the agreement with it."""
    selection = run.bench.splits["selection"]
    source = run.sources["selection"]
    classify = run.plan.run_file.task.metric in CLASS_METRICS
    judged = validate.judge(run.outputs[name], source, selection, run.plan.floor_drop, run.bench.scores, classify)
    kept = ("value", "interval", "n", "drop", "drop_interval", "agreement", "reference", "output_error")
    return {"metric": run.plan.to_json()["metric"], "split": "selection"} | {key: judged[key] for key in kept}


def _final(run: Run, chosen: Trial) -> dict[str, Any]:
    """Scored once, on the device, for the chosen candidate only; it never chooses another."""
    name = chosen.recipe.name
    outputs = stages.board_outputs(run.bench, run.session, run.facts, run.artifacts[name], "final")
    metric = run.plan.run_file.task.metric
    judged = validate.judge(
        outputs,
        run.sources["final"],
        run.bench.splits["final"],
        run.plan.floor_drop,
        run.bench.scores,
        metric in CLASS_METRICS,
    )
    classes = run.plan.run_file.task.classes
    worst = judged["worst_class"]
    if worst and classes and worst["label"] is not None:
        worst["label"] = classes[worst["label"]]
    return dict(judged, metric=run.plan.to_json()["metric"])


def _bundle(run: Run, chosen: Trial, verdict: str) -> bundle.Bundle:
    plan, artifact = run.plan, run.artifacts[chosen.recipe.name]
    health_blob, correct = _health_shard(run, chosen.recipe.name)
    model = artifact.path.read_bytes()
    if sha256_bytes(model) != artifact.sha256:
        raise IntegrityError(f"{artifact.path} changed since it was measured; run again")
    shards = validate.pack_shards(run.bench.splits["final"], run.sources["final"])
    blobs = {sha256_bytes(data): data for data in (model, health_blob, *shards)}
    p50 = chosen.values["latency_p50_s"]
    slowest = None
    if p50 is not None:
        slowest = max(LEAST_HEALTH_LATENCY * p50, min(HEALTH_LATENCY * p50 + SCHEDULING_S, _budget(plan)))
    metric = plan.run_file.task.metric
    of = min(HEALTH_SAMPLES, len(run.bench.splits["selection"]))
    file = f"model.{artifact.runtime}"
    manifest = bundle.Manifest.model_validate(
        {
            "format": 1,
            "name": plan.name,
            "created_by": f"edgeopt {metadata.version('edgeopt')}",
            "profile": plan.profile.id,
            "root": plan.run_file.device.root or plan.profile.board.root,
            "python": plan.run_file.device.python or plan.profile.board.python,
            "verdict": verdict,
            "budgets": plan.budgets,
            "artifact": {
                "file": file,
                "runtime": artifact.runtime,
                "threads": artifact.threads,
                "preprocess": artifact.preprocess,
            },
            "files": {file: _entry(model), "health.npz": _entry(health_blob)},
            "health": {
                "file": "health.npz",
                "metric": metric if correct is not None else None,
                "of": of,
                "least_correct": None if correct is None else max(0, int(correct - np.ceil(HEALTH_SPARE * of))),
                "greatest_median_latency_s": slowest,
                "greatest_output_error": HEALTH_OUTPUT_ERROR,
            },
            "policy": {},
            "evaluation": {
                "shards": [_entry(shard) for shard in shards],
                "metric": metric,
                "n": len(run.bench.splits["final"]),
                "floor_drop": plan.floor_drop,
                "classes": list(plan.run_file.task.classes),
            },
            "lineage": {
                "source_graph": run.bench.graph,
                "steps": chosen.record["steps"],
                "selection_score": chosen.record["score"]["value"],
                "latency_p50_s": p50,
            },
        }
    )
    return bundle.write(run.scratch / f"{plan.name}.edgeopt", manifest, blobs)


def _budget(plan: Plan) -> float:
    return plan.budgets.get("latency_p50_s", float("inf"))


def _health_shard(run: Run, name: str) -> tuple[bytes, int | None]:
    """(a small shard of selection with the outputs that the board gave for it, how many of it were right)."""
    selection = run.bench.splits["selection"]
    rows = np.random.default_rng(run.plan.seed).permutation(len(selection))[:HEALTH_SAMPLES]
    some, outputs = selection.take(rows), [array[rows] for array in run.outputs[name]]
    data = measure.shard(some, {f"expected{index}": array for index, array in enumerate(outputs)})
    if run.plan.run_file.task.metric not in CLASS_METRICS:
        return data, None
    return data, int(run.bench.scores(outputs, some.labels).sum())


def sentence(document: dict[str, Any], missed: str) -> str:
    """The verdict in one plain sentence."""
    final, board = document["final"], document["board"]
    place = board["model"] or board["hostname"]
    if final is None:
        return f"No candidate fits on {place}: {missed}."
    chosen = next(trial for trial in document["trials"] if trial["name"] == document["chosen"])
    baseline = document["trials"][0]["name"]
    ratios = chosen["ratios"]
    gain = (
        f"{baseline}, the source model as it is, is the best that fits"
        if chosen["name"] == baseline
        else f"{chosen['name']} is {1 / ratios['latency_p50_s']['value']:.2f} times as fast as {baseline} and "
        f"{1 / ratios['size_bytes']['value']:.2f} times smaller"
    )
    drop = units.drop(final["drop"], str(final["metric"]), final["drop_interval"])
    return f"On {place}, {gain}; its drop on {final['n']} held-out samples is {drop}: {final['reason']}."


def _notes(plan: Plan) -> list[str]:
    """Demands that nothing here can judge: they are said, not dropped."""
    watts = plan.profile.power.budget_w
    if watts is None:
        return []
    return [f"the profile's power budget of {watts:g} W was not judged: this edgeopt reads no power sensor yet"]


def _missed(plan: Plan, trials: Sequence[Trial]) -> str:
    """What kept each held candidate from being chosen."""
    parts = []
    for trial in trials:
        why = ladder.broken_budgets(plan, trial) if trial.verdict in ("kept", "baseline") else [trial.reason]
        if trial.verdict in ("kept", "baseline") and trial.drop > plan.floor_drop:
            why.append(f"the score drops by {trial.drop:.4f}, beyond the floor of {plan.floor_drop:g}")
        parts.append(f"{trial.recipe.name}: {'; '.join(why)}")
    return " | ".join(parts)


def _split_sizes(run: Run) -> dict[str, Any]:
    return {
        name: {
            "n": len(samples),
            "groups": np.unique(samples.groups).tolist() if samples.groups is not None else None,
        }
        for name, samples in run.bench.splits.items()
    }


def _keep_artifact(run: Run, artifact: Artifact) -> dict[str, Any]:
    file = f"candidates/{artifact.name}.{artifact.runtime}"
    shutil.copyfile(artifact.path, run.scratch / file)
    return {
        "file": file,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "runtime": artifact.runtime,
    }


def _keep_samples(run: Run, comparison: Comparison, names: Sequence[str]) -> str:
    """Raw samples of the whole job, so that every figure and ratio can be computed again: the candidate's (the last of
    `names`) as seconds, copy_s, block and started; its rivals' as <name>.seconds and <name>.block."""
    arrays: dict[str, Array] = {}
    for index, name in enumerate(names):
        own = [block for block in comparison.result["blocks"] if block["artifact"] == index]
        prefix = "" if index == len(names) - 1 else f"{name}."
        arrays[f"{prefix}seconds"] = comparison.seconds(index)
        arrays[f"{prefix}copy_s"] = comparison.copy_and_invoke_s[index][:, 0]
        arrays[f"{prefix}block"] = np.repeat(np.arange(len(own), dtype=np.int32), [block["n"] for block in own])
        arrays[f"{prefix}started"] = np.array([block["began_s"] for block in own])
    file = f"samples/{names[-1]}.npz"
    np.savez_compressed(run.scratch / file, **arrays)  # type: ignore[arg-type]
    return file


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": sha256_bytes(data), "size_bytes": len(data)}


def _require_own(out: Path) -> None:
    """`out` is replaced as a whole at the end, so it must be ours. Raises ConfigError."""
    if out.exists() and not (out.is_dir() and ((out / "run.json").is_file() or not any(out.iterdir()))):
        raise ConfigError(f"--out {out}: something else is there; name a new folder, or one that holds an earlier run")


def _replace(scratch: Path, out: Path) -> None:
    """Put the complete run in the place of an earlier one."""
    scratch.chmod(0o755)
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        out.rename(old / "run")
        scratch.rename(out)
        shutil.rmtree(old)
    else:
        scratch.rename(out)
