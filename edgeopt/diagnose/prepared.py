"""Preparation: the golden samples of a bundle, and what an application made of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgeopt_agent import preprocess, wire
from edgeopt_agent.wire import RemoteError

from .. import arrays, validate
from ..artifact import Artifact
from ..bundle import Bundle
from ..errors import ConfigError, IntegrityError
from ..task import Array, Samples, read_npz
from . import geometry, hypotheses, words
from .graph import Graph

ARRAYS = 4  # golden samples of a bundle whose samples are arrays
QUANTIZE_SHARE = 1e-3
LARGEST = 1 << 20  # hertz, characters, … that [task.prepare] may ask for
LARGEST_PICTURE = 1 << 14

Document = dict[str, Any]
Steps = Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Golden:
    """arrays: per input (n, ...), what the samples must become before the bundle's preprocess steps. raws: the files,
    None where the samples are arrays themselves."""

    names: tuple[str, ...]
    raws: tuple[bytes, ...] | None
    arrays: tuple[Array, ...]
    prepare: dict[str, Any]

    @property
    def is_picture(self) -> bool:
        return self.prepare.get("kind") == "images"


@dataclasses.dataclass(frozen=True)
class Explained:
    """is_whole: every input was compared, and all of it but another decoder's rounding is explained."""

    findings: list[Document]
    says: str
    is_whole: bool = True


def golden(bundle: Bundle) -> Golden:
    """Raises IntegrityError; ConfigError for a bundle without samples."""
    evaluation = bundle.manifest.evaluation
    if evaluation is None or evaluation.golden is None:
        samples = validate.read_pack(bundle).samples if evaluation else health_samples(bundle, ARRAYS)[0]
        few = samples.take(np.arange(min(ARRAYS, len(samples))))
        return Golden(tuple(f"sample {row}" for row in range(len(few))), None, few.inputs, {})
    what = f"{bundle.path}: its golden samples"
    held = arrays.read(bundle.blob(evaluation.golden), what)
    try:
        count = sum(name.startswith("raw") for name in held)
        inputs = arrays.numbered(held, "input")
        arrays.require_rows({str(place): array for place, array in enumerate(inputs)}, count, count)
        names = tuple(str(held[f"name{row}"]) for row in range(count))
        return Golden(names, tuple(held[f"raw{row}"].tobytes() for row in range(count)), inputs, _prepare(held))
    except (ValueError, KeyError) as error:
        raise IntegrityError(f"{what} cannot be read ({error}); get it again") from error


def _prepare(held: Mapping[str, Array]) -> dict[str, Any]:
    """Raises ValueError for what no [task.prepare] can be."""
    found = wire.parse(str(held["prepare"]))
    if not isinstance(found, dict):
        raise ValueError("prepare is no object")
    for key, value in found.items():
        largest = LARGEST_PICTURE if found.get("kind") == "images" else LARGEST
        for one in value if isinstance(value, list) else [value]:
            if not (
                one is None or isinstance(one, str | bool) or (isinstance(one, int | float) and abs(one) <= largest)
            ):
                raise ValueError(f"prepare.{key!r:.60} is {one!r:.60}")
    return found


def health_samples(bundle: Bundle, count: int) -> tuple[Samples, tuple[Array, ...]]:
    """The first samples of the health check, and what the board answered when it was bundled. Raises IntegrityError."""
    health = bundle.manifest.health
    what = f"{bundle.path}: {health.file}"
    held = arrays.read(bundle.blob(bundle.manifest.files[health.file]), what)
    try:
        inputs, expected = arrays.numbered(held, "input"), arrays.numbered(held, "expected")
        arrays.require_rows({str(place): array for place, array in enumerate(inputs + expected)})
    except ValueError as error:
        raise IntegrityError(f"{what} cannot be read ({error}); get it again") from error
    return Samples(tuple(array[:count] for array in inputs), None, None), tuple(array[:count] for array in expected)


def write_golden(bundle: Bundle, folder: Path) -> Document:
    """The golden samples as files for the application, in order, and expected.npz with what they must become:
    `input<i>` before the bundle's preprocess steps, `model<i>` after them. Raises ConfigError, IntegrityError."""
    held = golden(bundle)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--golden {folder}: it is there and not an empty folder; name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for row, name in enumerate(held.names):
        for path, content in _files(held, row, name, folder):
            path.write_bytes(content)
            files.append(path.name)
    after = after_steps_of(bundle.manifest.artifact.preprocess, held.arrays)
    arrays = {f"input{place}": array for place, array in enumerate(held.arrays)}
    arrays |= {f"model{place}": array for place, array in enumerate(after)}
    with (folder / "expected.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    shapes = {name: [array.dtype.name, *array.shape] for name, array in arrays.items()}
    return {"folder": str(folder), "files": files, "expected": shapes, "prepare": held.prepare}


def _files(held: Golden, row: int, name: str, folder: Path) -> Iterator[tuple[Path, bytes]]:
    if held.raws is not None:
        suffix = Path(name.split(" (")[0]).suffix  # the only part of a foreign name that is used
        suffix = suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,10}", suffix) else ".txt"
        yield folder / f"golden-{row}{suffix}", held.raws[row]
        return
    for place, array in enumerate(held.arrays):
        buffer = io.BytesIO()
        np.save(buffer, array[row])
        yield folder / f"golden-{row}-input{place}.npy", buffer.getvalue()


def after_steps(artifact: Artifact, inputs: Sequence[Array]) -> tuple[Array, ...]:
    return after_steps_of(artifact.preprocess, inputs)


def after_steps_of(preprocesses: Sequence[Steps], inputs: Sequence[Array]) -> tuple[Array, ...]:
    """What the model is given. Raises ConfigError."""
    steps = list(preprocesses) or [[] for _ in inputs]
    try:
        return tuple(preprocess.apply(own, array) for own, array in zip(steps, inputs, strict=True))
    except RemoteError as error:
        raise ConfigError(f"the bundle's samples do not fit its preprocess steps: {error}") from error


def steps_that_do_not_fit(graph: Graph, artifact: Artifact) -> list[Document]:
    """Quantize steps of the bundle that are not what the model's input takes."""
    found = []
    for index, (own, steps) in enumerate(zip(graph.inputs, artifact.preprocess, strict=False)):
        for step in steps:
            if own is not None and step["op"] == "quantize":
                close = abs(step["scale"] - own.scale) <= QUANTIZE_SHARE * own.scale
                if not close or step["zero_point"] != own.zero:
                    found.append(words.step_quantization(index, step, own.scale, own.zero))
    return found


def explain(bundle: Bundle, artifact: Artifact, path: Path) -> Explained:
    """What the application did otherwise. Raises ConfigError for arrays that are not those of the golden samples."""
    held = golden(bundle)
    after = after_steps_of(artifact.preprocess, held.arrays)
    given = _given(path, len(held.arrays), len(held.names))
    notes: list[str] = []
    findings: list[Document] = []
    for place, own in enumerate(given):
        steps = artifact.preprocess[place] if artifact.preprocess else []
        told, said = _explain_one(held, place, own, after[place], steps)
        findings += told
        notes.append(said)
    is_whole = all(found["is_fault"] for found in findings)
    return Explained(findings, "; ".join(dict.fromkeys(note for note in notes if note)), is_whole)


def _given(path: Path, inputs: int, rows: int) -> list[Array]:
    found = read_npz(path, "--prepared")
    names = [f"input{place}" for place in range(inputs)]
    if inputs == 1 and len(found) == 1:
        names = list(found)
    for name in names:
        if name not in found:
            raise ConfigError(
                f"--prepared {path}: found the arrays {', '.join(sorted(found))}; {', '.join(names)} are needed, a row "
                "for each golden sample"
            )
        if not found[name].ndim or len(found[name]) != rows:
            raise ConfigError(
                f"--prepared {path}: '{name}' has {len(found[name]) if found[name].ndim else 'no'} rows; the bundle "
                f"has {rows} golden samples, in the order that --golden writes them"
            )
    return [found[name] for name in names]


def _explain_one(held: Golden, place: int, own: Array, after: Array, steps: Steps) -> tuple[list[Document], str]:
    """Either what the steps take or what they give may have been handed over: the closer one is meant."""
    right = held.arrays[place]
    if own.dtype.kind == "f" and not np.isfinite(own).all():
        says = f"what the application prepared for input {place} holds NaN or infinity"
        return [words.finding("values", f"input {place}", says, "look for a division by zero there")], ""
    axis = _channel_axis(held, right, steps)
    undone = _undone(own, steps) if sorted(own.shape) == sorted(after.shape) else None
    tried = [(one, is_after) for one, is_after in ((own, False), (undone, True)) if one is not None]
    results: list[tuple[hypotheses.Explanation, bool]] = []
    others: list[tuple[list[hypotheses.Expected], str]] = []

    def geometries() -> list[hypotheses.Expected]:
        others.extend([] if others else [_geometries(held, right)])
        return others[0][0]

    for view, is_after in tried:
        with contextlib.suppress(ValueError):
            results.append((hypotheses.explain(_last(view, axis), _last(right, axis), geometries), is_after))
    if not results:
        says = (
            f"what the application prepared for input {place} is {own.dtype} {list(own.shape[1:])}; "
            f"{right.dtype} {list(right.shape[1:])} is expected before the bundle's preprocess steps, "
            f"{after.dtype} {list(after.shape[1:])} after them"
        )
        kind = "resize" if held.is_picture else "shape"
        return [words.finding(kind, f"input {place}", says, _mend(held, kind))], ""
    best, is_after = min(
        results, key=lambda one: (one[0].residual > hypotheses.EXPLAINED, len(one[0].faults), one[0].residual)
    )
    found, says = _findings(held, place, best, is_after, right, after, steps)
    why = others[0][1] if others else ""
    if why and best.residual > hypotheses.GOOD:
        found = [{**one, "says": f"{one['says']}; not all resizes were tried: {why}"} for one in found]
    return found, says


def _undone(own: Array, steps: Steps) -> Array | None:
    """`own` in the layout that it had before the steps; None where they change no layout."""
    moves = [step for step in steps if step["op"] in ("transpose", "expand")]
    if not moves:
        return None
    for step in reversed(moves):
        if step["op"] == "expand":
            if own.shape[step["axis"]] != 1:
                return None
            own = np.squeeze(own, step["axis"])
        else:
            own = np.transpose(own, np.argsort(step["axes"]))
    return own


def _channel_axis(held: Golden, right: Array, steps: Steps) -> int:
    """Which axis has channels of their own scale: a picture's last, else what is normalized along before any move."""
    for step in steps:
        if held.is_picture or step["op"] in ("transpose", "expand"):
            break
        if step["op"] == "normalize" and len(step["mean"]) > 1:
            return int(step["axis"]) % right.ndim
    return right.ndim - 1


def _last(array: Array, axis: int) -> Array:
    return np.moveaxis(array, axis, -1) if axis < array.ndim else array


def _geometries(held: Golden, right: Array) -> tuple[list[hypotheses.Expected], str]:
    """(other ways from the files to arrays, why they are not all there)."""
    if not held.is_picture or held.raws is None:
        return [], ""
    found: list[hypotheses.Expected] = []
    try:
        found.extend(geometry.others(held.raws, held.prepare, right.shape))
    except ImportError:
        return found, "pip install 'edgeopt[tasks]'"
    except geometry.UNREADABLE as error:
        return found, f"the bundle's golden files or their `prepare` cannot be used ({error!r})"
    return found, ""


def _findings(
    held: Golden, place: int, best: hypotheses.Explanation, is_after: bool, right: Array, after: Array, steps: Steps
) -> tuple[list[Document], str]:
    """is_after: what was explained has the layout that the preprocess steps give."""
    where = f"input {place}"
    left = f"{100 * best.residual:.1f} % of its spread is left unexplained"
    if best.residual > hypotheses.EXPLAINED:
        says = f"what the application prepared for {where} is not what it must be, and no explanation fits ({left})"
        return [words.finding("preparation", where, says, _mend(held, "all"), residual=best.residual)], ""
    faults = [*best.faults, *_of_values(held, best, is_after, right, after, steps)]
    found = [
        words.finding(
            kind, where, f"preparation of {where}: {told} ({left})", _mend(held, kind), residual=best.residual
        )
        for kind, told in faults
    ]
    if not found and best.residual > hypotheses.GOOD:
        share = f"{100 * best.residual:.1f} % of its spread is not explained"
        says = f"preparation of {where}: {share}; its layout, channels and scale fit"
        tries = _mend(held, "all")
        return [words.finding("preparation", where, says, tries, is_fault=False, residual=best.residual)], says
    return found, "" if found else f"{where} is prepared as it must be ({left})"


def _of_values(
    held: Golden, best: hypotheses.Explanation, is_after: bool, right: Array, after: Array, steps: Steps
) -> list[tuple[str, str]]:
    """What is wrong with scale and offset: those before the steps belong to the layout before them, and so after."""
    undone, axis = _undone(after, steps), _channel_axis(held, right, steps)
    normal = hypotheses.fitted(_last(after if undone is None else undone, axis), _last(right, axis))
    plain = np.ones_like(best.by), np.zeros_like(best.by)
    wanted = [plain, normal] if undone is None else [normal] if is_after else [plain]
    span = float(np.ptp(right)) or 1.0
    if any(hypotheses.same_scale(best.by, best.offset, *one, span) for one in wanted):
        return []
    if undone is not None and not is_after and hypotheses.same_scale(best.by, best.offset, *normal, span):
        told = "values are those after the preprocess steps, in the layout of before them"
        known = any(kind == "layout" for kind, _ in best.faults)
        return [] if known else [("layout", f"{told}; {list(after.shape[1:])} is right")]
    own, *rest = (hypotheses.scaling(*one, held.is_picture) for one in ((best.by, best.offset), normal, plain))
    expected = f"{rest[0]}, or before the bundle's preprocess steps {rest[1]}" if rest[0] != rest[1] else rest[0]
    return [("normalization", f"wrong normalization: values are {own}; expected {expected}")]


def _mend(held: Golden, kind: str) -> str:
    prepare = {key: value for key, value in held.prepare.items() if value is not None}
    told = (
        f"prepare as the bundle says: {json.dumps(prepare)}" if prepare else "prepare as expected.npz of --golden shows"
    )
    return {
        "channels": "hand the channels over in the other order (decoders such as OpenCV's give BGR)",
        "layout": "transpose before the model is called, or take the interpreter's own layout",
        "normalization": "apply the bundle's preprocess steps (manifest.json, artifact.preprocess), and nothing else",
        "moved": "look at offsets, strides and rotation of the frame that is handed over",
    }.get(kind, told)
