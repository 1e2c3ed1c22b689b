"""The main job: climb the ladder on the board, score the chosen candidate once, bundle it, write runs/<name>/."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from . import data, decode, disk, evidence, ladder, lower, measure, onboard, provenance, stages
from . import plan as plans
from .cache import Cache
from .device.session import Session
from .errors import ConfigError
from .ladder import Trial
from .pack import pack
from .plan import Plan
from .report import html, units
from .stages import Say, Workbench
from .task import CLASS_METRICS
from .trial import Run, attempt

Connect = Callable[[], tuple[Session, str]]


def optimize(
    plan: Plan,
    connect: Connect,
    cache: Cache,
    out: Path,
    say: Say,
    remeasure: bool = False,
    bundle_anyway: bool = False,
) -> dict[str, Any]:
    """Run the plan and return what run.json holds; `out` is replaced as a whole at the end.

    connect: gives the session and the board's Python. bundle_anyway: where nothing fits, the nearest candidate is
    scored and packed. What is quick to check comes first: packages and data, then the board, then the model. Finished
    stages come from the cache, so a run that was interrupted goes on where it was.
    Raises EdgeoptError.
    """
    began = time.monotonic()
    _require_own(out)
    plans.require_packages(plan, lower.abilities())
    plan = decode.with_classes(plan)
    splits = data.opened(plan, cache, say)
    warned = data.foreseen(plan, splits["final"])
    for words in warned:
        say({"event": "warning", "what": words})
    plan = dataclasses.replace(plan, notes=(*plan.notes, *warned))
    session, python = connect()
    with session:
        facts = session.facts()
        stand_in = provenance.checked(plan.profile, facts, session.address, plan.stand_in)
        facts = {**facts, "stand_in": stand_in}
        plan = onboard.settle(plan, facts, session.address)
        measure.require_runtime(facts, plan.runtime, session.address, python)
        bench = stages.open_workbench(plan, splits, cache, say, remeasure)
        return _into(out, bench, session, facts, bundle_anyway, began)


def _into(
    out: Path, bench: Workbench, session: Session, facts: dict[str, Any], bundle_anyway: bool, began: float
) -> dict[str, Any]:
    sources = {name: stages.reference(bench, name) for name in ("selection", "final")}
    with disk.writing(out, "--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for folder in ("candidates", "samples"):
            (scratch / folder).mkdir()
        disk.require_room(scratch)
        run = Run(bench, session, facts, scratch, sources, {}, {})
        document = _climb(run, bundle_anyway)
        document["seconds"] = {
            "total": round(time.monotonic() - began, 3),
            "stages": {name: round(seconds, 3) for name, seconds in bench.cache.took_s.items()},
            "stored": list(dict.fromkeys(bench.cache.hits)),
        }
        disk.write(scratch / "run.json", json.dumps(document, indent=1, allow_nan=False))
        html.write(document, scratch)
        _replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return document


def _climb(run: Run, bundle_anyway: bool) -> dict[str, Any]:
    plan = run.plan
    trials, stop = ladder.climb(plan, functools.partial(attempt, run), functools.partial(_tell, run))
    chosen = ladder.choose(plan, trials)
    final = _final(run, chosen) if chosen else None
    near = None if chosen else ladder.nearest(plan, trials)
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
        "notes": list(plan.notes),
        "chosen": chosen.recipe.name if chosen else None,
        "final": final,
        "nearest": None if near is None else _near(run, near, bundle_anyway),
        "bundle": None,
        "manifest": None,
    }
    document["sentence"] = sentence(document)
    packed = chosen or near
    if packed is not None and (bundle_anyway or document["verdict"] != "fail"):
        made = pack(run, packed, document["verdict"])
        document["bundle"] = {"file": made.path.name, "release": made.release, "size_bytes": made.path.stat().st_size}
        document["manifest"] = made.manifest.model_dump(mode="json")
    return document


def _tell(run: Run, trials: Sequence[Trial]) -> None:
    last = trials[-1]
    run.bench.say({"event": "verdict", "what": f"{last.recipe.name}: {last.verdict}, {last.reason}"})


def _near(run: Run, near: Trial, is_scored: bool) -> dict[str, Any]:
    """What of a demand the nearest candidate lacks, and its final score where that is asked for."""
    missed = [dataclasses.asdict(miss) | {"over": _finite(miss.over)} for miss in ladder.misses(run.plan, near)]
    return {"name": near.recipe.name, "misses": missed, "final": _final(run, near) if is_scored else None}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _final(run: Run, chosen: Trial) -> dict[str, Any]:
    """Scored once, on the device, for the chosen candidate only; it never chooses another."""
    name = chosen.recipe.name
    outputs = stages.board_outputs(run.bench, run.session, run.facts, run.artifacts[name], "final")
    metric = run.plan.run_file.task.metric
    scored = evidence.Scored.of(
        outputs, run.sources["final"], run.bench.splits["final"], run.bench.scores, metric in CLASS_METRICS
    )
    scored.write(run.scratch / "samples" / "final.npz")
    task = run.plan.run_file.task
    judged = evidence.judged(scored, run.plan.floor_drop, task.classes, task.confidence_threshold)
    return dict(judged, metric=run.plan.to_json()["metric"])


def sentence(document: dict[str, Any]) -> str:
    """The verdict in one plain sentence."""
    final, board = document["final"], document["board"]
    place = provenance.mark(board) or f"on {provenance.named(board)}"
    if final is None:
        return f"No candidate fits {place}: {_missed(document)}."
    chosen = next(trial for trial in document["trials"] if trial["name"] == document["chosen"])
    baseline = document["trials"][0]["name"]
    ratios = chosen["ratios"]
    gain = (
        f"nothing that was tried is better than {baseline}, the source model as it is"
        if chosen["name"] == baseline
        else f"{chosen['name']} is {1 / ratios['latency_p50_s']['value']:.2f} times as fast as {baseline} and "
        f"{1 / ratios['size_bytes']['value']:.2f} times smaller"
    )
    gain += _clock_words(chosen) + _energy_words(chosen, baseline)
    drop = units.drop(final["drop"], str(final["metric"]), final["drop_interval"], final["reference"])
    there = f"{place[0].upper()}{place[1:]}"
    return f"{there}, {gain}; its drop on {final['n']} held-out samples is {drop}: {final['reason']}."


def _clock_words(chosen: dict[str, Any]) -> str:
    cap = chosen["artifact"]["frequency_max_hz"]
    return f", with the CPUs' clock capped at {units.quantity(cap, 'hz')}" if cap else ""


def _energy_words(chosen: dict[str, Any], baseline: str) -> str:
    """Joules and watts, where they were measured, and beside the baseline's."""
    energy = chosen["energy"]
    if energy is None:
        return ""
    gross, net, watts = (
        units.figure(dict(energy[key], interval=None), unit)
        for key, unit in (("gross_j", "j"), ("net_j", "j"), ("work_w", "w"))
    )
    ratio = chosen["ratios"]["energy_j"]
    own = chosen["name"] == baseline or ratio["value"] is None
    beside = "" if own else f", {units.number(ratio['value'], 2)} times that of {baseline}"
    return f"; an inference takes {gross} gross{beside}, {net} net, at {watts}"


def _missed(document: dict[str, Any]) -> str:
    """The nearest candidate and the worst of what it lacks."""
    near = document["nearest"]
    if near is None:
        return "none could be made and run; the reasons are below"
    metric = str(document["plan"]["metric"])
    first, *others = near["misses"]
    what = "a drop of" if first["what"] == "floor_drop" else f"a {units.label(first['what'])} of"
    worst = f"{what} {units.demand(first['what'], first['value'], metric)}"
    more = f", and misses {len(others)} more" if others else ""
    allowed = units.demand(first["what"], first["allowed"], metric)
    return f"the nearest, {near['name']}, has {worst} where {allowed} is allowed{more}"


def _split_sizes(run: Run) -> dict[str, Any]:
    return {
        name: {
            "n": len(samples),
            **({"ranges_n": len(run.bench.range_samples)} if name == "calibration" else {}),
            "groups": np.unique(samples.groups).tolist() if samples.groups is not None else None,
        }
        for name, samples in run.bench.splits.items()
    }


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
