"""bundle: any model file as a bundle that flash, bench, compare, validate and rollback take.

What the board's health check may judge depends on what is known. Without a board the outputs need only be finite. With
one the model runs there first: its outputs are what is expected afterwards, and its median latency sets the limit. With
labels as well, right answers are counted, and the bundle carries an evaluation pack. Its reference is the model that
this one was made from, where it is named, else the model's own outputs.
"""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import preprocess as operations

from edgeopt import bundle as bundles
from edgeopt import fidelity, formats, measure, provenance, validate
from edgeopt.artifact import Artifact
from edgeopt.cache import sha256_bytes, sha256_file
from edgeopt.device.session import Session
from edgeopt.errors import ConfigError, ModelError, PlanError
from edgeopt.pack import HEALTH_LATENCY, HEALTH_OUTPUT_ERROR, HEALTH_SAMPLES, HEALTH_SPARE, SCHEDULING_S
from edgeopt.profile import DeviceProfile
from edgeopt.task import CLASS_METRICS, Array, Samples, check_labels, check_outputs

from . import reference as references
from .reference import Reference
from .source import Given, random_arrays, read_inputs

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")
Steps = list[list[dict[str, Any]]]


@dataclass(frozen=True)
class Wanted:
    """What the bundle is to be. steps: per input, in the model's order; options: the runtime's own settings."""

    name: str
    profile: DeviceProfile
    root: str
    python: str
    threads: int
    metric: str | None
    floor_drop: float
    steps: Steps
    options: dict[str, str]


@dataclass(frozen=True)
class Tried:
    """What the board answered: outputs (n, ...) for every sample, and the median latency. board: what it is."""

    device: str
    outputs: tuple[Array, ...]
    latency_p50_s: float | None
    marks: list[str]
    board: dict[str, Any]


def read_steps(path: Path | None, names: Sequence[str]) -> tuple[Steps, dict[str, str]]:
    """(preprocess steps per input, options) of a .toml or a .json file.

    `preprocess` is there a list per input, a table by input's name, or with one input just its steps.

    names: of the inputs, in the model's order. What `edgeopt convert --json` prints is such a file. Raises ConfigError.
    """
    if path is None:
        return [[] for _ in names], {}
    try:
        text = path.read_text("utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--preprocess {path}: {error}; a .toml or a .json file is needed") from error
    given = data.get("preprocess") if isinstance(data, dict) else data
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in names]:
            raise ConfigError(f"--preprocess {path}: there is no input '{unknown[0]}'; there are: {', '.join(names)}")
        given = [given.get(name, []) for name in names]
    if isinstance(given, list) and len(names) == 1 and given and all(isinstance(step, dict) for step in given):
        given = [given]
    if not isinstance(given, list) or len(given) != len(names):
        raise ConfigError(
            f"--preprocess {path}: found no `preprocess` with a list of steps for each of the {len(names)} inputs "
            f"({', '.join(names)}); write [[preprocess.NAME]] tables; with one input, [[preprocess]] will do"
        )
    for name, steps in zip(names, given, strict=True):
        if wrong := operations.problems(steps):
            raise ConfigError(f"--preprocess {path}: input '{name}': {'; '.join(wrong)}")
    options = data.get("options", {}) if isinstance(data, dict) else {}
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise ConfigError(f"--preprocess {path}: options = {options!r}; a table of texts is needed")
    return given, options


def samples_of(
    contents: formats.Contents, inputs: Path | None, shapes: Sequence[tuple[int, ...]], labels: str | None
) -> tuple[Given, list[str]]:
    """(samples, the inputs' names in the model's order); without `inputs` random ones, in `shapes` or the model's own.

    Raises ConfigError, ModelError.
    """
    names = list(contents.names)
    if inputs is not None and shapes:
        raise ConfigError("--inputs and --shape contradict each other; give one")
    if inputs is not None:
        return read_inputs(inputs, labels, names), names
    return Given(random_arrays(contents, shapes), None, True), names


def as_artifact(contents: formats.Contents, wanted: Wanted) -> Artifact:
    return Artifact.of_files(
        contents.paths, contents.runtime, wanted.threads, wanted.steps, dict(wanted.options), wanted.name
    )


def try_on(session: Session, artifact: Artifact, given: Given, board: dict[str, Any]) -> Tried:
    """Runs the model on the board: every sample once, then a short measurement. Raises ModelError for NaN."""
    samples = Samples(given.arrays, None, None)
    outputs = measure.outputs(session, artifact, measure.shards(samples))
    for index, output in enumerate(outputs):
        if not np.isfinite(output.astype(np.float64)).all():
            raise ModelError(
                f"{artifact.paths[0]}: output {index} is NaN or infinite on {session.address}; where the model that it "
                "was made from answers with numbers there, its conversion or that runtime is at fault: make it again "
                "in fp16 or fp32, or for another runtime"
            )
    some = measure.shards(samples.take(np.arange(min(len(samples), measure.LATENCY_SAMPLES))))
    with tempfile.TemporaryDirectory(prefix="edgeopt-bundle-") as folder:
        comparison = measure.bench(session, [artifact], some, "rapid", 0, Path(folder))
    p50, marks = comparison.latency(0)["p50_s"]["value"], list(comparison.conditions()["marks"])
    return Tried(session.address, outputs, p50, marks, board)


def refusal(contents: formats.Contents, tried: Tried, reference: Reference) -> str | None:
    """Why the board's answers are noise beside those of the model that this one was made from (floor.py), or None.

    Raises ModelError where they cannot be compared.
    """
    return fidelity.refusal(fidelity.errors(tried.outputs, reference.matching(contents.path, tried.outputs)))


def require_labels(given: Given, metric: str | None, has_board: bool, has_reference: bool) -> None:
    """Raises ConfigError for labels that cannot be used: no metric, no board, or others than the metric takes."""
    if given.labels is None:
        if metric is not None:
            raise ConfigError(f"--metric {metric}: it compares with labels; name their array with --labels")
        if has_reference:
            raise ConfigError("--reference: its loss is counted with labels; name their array with --labels")
        return
    if metric is None:
        raise ConfigError(f"--labels: say how they are compared, with --metric {' or '.join(operations.METRICS)}")
    check_labels(given.labels, metric, None)
    if not has_board:
        raise ConfigError("--labels: what is right is counted on the board; name it with --device")


def require_wanted(contents: formats.Contents, wanted: Wanted) -> None:
    """Raises ConfigError for a name that no release can have, PlanError for a runtime that the profile lacks."""
    if not NAME.fullmatch(wanted.name):
        raise ConfigError(f"--name {wanted.name!r}: letters, digits and . _ - are allowed; give another name")
    if contents.runtime not in wanted.profile.runtimes:
        runs = ", ".join(wanted.profile.runtimes)
        raise PlanError(f"{contents.path}: a model for {contents.runtime}; profile '{wanted.profile.id}' runs {runs}")
    own = wanted.profile.npu.delegate.value if wanted.profile.npu and wanted.profile.npu.delegate else None
    if (delegate := wanted.options.get("delegate")) not in (None, own):
        raise ConfigError(
            f"--preprocess: options.delegate = {delegate!r}, and profile '{wanted.profile.id}' names {own or 'none'}; "
            "a board loads only what its profile names: set delegate in the profile's [npu]"
        )


def write(
    out: Path,
    contents: formats.Contents,
    wanted: Wanted,
    given: Given,
    tried: Tried | None,
    reference: Reference | None,
) -> tuple[bundles.Bundle, dict[str, Any]]:
    """(the bundle, what was found, JSON-able). Raises ConfigError, PlanError, ModelError."""
    require_wanted(contents, wanted)
    require_labels(given, wanted.metric, tried is not None, reference is not None)
    samples = Samples(given.arrays, given.labels, None)
    source = _source(contents, wanted, samples, tried, reference)
    health, limits = _health(samples, wanted, tried)
    shards = validate.pack_shards(samples, source) if source else []
    files = {name: path.read_bytes() for name, path in _named(contents).items()}
    lineage = _lineage(contents, given, tried, reference)
    manifest = bundles.Manifest.model_validate(
        {
            "format": 1,
            "name": wanted.name,
            "created_by": f"edgeopt {metadata.version('edgeopt')}",
            "profile": wanted.profile.id,
            "root": wanted.root,
            "python": wanted.python,
            "verdict": "not judged",
            "budgets": wanted.profile.budget.model_dump(exclude_none=True),
            "artifact": {
                "file": next(iter(files)),
                "runtime": contents.runtime,
                "threads": wanted.threads,
                "preprocess": wanted.steps,
                "options": wanted.options,
            },
            "files": {name: _entry(data) for name, data in {**files, "health.npz": health}.items()},
            "health": limits,
            "policy": {},
            "evaluation": _evaluation(shards, wanted, len(samples)) if shards else None,
            "measured_on": provenance.record(tried.board) if tried else None,
            "lineage": lineage,
        }
    )
    made = bundles.write(out, manifest, {sha256_bytes(data): data for data in (*files.values(), health, *shards)})
    return made, {
        "bundle": str(out),
        "release": made.release,
        "name": wanted.name,
        "size_bytes": out.stat().st_size,
        "runtime": contents.runtime,
        "files": list(files),
        "profile": wanted.profile.id,
        "verdict": "not judged",
        "health": limits,
        "evaluation": len(samples) if shards else None,
        **_prospects(source, samples, wanted),
        **_measured(tried),
        "samples": {"n": len(given), "random": given.is_random},
        "binding": given.entry(),
        "preprocess": wanted.steps,
        "lineage": lineage,
    }


def _measured(tried: Tried | None) -> dict[str, Any]:
    return {
        "latency_p50_s": tried.latency_p50_s if tried else None,
        "marks": tried.marks if tried else [],
        "board": provenance.record(tried.board) if tried else None,
    }


def _source(
    contents: formats.Contents, wanted: Wanted, samples: Samples, tried: Tried | None, reference: Reference | None
) -> tuple[Array, ...]:
    """What validate compares with, each (n, ...); none without labels."""
    if tried is None or samples.labels is None:
        return ()
    check_outputs(tried.outputs, samples.labels, str(wanted.metric), 0)
    return reference.matching(contents.path, tried.outputs) if reference else tried.outputs


def _prospects(source: Sequence[Array], samples: Samples, wanted: Wanted) -> dict[str, Any]:
    """The reference's mean score, and the least samples with which validate can pass; None without an evaluation."""
    if not source:
        return {"metric": None, "floor_drop": None, "reference_score": None, "needed_samples": None}
    scores = np.asarray(operations.score(str(wanted.metric), source, samples.labels))
    return {
        "metric": wanted.metric,
        "floor_drop": wanted.floor_drop,
        "reference_score": float(scores.mean()),
        "needed_samples": references.needed_samples(scores, wanted.floor_drop),
    }


def _health(samples: Samples, wanted: Wanted, tried: Tried | None) -> tuple[bytes, dict[str, Any]]:
    """(the shard that the board checks itself with, the limits)."""
    rows = np.random.default_rng(0).permutation(len(samples))[:HEALTH_SAMPLES]
    some = samples.take(rows)
    expected = [output[rows] for output in tried.outputs] if tried else []
    correct = None
    if tried and some.labels is not None and wanted.metric in CLASS_METRICS:
        right = int(operations.score(str(wanted.metric), expected, some.labels).sum())
        correct = max(0, int(right - np.ceil(HEALTH_SPARE * len(some))))
    # a stand-in's milliseconds say nothing of the board that this is meant for
    p50 = tried.latency_p50_s if tried and not tried.board.get("stand_in") else None
    limits = {
        "file": "health.npz",
        "metric": wanted.metric if correct is not None else None,
        "of": len(some),
        "least_correct": correct,
        "greatest_median_latency_s": None if p50 is None else HEALTH_LATENCY * p50 + SCHEDULING_S,
        "greatest_output_error": HEALTH_OUTPUT_ERROR if tried else None,
    }
    return measure.shard(some, {f"expected{index}": array for index, array in enumerate(expected)}), limits


def _evaluation(shards: Sequence[bytes], wanted: Wanted, count: int) -> dict[str, Any]:
    return {
        "shards": [_entry(shard) for shard in shards],
        "metric": wanted.metric,
        "n": count,
        "floor_drop": wanted.floor_drop,
        "classes": [],
    }


def _named(contents: formats.Contents) -> dict[str, Path]:
    """The files by the names that they have on the board: an application opens model.tflite, whoever made it."""
    first, *others = contents.paths
    found = {f"model{first.suffix}": first}
    for path in others:
        name = f"model{path.suffix}" if contents.runtime == "openvino" else path.name
        if not NAME.fullmatch(name) or name in (*found, "health.npz", "manifest.json"):
            raise ConfigError(
                f"{path}: a bundle cannot hold a file of that name; save the model again with its external data in a "
                "file that is named like weights.bin"
            )
        found[name] = path
    return found


def _lineage(
    contents: formats.Contents, given: Given, tried: Tried | None, reference: Reference | None
) -> dict[str, Any]:
    """Where everything is from, and what nobody judged."""
    return {
        "made_by": "edgeopt bundle",
        "model": {path.name: sha256_file(path) for path in contents.paths},
        "format": contents.versions,
        "samples": "random" if given.is_random else "given",
        "inputs": list(contents.names),
        "expected_outputs": f"this model's own on {tried.device}" if tried else None,
        "reference": reference.entry() if reference else references.OWN,
        "accuracy": "not judged",
        "latency_p50_s": tried.latency_p50_s if tried else None,
    }


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": sha256_bytes(data), "size_bytes": len(data)}
