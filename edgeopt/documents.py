"""What `bench`, `compare`, `load`, `power` and `validate` print, as a function of what was noted and of raw samples;
`edgeopt report --schema KIND` documents it (report/documents.schema.json).

Each takes `about`, which the command notes when it has measured, and the folder of samples; nothing else is read, so
that `edgeopt report --recompute` finds the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import load, placement, power, stats, sustained, validate
from .cost import Prices, per_1000_runs
from .measure import Comparison
from .profile import DeviceProfile

SCHEMA_VERSION = 1  # of a document: one more where a key goes, or means something else; new keys may come without it
Document = dict[str, Any]


def of_bench(about: Mapping[str, Any], folder: Path) -> Document:
    """Of one artifact, or of two with their ratio."""
    comparison = Comparison.read(folder)
    results = [_result(about, comparison, index) for index in range(len(about["artifacts"]))]
    mode = comparison.result["conditions"][0]["power_mode"]
    document: Document = {"device": about["device"], "board": about["board"], "power_mode": mode, "results": results}
    document["repeated"] = comparison.conditions()["repeated"]
    if len(results) == 2:
        document["ratio"] = comparison.ratio(1, 0).to_json()
    return document if comparison.mode != stats.SUSTAINED else _sustained(document, comparison, about["budgets"])


def _result(about: Mapping[str, Any], comparison: Comparison, index: int) -> Document:
    own, ran = comparison.result["artifacts"][index], about["operators"][index]
    return {
        **about["artifacts"][index],
        "latency": comparison.latency(index),
        "load_cold_s": own["load_cold_s"],
        "load_s": own["load_s"],
        "first_inference_s": own["first_inference_s"],
        "memory": comparison.memory(index),
        "executed": comparison.executed(index),
        "marks": comparison.conditions()["marks"] + (["random inputs"] if about["random_inputs"] else []),
        "operators": ran,
        "conversions": None if ran is None else placement.conversions(ran),
    }


def _sustained(document: Document, comparison: Comparison, budgets: Mapping[str, float]) -> Document:
    """With the curves, the ranking at the end, and the verdict where there is a budget for one model."""
    for index, result in enumerate(document["results"]):
        result["sustained"] = sustained.summary(comparison, index)
    if "ratio" in document:
        for part in ("start", "end"):
            document[f"ratio_{part}"] = sustained.ratio(comparison, 1, 0, part).to_json()
        return document
    verdict, reasons = sustained.verdict(document["results"][0]["sustained"], budgets)
    return {**document, "verdict": verdict, "reasons": reasons}


def of_load(about: Mapping[str, Any], folder: Path) -> Document:
    found = load.figures(folder)
    marks = found["conditions"]["marks"] + (["random inputs"] if about["random_inputs"] else [])
    names = ("device", "board", "name", "runtime", "threads")
    return {**{name: about[name] for name in names}, "inputs": about.get("inputs"), **found, "marks": marks}


def of_validate(about: Mapping[str, Any], folder: Path) -> Document:
    found = dict(validate.figures(about, folder), board=about["board"])
    prices = Prices(**about["prices"])
    found["cost"] = per_1000_runs(found["latency"], found.get("energy"), prices) if prices.known() else None
    return found


def of_power(about: Mapping[str, Any], folder: Path) -> Document:
    found = _estimated(about, folder) if about["profile"] else _measured(about, folder)
    demands = [power.Demand(**demand) for demand in about["demands"]]
    part = power.unseen(found["sensor"]["kind"], found["sensor"]["rail"], about["whole_board"])
    for result in found["results"]:
        result["verdict"] = power.judge(result, demands, part)
    verdicts = [result["verdict"]["verdict"] for result in found["results"] if result["verdict"]]
    worst = next((name for name in ("fail", "undecided", "pass") if name in verdicts), None)
    head = {"device": about["device"], "board": about["board"]}
    return {**head, **found, "verdict": worst, "random_inputs": about["random_inputs"]}


def _measured(about: Mapping[str, Any], folder: Path) -> Document:
    run = power.Run.read(folder)
    times, watts = run.watts()
    told = run.result["meter"]
    sensor = (
        {"kind": told["kind"], "rail": told["place"], "period_s": run.readings.sensor.interval_s}
        if told
        else run.result["sensor"]
    )
    failures = told["failures"] if told else run.result["failures"]
    return {
        "sensor": {**sensor, "how": "measured", "failures": failures},
        "alignment": run.alignment.to_json() if run.alignment else None,
        "results": [
            {**artifact, "executed": run.result["executed"][index], **run.per_inference(index, about["most_w"])}
            for index, artifact in enumerate(about["artifacts"])
        ],
        "sampler_overhead": run.overhead(),
        "watts": {
            "first_s": float(run.readings.times_s[0]) if len(times) else 0.0,
            "seconds": times.tolist(),
            "power_w": [value if math.isfinite(value) else None for value in watts.tolist()],
        },
        "marks": run.result["marks"],
        "disturbances": run.remarks(),
        "repeated": run.result.get("repeated"),
    }


def _estimated(about: Mapping[str, Any], folder: Path) -> Document:
    """As _measured, where nothing measures power: the latency is measured, the watts are the profile's."""
    comparison, profile = Comparison.read(folder), DeviceProfile.model_validate(about["profile"])
    profile._id = about["profile_id"]  # its file's name, which is no part of its text
    name = f"profile {profile.id}"
    return {
        "sensor": {"kind": "none", "rail": name, "how": "estimated", "period_s": None, "failures": {}},
        "alignment": None,
        "results": [
            {
                **artifact,
                "executed": comparison.executed(index),
                **power.estimate(profile, comparison.latency(index)),
            }
            for index, artifact in enumerate(about["artifacts"])
        ],
        "sampler_overhead": None,
        "watts": {"first_s": 0.0, "seconds": [], "power_w": []},
        "marks": [],
        "disturbances": comparison.conditions()["marks"],
        "repeated": comparison.conditions()["repeated"],
    }


def headed(kind: str, found: Document) -> Document:
    """A document as it is printed and kept."""
    return {"schema": SCHEMA_VERSION, "kind": kind, **found}


OF = {"bench": of_bench, "compare": of_bench, "load": of_load, "power": of_power, "validate": of_validate}
