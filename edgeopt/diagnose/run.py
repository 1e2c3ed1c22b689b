"""The whole diagnosis, in the order in which one fault hides the next: files, preparation, host and board, float and
int8. Needs no framework: models are watched by changing their files, and run by the agent, here and on the board."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats, measure, validate
from ..artifact import Artifact
from ..bundle import Bundle
from ..device.session import Session
from ..errors import AgentFailure, ConfigError, ModelError
from ..flash import describe
from ..task import Array, Samples
from . import compare, graph, prepared, quantized, words

FAR_DB = 8.0  # below it an artifact's answers have little to do with its source's
PROVEN_DB = 10.0  # 7-bit weights must bring host and board so much closer
WITHOUT_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")

Document = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Asked:
    """reference: the float model's file; prepared: what the application made of the golden samples."""

    reference: Path | None
    prepared: Path | None
    samples: int


class Case:
    """The bundle's model and a few of its samples; runs it, and copies of it, anywhere."""

    def __init__(self, bundle: Bundle, count: int, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        own = folder / "artifact"
        own.mkdir()
        self.artifact = bundle.artifact(own)
        self.samples, self.source = _samples(bundle, count)
        self.graph = graph.read(self.artifact.paths[0], self.artifact.runtime)

    def answers(self, session: Session) -> tuple[Array, ...]:
        return measure.outputs(session, self.artifact, _shards(self.samples))

    def layers(self, session: Session, base: Path | None = None, of: graph.Graph | None = None) -> list[Array]:
        """What each layer of the model (or of `base`, another one of the same runtime) gives, (n, ...) each."""
        own = of or self.graph
        path = base or self.artifact.paths[0]
        with tempfile.TemporaryDirectory(dir=self.folder) as text:
            files = graph.watched(path, own, Path(text))
            told = self.artifact
            watched = Artifact.of_files(
                files, told.runtime, told.threads, told.preprocess, told.options, f"{told.name}, watched"
            )
            outputs = measure.outputs(session, watched, _shards(self.samples))
        if len(outputs) != len(own.outputs) + sum(number not in own.outputs for number in range(len(own.layers))):
            raise ModelError(f"{path}: its copy gave {len(outputs)} outputs; its layers cannot be told apart")
        return graph.in_order(own, outputs)


def diagnose(board: Session, host: Session | None, why_no_host: str, bundle: Bundle, asked: Asked) -> Document:
    """{"verdict", "checks", "findings", "layers", …}: findings that are faults make the verdict "fail".

    host: the same model is run here, too; without, `why_no_host` is told.
    Raises AgentFailure, ConfigError, ModelError, IntegrityError (the bundle), DeviceUnreachable.
    """
    bundle.check()
    checks: list[Document] = []
    findings: list[Document] = []
    with tempfile.TemporaryDirectory(prefix="edgeopt-diagnose-") as text:
        case = Case(bundle, asked.samples, Path(text))
        _files(board, case, checks, findings)
        _preparation(case, asked, checks, findings)
        table = [_row(number, layer) for number, layer in enumerate(case.graph.layers)]
        there = case.layers(board)
        _answers(board, host, case, checks, findings)
        _host_and_board(board, host, why_no_host, case, there, table, checks, findings)
        _float_and_int8(board, case, there, asked, table, checks, findings)
        return {
            "device": board.address,
            "release": bundle.release,
            "name": bundle.manifest.name,
            "runtime": case.artifact.runtime,
            "samples": len(case.samples),
            "reference": str(asked.reference) if asked.reference else None,
            "verdict": "fail" if any(found["is_fault"] for found in findings) else "pass",
            "checks": checks,
            "findings": sorted(findings, key=lambda found: not found["is_fault"]),
            "layers": table,
        }


def _samples(bundle: Bundle, count: int) -> tuple[Samples, tuple[Array, ...]]:
    """A few samples, and the source model's answers to them, where the bundle has any."""
    if bundle.manifest.evaluation is None:
        return prepared.health_samples(bundle, count)[0], ()
    pack = validate.read_pack(bundle)
    rows = np.arange(min(count, len(pack.samples)))
    return dataclasses.replace(pack.samples.take(rows), labels=None), tuple(array[rows] for array in pack.source)


def _shards(samples: Samples) -> list[bytes]:
    """One sample each: what a board holds of every layer at a time is one sample's."""
    plain = Samples(samples.inputs, None, None)
    return [measure.shard(plain.take(np.arange(row, row + 1))) for row in range(len(samples))]


def _row(number: int, layer: graph.Layer) -> Document:
    own = layer.quantization
    return {
        "number": number,
        "name": words.short(layer.node),
        "operator": layer.kind,
        "tensor": layer.name,
        "scale": own.scale if own else None,
        "zero_point": own.zero if own else None,
        "host_board": None,
        "float_int8": None,
        "loss_db": None,
        "range": None,
    }


def _files(board: Session, case: Case, checks: list[Document], findings: list[Document]) -> None:
    current = board.status(verify=True)["current"]
    if current is not None and current["release"] == case.bundle.release and not current["whole"]:
        findings.append(words.damaged_release(current["problem"], board.address))
        checks.append(words.check("files", "fault", f"the release on {board.address} is damaged"))
        return
    says = "bundle whole; not current there, its model was sent for this"
    if current is not None and current["release"] == case.bundle.release:
        says = "the current release there is this bundle's, every byte of it"
    elif current is not None:
        says = f"bundle whole; {describe(current)} is current there, this bundle's model was sent for this"
    checks.append(words.check("files", "good", says))


def _preparation(case: Case, asked: Asked, checks: list[Document], findings: list[Document]) -> None:
    wrong = prepared.steps_that_do_not_fit(case.graph, case.artifact)
    findings += wrong
    if asked.prepared is None:
        state, says = ("fault", wrong[0]["says"]) if wrong else ("not compared", words.NO_PREPARED)
        checks.append(words.check("preparation", state, says))
        return
    found = prepared.explain(case.bundle, case.artifact, asked.prepared)
    findings += found.findings
    faults = [*wrong, *(one for one in found.findings if one["is_fault"])]
    checks.append(
        words.check("preparation", "fault" if faults else "good", faults[0]["says"] if faults else found.says)
    )


def _answers(
    board: Session, host: Session | None, case: Case, checks: list[Document], findings: list[Document]
) -> None:
    there = case.answers(board)
    here = case.answers(host) if host is not None else None
    kinds = {"board": there, "host": here}
    parts, worst = [], None
    if case.source:
        for name, outputs in kinds.items():
            if outputs is not None:
                own = compare.error(outputs[0].reshape(case.source[0].shape), case.source[0])
                parts.append(f"{name} {words.decibels(own)} from the source model{_decisions(case, outputs)}")
                worst = own  # the host's, where it is known: what the board does otherwise is told apart
    if here is not None:
        own = compare.error(there[0], here[0])
        parts.append(f"board {words.decibels(own)} from host")
    if not parts:
        recorded, expected = prepared.health_samples(case.bundle, len(case.samples))
        if expected:
            own = compare.error(measure.outputs(board, case.artifact, _shards(recorded))[0], expected[0])
            parts.append(f"board {words.decibels(own)} from what was recorded when it was bundled")
            if compare.decibels(own) < compare.agreement_needed(case.graph, case.artifact.options):
                findings.append(words.other_than_recorded(board.address, own))
    checks.append(words.check("answers", "good" if parts else "not compared", "; ".join(parts) or words.NO_ANSWERS))
    if worst is not None and compare.decibels(worst) < FAR_DB:
        findings.append(words.far_from_source(worst))


def _decisions(case: Case, outputs: Sequence[Array]) -> str:
    evaluation = case.bundle.manifest.evaluation
    if evaluation is None or evaluation.metric not in ("top1", "top5"):
        return ""
    same = validate.decisions_agree(outputs, case.source) * len(case.samples)
    return f" ({same:.0f} of {len(case.samples)} decisions the same)"


def _host_and_board(
    board: Session,
    host: Session | None,
    why_no_host: str,
    case: Case,
    there: Sequence[Array],
    table: list[Document],
    checks: list[Document],
    findings: list[Document],
) -> None:
    if host is None:
        checks.append(words.check("host and board", "not compared", why_no_host))
        return
    here = case.layers(host)
    told = compare.layers(case.graph, there, here)
    for row, own in zip(table, told, strict=True):
        row["host_board"] = own
    agree = compare.agreement_needed(case.graph, case.artifact.options)
    parted = compare.parted(case.graph, told, agree)
    if not parted:
        least = min(told, key=compare.decibels)
        says = f"all {len(told)} layers agree; the least: {words.decibels(least)}"
        plain = compare.error(case.answers(board)[0], case.answers(host)[0])
        if compare.decibels(plain) < agree and compare.decibels(told[-1]) >= agree:
            findings.append(words.fused_apart(plain, board.address))
            checks.append(words.check("host and board", "fault", findings[-1]["says"]))
            return
        checks.append(words.check("host and board", "good", says))
        return
    first = parted[0]
    trial = _with_7_bits(board, host, case, first)
    facts = board.facts()
    vnni = [name for name in facts["cpu_features"] if name in WITHOUT_VNNI]
    if trial is not None and compare.decibels(trial) > max(agree, compare.decibels(told[first]) + PROVEN_DB):
        found = words.overflow(
            table[first], told[first], trial, board.address, vnni, case.artifact.runtime, len(parted)
        )
    else:
        found = words.host_and_board(table[first], told[first], board.address, len(parted))
    findings.append(found)
    checks.append(words.check("host and board", "fault", found["says"]))


def _with_7_bits(board: Session, host: Session, case: Case, layer: int) -> Document | None:
    """The layer's error between host and board once all int8 weights have 7 bits; None where it cannot be tried."""
    if case.graph.layers[layer].weights is None:
        return None
    with tempfile.TemporaryDirectory(dir=case.folder) as text:
        files = graph.halved(case.artifact.paths[0], case.graph, Path(text))
        if files is None:
            return None
        own = graph.read(files[0], case.artifact.runtime)
        return compare.layers(own, case.layers(board, files[0], own), case.layers(host, files[0], own))[layer]


def _float_and_int8(
    board: Session,
    case: Case,
    there: Sequence[Array],
    asked: Asked,
    table: list[Document],
    checks: list[Document],
    findings: list[Document],
) -> None:
    if not case.graph.quantized:
        checks.append(words.check("float and int8", "not compared", "the model is not quantized"))
        return
    inputs = prepared.after_steps(case.artifact, case.samples.inputs)
    reference = None
    if asked.reference is not None:
        reference = _reference(board, case, asked.reference)
    found = quantized.judge(case.graph, there, inputs, reference, table)
    findings += found
    faults = [one for one in found if one["is_fault"]]
    if faults:
        checks.append(words.check("float and int8", "fault", faults[0]["says"]))
    elif reference is None:
        checks.append(words.check("float and int8", "not compared", words.NO_REFERENCE))
    else:
        checks.append(words.check("float and int8", "good", quantized.summary(table)))


def _reference(board: Session, case: Case, path: Path) -> quantized.Reference:
    contents = formats.read(path)
    if contents.runtime != case.artifact.runtime:
        raise ConfigError(
            f"--reference {path}: a model for {contents.runtime}, the bundle's is for {case.artifact.runtime}; give "
            "the float model of the same runtime, as the run's candidates/fp32 is, or `edgeopt convert` makes it"
        )
    own = graph.read(path, contents.runtime)
    try:
        values = case.layers(board, path, own)
    except AgentFailure as error:
        raise ModelError(f"--reference {path}: it cannot be run with the bundle's samples ({error})") from error
    return quantized.Reference(path, own, values)
