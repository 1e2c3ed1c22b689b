"""convert and quantize: one model to one runtime's artifact, with how far each stage is from the source."""

from __future__ import annotations

import importlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import disk, fidelity, formats, lower, model, parity, quantizable
from edgeopt.artifact import Artifact
from edgeopt.cache import sha256_file
from edgeopt.errors import ConfigError, MissingDependency, ModelError, PlanError
from edgeopt.lower import Lowered
from edgeopt.plan import Ability
from edgeopt.profile import DeviceProfile

from . import scoring
from .feeding import describe
from .source import Given, Source, load, named_nodes, require_torch_runs

if TYPE_CHECKING:
    import torch

SCRATCH = ".edgeopt-"
Say = Callable[[dict[str, Any]], None]
SUFFIX_OF = {runtime: suffix for suffix, runtime in formats.RUNTIME_OF.items()}


class Clock:
    """Tells what is being done, as lowerings want it told, and keeps how long each part took."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._parts: list[tuple[str, float]] = []
        self._doing, self._began = "", time.monotonic()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        part = what.split(" (")[0]
        if part != self._doing:
            self._close()
            self._doing = part
        told = (
            {"event": "progress", "what": what, "done": done, "of": total}
            if total
            else {"event": "stage", "what": what}
        )
        self._say(told)

    def seconds(self) -> list[dict[str, Any]]:
        """[{"what", "seconds"}] so far, in order."""
        self._close()
        return [{"what": what, "seconds": round(spent, 3)} for what, spent in self._parts]

    def _close(self) -> None:
        now = time.monotonic()
        if self._doing:
            self._parts.append((self._doing, now - self._began))
        self._doing, self._began = "", now


def target(
    kind: str, scheme: str, out: Path, to: str | None, profile: DeviceProfile | None, overwrite: bool
) -> tuple[str, Path]:
    """(runtime, the file to write): --to, else the profile's first runtime that fits, else as the suffix of `out` says.

    kind: of source model, "torch" or "onnx". Raises ConfigError, PlanError.
    """
    abilities = lower.abilities()
    by_suffix = formats.RUNTIME_OF.get(out.suffix)
    fitting = [name for name, ability in abilities.items() if kind in ability.sources and scheme in _schemes(ability)]
    if to is not None or (profile is None and by_suffix is not None):
        chosen = to or str(by_suffix)
        _require_fit(abilities, chosen, kind, scheme)
        if profile is not None and chosen not in profile.runtimes:
            raise PlanError(
                f"--to {chosen}: profile '{profile.id}' runs {', '.join(profile.runtimes)}; name one of these"
            )
    elif profile is not None:
        admitted = [name for name in profile.runtimes if name in fitting]
        if not admitted:
            raise PlanError(
                f"profile '{profile.id}' runs {', '.join(profile.runtimes)}; of {kind} models in scheme '{scheme}', "
                f"artifacts can be made for {', '.join(fitting) or 'no runtime'} only"
            )
        chosen = by_suffix if by_suffix in admitted else admitted[0]
    else:
        raise ConfigError(f"--out {out}: name a runtime with --to, or end it in {', '.join(formats.RUNTIME_OF)}")
    if out.suffix in formats.RUNTIME_OF and by_suffix != chosen:
        ends = SUFFIX_OF[chosen]
        raise ConfigError(f"--out {out}: an artifact for {chosen} ends in {ends}; rename it, or change --to")
    return chosen, writable(out if by_suffix else out.with_name(out.name + SUFFIX_OF[chosen]), overwrite)


def writable(out: Path, overwrite: bool) -> Path:
    """`out`, if it can be written. Raises ConfigError."""
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out {out}: it cannot be written; name a file in a folder of yours")
    disk.require_room(out.parent)
    taken = [path for path in (out, *companions(out)) if path.exists()]
    if taken and not overwrite:
        raise ConfigError(f"--out {out}: {taken[0]} exists; name another, or add --overwrite")
    return out


def companions(out: Path) -> list[Path]:
    return [out.with_suffix(".bin")] if out.suffix == ".xml" else []


def require_packages(runtime: str, kind: str) -> None:
    """Raises MissingDependency before anything is loaded."""
    ability = lower.abilities()[runtime]
    needed = [("torch", "torch")] if kind == "torch" else [("onnx", "onnx"), ("onnx", "onnxruntime")]
    for extra, module in [*needed, *((ability.extra, module) for module in ability.modules)]:
        if util.find_spec(module) is None:
            raise MissingDependency(f"this needs '{module}', which is not installed: pip install 'edgeopt[{extra}]'")


def convert(
    source: Source, given: Given, runtime: str, scheme: str, out: Path, folder: Path, say: Say, *, accept_error: bool
) -> dict[str, Any]:
    """Writes the artifact to `out` (OpenVINO's .bin beside it) and returns what is known of it, JSON-able.

    folder: where a torch factory is looked up. accept_error: an artifact below the floor (floor.py) is written, too;
    otherwise "refused" of what is returned says why none was. Raises ConfigError, MissingDependency, PlanError,
    ModelError; then nothing was written.
    """
    require_packages(runtime, source.kind)
    if source.contents is not None:
        own = {"package": "onnxruntime", "version": metadata.version("onnxruntime")}
        formats.check(source.contents, {"onnxruntime": own}, "this machine")
        if scheme.startswith("int8"):
            quantizable.require_float(source.contents, f"--scheme {scheme}", "`edgeopt convert` takes it as it is")
    clock = Clock(say)
    _load_packages(clock, runtime)
    clock("loading the model")
    loaded, given = load(source, given, folder)
    return lower_to(loaded, source, given, runtime, scheme, out, clock, accept_error=accept_error)


def lower_to(
    loaded: torch.nn.Module | Path,
    source: Source,
    given: Given,
    runtime: str,
    scheme: str,
    out: Path,
    clock: Clock,
    *,
    accept_error: bool,
) -> dict[str, Any]:
    """As convert, of a loaded model."""
    if not isinstance(loaded, Path):
        clock("running the source model")
        require_torch_runs(loaded, given.arrays)
    example = tuple(array[: model.REFERENCE_BATCH] for array in given.arrays)
    calibration = given.arrays if scheme.startswith("int8") else ()
    try:
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=out.parent) as text:
            clock("running the source model")
            made = lower.make(runtime, loaded, scheme, example, calibration, Path(text), clock)
            refused = parity.refusal(made.notes["parity"])
            files = []
            if refused is None or accept_error:
                clock("writing")
                describe(made.paths[0], given, made.adapters)
                files = _place(made.paths, out)
    except ModelError as error:
        message = re.sub(rf"\S*{re.escape(SCRATCH)}[^/\s]*/", "", str(error))
        raise ModelError(named_nodes(message, source.contents) if source.contents else message) from error
    except OSError as error:
        raise ConfigError(
            f"--out {out}: it cannot be written ({error.strerror or error}); free room, or name another"
        ) from error
    document = _document(source, given, runtime, scheme, made, files, clock)
    return document | {"refused": None if files else refused}


def _load_packages(clock: Clock, runtime: str) -> None:
    """Imports take seconds, and are told as what they are."""
    modules = lower.abilities()[runtime].modules
    clock(f"importing {', '.join(modules)}")
    with lower.quiet():
        for name in modules:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise MissingDependency(f"'{name}' is installed but cannot be imported: {error}") from error


def _schemes(ability: Ability) -> list[str]:
    return [scheme for schemes in ability.schemes.values() for scheme in schemes]


def _require_fit(abilities: dict[str, Ability], runtime: str, kind: str, scheme: str) -> None:
    if runtime not in abilities:
        raise PlanError(f"--to {runtime}: no such runtime; there are: {', '.join(abilities)}")
    ability = abilities[runtime]
    if kind not in ability.sources:
        others = [name for name, other in abilities.items() if kind in other.sources]
        raise PlanError(
            f"runtime '{runtime}' takes {' and '.join(ability.sources)} models, and this one is {kind}; give it as "
            f"{ability.sources[0]}, or choose {' or '.join(others)} with --to"
        )
    if scheme not in _schemes(ability):
        raise PlanError(f"runtime '{runtime}' has no scheme '{scheme}'; it has: {', '.join(_schemes(ability))}")


def _place(paths: Sequence[Path], out: Path) -> list[Path]:
    """Moves the files to where they belong; the first last, so that it is never without the others."""
    targets = [out if path is paths[0] else out.with_suffix(path.suffix) for path in paths]
    if len(targets) > 1:
        out.unlink(missing_ok=True)
    for path, place in reversed(list(zip(paths, targets, strict=True))):
        os.replace(path, place)
    return targets


def _document(
    source: Source, given: Given, runtime: str, scheme: str, made: Lowered, files: Sequence[Path], clock: Clock
) -> dict[str, Any]:
    steps = [[dict(step) for step in own] for own in made.adapters]
    if given.metric is not None:
        clock(f"scoring with {given.metric}")
    score = scoring.here(Artifact.of_files(files, runtime, 1, steps, made.options), given) if files else None
    seconds = clock.seconds()
    notes = dict(made.notes)
    shown = ("parity", "ops", "int8_mac_share", "transposes_and_pads", "float_ops", "in_float")
    operators = notes.get("ops") or {}
    notes.setdefault(
        "transposes_and_pads", {name: operators[name] for name in ("Transpose", "Pad") if name in operators}
    )
    return {
        "model": source.named,
        "runtime": runtime,
        "scheme": scheme,
        "files": [
            {"file": str(path), "size_bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files
        ],
        "size_bytes": sum(path.stat().st_size for path in files),
        "inputs": [_tensor(tensor) for tensor in made.inputs],
        "outputs": [_tensor(tensor) for tensor in made.outputs],
        "source_inputs": [str(port) for port in source.contents.inputs] if source.contents else None,
        "source_outputs": list(given.outputs),
        "binding": given.entry(),
        "preprocess": steps,
        "score": score,
        "options": made.options,
        "samples": {"n": len(given), "random": given.is_random},
        "large_error": large_error(notes.get("parity") or [], runtime, scheme, source.kind),
        **{name: notes.pop(name, None) for name in shown},
        "notes": notes,
        "seconds": seconds,
        "total_s": round(sum(part["seconds"] for part in seconds), 3),
    }


def large_error(stages: Sequence[dict[str, Any]], runtime: str, scheme: str, kind: str) -> dict[str, Any] | None:
    """{"where", "figure", "sqnr_db", "equal_share", "threads", "schemes", "runtimes", "float"}: of the last of these
    stages of parity.compare, its worst part, and what else could be tried (lower.other_ways); None where it is close.

    kind: of the source model, "torch" or "onnx".
    """
    part = fidelity.worst(stages[-1]["outputs"]) if stages else None
    if part is None or not fidelity.is_large(part):
        return None
    return {
        "where": fidelity.where(part, len(stages[-1]["outputs"])),
        "figure": fidelity.figure(part),
        "sqnr_db": part["sqnr_db"],
        "equal_share": part["equal_share"],
        "threads": stages[-1].get("threads"),
        **lower.other_ways(runtime, scheme, kind),
    }


def _tensor(tensor: lower.TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
