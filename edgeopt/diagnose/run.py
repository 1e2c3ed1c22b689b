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
WRONG_DB = 20.0  # below it a range that looks shifted is at fault: int8 that is sound keeps more
PROVEN_DB = 10.0  # 7-bit weights must bring host and board so much closer
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")

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
            try:
                outputs = measure.outputs(session, watched, _shards(self.samples))
            except ValueError as error:
                raise ModelError(
                    f"{path}: its layers' sizes differ from sample to sample ({error}); look at one, with --samples 1"
                ) from error
        if len(outputs) != len(own.outputs) + sum(number not in own.outputs for number in range(len(own.layers))):
            raise ModelError(f"{path}: its copy gave {len(outputs)} outputs; its layers cannot be told apart")
        return graph.in_order(own, outputs)


def diagnose(board: Session, host: Session | None, why_no_host: str, bundle: Bundle, asked: Asked) -> Document:
    """{"verdict", "checks", "findings", "layers", …}: findings that are faults make the verdict "fail".

    host: the same model is run here, too; without, `why_no_host` is told.
    Raises AgentFailure, ConfigError, ModelError, IntegrityError (the bundle), DeviceUnreachable.
    """
    bundle.check()
    with tempfile.TemporaryDirectory(prefix="edgeopt-diagnose-") as text:
        work = _Work(board, host, why_no_host, Case(bundle, asked.samples, Path(text)), asked)
        work.files()
        work.preparation()
        work.answers()
        work.host_and_board()
        work.float_and_int8()
    return {
        "device": board.address,
        "release": bundle.release,
        "name": bundle.manifest.name,
        "runtime": work.case.artifact.runtime,
        "samples": len(work.case.samples),
        "reference": str(asked.reference) if asked.reference else None,
        "verdict": "fail" if any(found["is_fault"] for found in work.findings) else "pass",
        "checks": work.checks,
        "findings": sorted(work.findings, key=lambda found: not found["is_fault"]),
        "layers": work.table,
    }


class _Work:
    """The steps in their order; each appends what it compared to `checks`, and what is wrong to `findings`."""

    def __init__(self, board: Session, host: Session | None, why_no_host: str, case: Case, asked: Asked) -> None:
        self.board, self.host, self.why_no_host = board, host, why_no_host
        self.case, self.asked = case, asked
        self.checks: list[Document] = []
        self.findings: list[Document] = []
        self.table = [_row(number, layer) for number, layer in enumerate(case.graph.layers)]
        self.agree_db = compare.agreement_needed(case.graph, case.artifact.options)
        self.there = case.layers(board)
        self.judged = self.there
        self.is_far = False  # the artifact's answers from the source model's
        self.apart: Document | None = None  # the answers' own difference between board and host, nothing watched

    def _check(self, name: str, state: str, says: str) -> None:
        self.checks.append(words.check(name, state, says))

    def _fault(self, name: str, found: Document) -> None:
        self.findings.append(found)
        self._check(name, "fault", found["says"])

    def files(self) -> None:
        current = self.board.status(verify=True)["current"]
        is_own = current is not None and current["release"] == self.case.bundle.release
        if is_own and not current["whole"]:
            self._fault("files", words.damaged_release(current["problem"], self.board.address))
        elif is_own:
            self._check("files", "good", "the current release there is this bundle's, every byte of it")
        else:
            other = "nothing" if current is None else describe(current)
            says = f"bundle whole; {other} is current there, this bundle's model was sent for this"
            self._check("files", "good", says)

    def preparation(self) -> None:
        case = self.case
        faults = prepared.steps_that_do_not_fit(case.graph, case.artifact)
        says, is_whole = words.NO_PREPARED, False
        if self.asked.prepared is not None:
            found = prepared.explain(case.bundle, case.artifact, self.asked.prepared)
            faults, says, is_whole = [*faults, *found.findings], found.says, found.is_whole
        self.findings += faults
        wrong = [one["says"] for one in faults if one["is_fault"]]
        state = "fault" if wrong else "good" if is_whole else "not compared"
        self._check("preparation", state, wrong[0] if wrong else says)

    def answers(self) -> None:
        """Of the model as it is, against the source model's, and the host's."""
        case, parts = self.case, []
        there = case.answers(self.board)
        here = case.answers(self.host) if self.host is not None else None
        far: Document | None = None
        for name, outputs in (("board", there), ("host", here)):
            if outputs is not None and case.source:
                far = compare.answers(outputs, case.source, by_group=True)
                parts.append(f"{name} {words.decibels(far)} from the source model{_decisions(case, outputs)}")
        if here is not None:
            self.apart = compare.answers(there, here, by_group=False)
            parts.append(f"board {words.decibels(self.apart)} from host")
        if not parts and (own := self._since_bundled()) is not None:
            parts.append(f"board {words.decibels(own)} from what was recorded when it was bundled")
        self._check("answers", "good" if parts else "not compared", "; ".join(parts) or words.NO_ANSWERS)
        self.is_far = far is not None and compare.decibels(far) < WRONG_DB
        if far is not None and compare.decibels(far) < FAR_DB:  # the host's, where it is known
            self.findings.append(words.far_from_source(far))

    def _since_bundled(self) -> Document | None:
        """Against the answers that the bundle's health check expects."""
        recorded, expected = prepared.health_samples(self.case.bundle, len(self.case.samples))
        if not expected:
            return None
        found = measure.outputs(self.board, self.case.artifact, _shards(recorded))
        own = compare.answers(found, expected, by_group=False)
        if compare.decibels(own) < self.agree_db:
            self.findings.append(words.other_than_recorded(self.board.address, own))
        return own

    def host_and_board(self) -> None:
        if self.host is None:
            self._check("host and board", "not compared", self.why_no_host)
            return
        here = self.case.layers(self.host)
        told = compare.layers(self.case.graph, self.there, here)
        self.judged = here  # what the board does otherwise is told; it is not the artifact's
        for row, own in zip(self.table, told, strict=True):
            row["host_board"] = own
        parted = compare.parted(self.case.graph, told, self.agree_db)
        if parted:
            self._fault("host and board", self._parted(self.host, told[parted[0]], parted[0], len(parted)))
        elif compare.apart_unwatched(self.case.graph, self.apart, told, self.agree_db):
            self._fault("host and board", words.fused_apart(self.apart or {}, self.board.address))
        else:
            self._agreed(told)

    def _agreed(self, told: Sequence[Document]) -> None:
        """Of an answer that is off, and whose own tensor cannot be watched, layers that agree prove nothing."""
        least = words.decibels(min(told, key=compare.decibels)) if told else "none can be watched"
        says, is_proven = f"all {len(told)} layers agree; the least: {least}", bool(told)
        if self.apart is not None and compare.decibels(self.apart) < self.agree_db:
            says += f"; the answers with nothing watched: {words.decibels(self.apart)}"
            place = self.apart["output"]
            is_proven &= self.case.graph.outputs[place : place + 1] != (None,)
        self._check("host and board", "good" if is_proven else "not compared", says)

    def _parted(self, host: Session, told: Document, layer: int, count: int) -> Document:
        """Why the first layer parts: of overflow there is a proof, which 7-bit weights give."""
        row, case = self.table[layer], self.case
        if told.get("shapes"):
            return words.other_shape(words.layer(row), told, self.board.address, count, layer=layer)
        trial = self._with_7_bits(host, layer)
        if trial is None or compare.decibels(trial) < max(self.agree_db, compare.decibels(told) + PROVEN_DB):
            return words.host_and_board(row, told, self.board.address, count)
        vnni = [name for name in self.board.facts()["cpu_features"] if name in VNNI]
        return words.overflow(row, told, trial, self.board.address, vnni, case.artifact.runtime, count)

    def _with_7_bits(self, host: Session, layer: int) -> Document | None:
        """The layer's error between host and board once all int8 weights have 7 bits; None where it has none."""
        case = self.case
        if case.graph.layers[layer].weights is None:
            return None
        with tempfile.TemporaryDirectory(dir=case.folder) as text:
            files = graph.halved(case.artifact.paths[0], case.graph, Path(text))
            if files is None:
                return None
            own = graph.read(files[0], case.artifact.runtime)
            there, here = (case.layers(session, files[0], own) for session in (self.board, host))
            return compare.layers(own, there, here)[layer]

    def float_and_int8(self) -> None:
        case = self.case
        if not case.graph.quantized:
            self._check("float and int8", "not compared", "the model is not quantized")
            return
        reference = self._reference(self.asked.reference) if self.asked.reference is not None else None
        inputs = prepared.after_steps(case.artifact, case.samples.inputs)
        found = quantized.judge(case.graph, self.judged, inputs, reference, self.table, self.is_far)
        self.findings += found
        faults = [one["says"] for one in found if one["is_fault"]]
        state = "fault" if faults else "not compared" if reference is None else "good"
        has_ranges = any(row["scale"] is not None for row in self.table)
        unjudged = words.NO_REFERENCE if has_ranges else words.NO_RANGES
        says = unjudged if reference is None else quantized.summary(self.table)
        self._check("float and int8", state, faults[0] if faults else says)

    def _reference(self, path: Path) -> quantized.Reference:
        contents, case = formats.read(path), self.case
        if contents.runtime != case.artifact.runtime:
            raise ConfigError(
                f"--reference {path}: a model for {contents.runtime}, the bundle's is for {case.artifact.runtime}; "
                "give the float model of the same runtime, the run's candidates/fp32, or what `edgeopt convert` makes"
            )
        own = graph.read(path, contents.runtime)
        try:
            values = case.layers(self.host or self.board, path, own)  # where the judged layers are from
        except AgentFailure as error:
            raise ModelError(f"--reference {path}: it cannot be run with the bundle's samples ({error})") from error
        return quantized.Reference(path, own, values)


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


def _decisions(case: Case, outputs: Sequence[Array]) -> str:
    evaluation = case.bundle.manifest.evaluation
    if evaluation is None or evaluation.metric not in ("top1", "top5"):
        return ""
    own, source = (array[0].reshape(len(array[0]), -1).argmax(axis=1) for array in (outputs, case.source))
    return f" ({int((own == source).sum())} of {len(case.samples)} decisions the same)"
