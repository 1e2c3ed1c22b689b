"""Every figure of a run, computed again from the raw samples in its folder and compared with its run.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import documents, evidence, kept
from .cache import key_of, sha256_file
from .errors import IntegrityError

RELATIVE = 1e-9  # sums in another order, by another numpy
FOREIGN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError)
OF_JOB = ("latency", "load_s", "first_inference_s", "memory", "ratios", "step", "executed", "conditions")


def recompute(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """{"figures", how many were compared; "differences": [{figure, stored, again}]; "missing": [words]; "again": what
    was computed, by its place in run.json}. document: run.json of `folder`; nothing outside the folder is read."""
    again, missing = _again(document, folder)
    differences, count = [], 0
    for place, value in again.items():
        for where, stored, found in _leaves(place, _stored(document, place), value):
            count += 1
            if not _same(stored, found):
                differences.append({"figure": where, "stored": stored, "again": found})
    return {"figures": count, "differences": differences, "missing": missing, "again": again}


def of_kept(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what `recompute` says, the document) of a folder that --keep made; a file of samples that is not as it was
    measured is a difference, too. Raises ConfigError, IntegrityError."""
    record, document = kept.read(folder)
    differing, missing, again = [], [], {}
    for name, before in (record.get("files") or {}).items():
        try:
            now = sha256_file(_inside(folder, f"samples/{name}"))
        except OSError:
            missing.append(f"{folder / 'samples' / name}: not there")
            continue
        if now != before:
            differing.append({"figure": f"samples/{name}, SHA-256", "stored": before, "again": now})
    try:
        made = documents.OF[record["command"]](record["about"], folder / "samples")
        again = json.loads(json.dumps(made, allow_nan=False))
    except IntegrityError as error:
        missing.append(str(error))
    except FileNotFoundError as error:
        missing.append(f"{error.filename}: not there")
    except FOREIGN as error:  # files are anybody's to edit
        missing.append(f"{folder}: its samples and {kept.RECORD} are not as edgeopt writes them ({error!r})")
    count = 0
    for place, value in again.items():
        for where, stored, found in _leaves(place, document.get(place), value):
            count += 1
            if not _same(stored, found):
                differing.append({"figure": where, "stored": stored, "again": found})
    return {"figures": count, "differences": differing, "missing": missing, "again": again}, document


def _again(document: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """({place in run.json: value}, what could not be read)."""
    found: dict[str, Any] = {}
    missing: list[str] = []
    trials = {trial.get("name"): trial for trial in document.get("trials") or () if trial.get("artifact")}
    plan = document.get("plan")

    def attempt(work: Callable[..., dict[str, Any]], *given: Any) -> None:
        try:
            made = work(*given)
            json.dumps(made, allow_nan=False)
            found.update(made)
        except IntegrityError as error:
            missing.append(str(error))
        except FileNotFoundError as error:
            missing.append(f"{error.filename}: not there")
        except FOREIGN as error:  # run.json is anybody's to edit
            missing.append(f"{given[0]}: run.json is not as edgeopt writes it ({error!r})")

    for name, trial in trials.items():
        attempt(_artifact, f"trials.{name}", trial, folder)
        attempt(_job, f"trials.{name}", trial, trials, plan, folder)
        attempt(_score, f"trials.{name}.score", trial, plan, folder)
    if document.get("final"):
        attempt(_final, "final", document, folder)
    if document.get("bundle"):
        attempt(_bundle, "bundle", document, folder)
    return found, missing


def _artifact(place: str, trial: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    stored = trial["artifact"]
    first = _inside(folder, stored["file"])
    files = {name: sha256_file(_inside(folder, str(first.parent / name))) for name in stored["files"]}
    size = sum((first.parent / name).stat().st_size for name in stored["files"])
    digest = next(iter(files.values())) if len(files) == 1 else key_of(files)
    return {f"{place}.artifact.{key}": value for key, value in (("size_bytes", size), ("sha256", digest))}


def _job(
    place: str, trial: Mapping[str, Any], trials: Mapping[str, Any], plan: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    names, comparison = evidence.read_job(_inside(folder, trial["samples"]))
    sizes = [trials[name]["artifact"]["size_bytes"] for name in names]
    found = evidence.of_job(comparison, names, sizes)
    if trial.get("energy") is not None:
        again = evidence.of_energy(*evidence.read_energy(_inside(folder, trial["energy"]["samples"])))
        kept = {**again["energy"], "samples": trial["energy"]["samples"]}
        found |= {"energy": kept, **{key: found[key] | again[key] for key in ("ratios", "step")}}
    found["step"] = found["step"][plan["objective"]]
    return {f"{place}.{key}": found[key] for key in (*OF_JOB, "energy") if key in found}


def _score(place: str, trial: Mapping[str, Any], plan: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    scored = evidence.Scored.read(_inside(folder, f"samples/{trial['name']}.selection.npz"))
    judged = evidence.judged(scored, plan["floor_drop"])
    return {f"{place}.{key}": judged[key] for key in trial["score"] if key in judged}


def _final(place: str, document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    task = document["plan"]["run_file"]["task"]
    scored = evidence.Scored.read(_inside(folder, "samples/final.npz"))
    judged = evidence.judged(scored, document["plan"]["floor_drop"], task["classes"], task["confidence_threshold"])
    return {f"{place}.{key}": value for key, value in judged.items()} | {"verdict": judged["verdict"]}


def _bundle(place: str, document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {f"{place}.size_bytes": _inside(folder, document["bundle"]["file"]).stat().st_size}


def _inside(folder: Path, name: str | Path) -> Path:
    """Raises IntegrityError for a name that leads out of the run's folder."""
    path = (folder / name).resolve() if not Path(name).is_absolute() else Path(name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise IntegrityError(f"{folder / 'run.json'}: '{name}' is outside the run's folder")
    return path


def _stored(document: Mapping[str, Any], place: str) -> Any:
    """What run.json has at a dotted place; of trials by name. Names of artifacts hold no dots."""
    value: Any = document
    for key in place.split("."):
        if isinstance(value, list):
            value = next((one for one in value if one.get("name") == key), None)
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _leaves(where: str, stored: Any, again: Any) -> Iterator[tuple[str, Any, Any]]:
    """(place, stored, computed again) of all that is no dictionary or list; both sides' keys."""
    if isinstance(stored, Mapping) and isinstance(again, Mapping):
        for key in {**stored, **again}:
            yield from _leaves(f"{where}.{key}", stored.get(key), again.get(key))
    elif isinstance(stored, list | tuple) and isinstance(again, list | tuple) and len(stored) == len(again):
        for index, (one, other) in enumerate(zip(stored, again, strict=True)):
            yield from _leaves(f"{where}.{index}", one, other)
    else:
        yield where, stored, again


def _same(stored: Any, again: Any) -> bool:
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (stored, again)]
    if all(numbers):
        return math.isclose(stored, again, rel_tol=RELATIVE, abs_tol=1e-15)
    return bool(stored == again)
