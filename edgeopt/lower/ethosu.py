"""An int8 .tflite compiled for an Arm Ethos-U NPU: not a runtime's lowering but a step after tflite's.

Vela, Arm's compiler, packs what the NPU can compute into custom operators 'ethos-u' and leaves the rest to the CPU. The
result runs on TFLite with the vendor's delegate only. Vela's figures come from its model of the NPU: every one of them
is marked simulated.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from edgeopt import formats
from edgeopt.cache import Cache, sha256_file, source_of, versions
from edgeopt.errors import MissingDependency, ModelError, PlanError
from edgeopt.lower import Progress
from edgeopt.plan import NPUS, Npu
from edgeopt.stats import Figure

CUSTOM = "ethos-u"
# Vela's own names, from the vela.ini that it ships with: NPUs beside a Cortex-A, whose model lies in DRAM.
SYSTEMS = dict.fromkeys(NPUS, ("Ethos_U65_High_End", "Dedicated_Sram_384KB"))
LIMIT_S = 1800.0
SUMMARY = {
    # our name: (Vela's column, factor to SI)
    "latency_s": ("inference_time", 1.0),
    "cycles": ("cycles_total", 1.0),
    "sram_bytes": ("sram_memory_used", 1024.0),
    "dram_bytes": ("dram_memory_used", 1024.0),
    "macs": ("nn_macs", 1.0),
}
REFUSAL = re.compile(r"Warning \([^)]*\) operator: (?P<kind>[^,]+), ofm: '(?P<name>[^']*)'\n(?P<why>(?:.+\n)*)")
TABLE = re.compile(r'<table name="(\w+)">\s*<!\[CDATA\[\n(.*?)\]\]>', re.DOTALL)
NOT_TOLD = "Vela does not say why"


@dataclass(frozen=True)
class Compiled:
    """placement: {"operators", "on_npu", "share", "on_cpu": [{"operator", "name", "reason"}]}, counted in operators of
    the .tflite that was given. estimate: Figures by quantity, all of them simulated. compiler: what made it, and for
    what."""

    path: Path
    placement: dict[str, Any]
    estimate: dict[str, Figure]
    compiler: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        estimate = {name: figure.to_json() for name, figure in self.estimate.items()}
        return {"placement": self.placement, "estimate": estimate, "compiler": self.compiler}


def compile_for(model: Path, configuration: str, out: Path, progress: Progress) -> Compiled:
    """Compiles `model`, an int8 .tflite, for an NPU (a key of SYSTEMS) and writes it to `out`.

    Raises PlanError (no such NPU), MissingDependency, ModelError: Vela refuses the file, or finds nothing in it that
    the NPU can compute.
    """
    if configuration not in SYSTEMS:
        raise PlanError(f"no NPU '{configuration}' is known; allowed: {', '.join(SYSTEMS)}")
    if util.find_spec("ethosu") is None:
        raise MissingDependency(
            f"compiling for {configuration} needs 'ethos-u-vela', which is not installed: pip install 'edgeopt[npu]'"
        )
    given = formats.read(model, "tflite")
    if any(operator.kind == CUSTOM for operator in given.operators):
        raise ModelError(f"{model} was compiled for an Ethos-U already; give the .tflite from before that step")
    progress(f"compiling for {configuration}")
    system, memory = SYSTEMS[configuration]
    with tempfile.TemporaryDirectory(prefix="edgeopt-vela-") as text:
        folder = Path(text)
        said = _run_vela(model, configuration, folder)
        with _reading(model):
            placement = _placement(folder / f"{model.stem}_debug.xml", said)
            estimate = _estimate(folder / f"{model.stem}_summary_{system}.csv")
        compiled = folder / f"{model.stem}_vela.tflite"
        _require_placed(model, configuration, placement, formats.read(compiled, "tflite"))
        out.write_bytes(compiled.read_bytes())
    version = metadata.version("ethos-u-vela")
    compiler = {"vela": version, "accelerator": configuration, "system": system, "memory_mode": memory}
    return Compiled(out, placement, estimate, compiler)


def stage(cache: Cache, lowered: Path, step: Npu, progress: Progress) -> tuple[Path, dict[str, Any]]:
    """(folder of the compiled artifact, which keeps its name; Compiled.to_json()), kept in the cache."""
    inputs = {
        "lowered": sha256_file(lowered),
        "npu": step.configuration,
        "versions": versions(("ethos-u-vela",)),
        "code": source_of("edgeopt/lower/ethosu.py"),
    }

    def build(folder: Path) -> None:
        made = compile_for(lowered, step.configuration, folder / lowered.name, progress)
        (folder / "npu.json").write_text(json.dumps(made.to_json()))

    folder = cache.stage(f"compiled for {step.configuration}", inputs, build)
    notes: dict[str, Any] = json.loads((folder / "npu.json").read_text())
    return folder, notes


def _run_vela(model: Path, configuration: str, folder: Path) -> str:
    """In a process of its own: it prints, exits and may crash as it likes."""
    system, memory = SYSTEMS[configuration]
    command = [
        *(sys.executable, "-m", "ethosu.vela", str(model.resolve()), "--output-dir", str(folder)),
        *("--accelerator-config", configuration, "--config", "Arm/vela.ini", "--system-config", system),
        *("--memory-mode", memory, "--show-cpu-operations", "--enable-debug-db", "--verbose-performance"),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{model}: Vela did not compile it for {configuration} within {LIMIT_S:g} s") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        told = lines[-1][:300] if lines else f"exit code {done.returncode}"
        raise ModelError(f"{model}: Vela cannot compile it for {configuration}: {told}")
    return done.stdout


@contextlib.contextmanager
def _reading(model: Path) -> Iterator[None]:
    """Raises ModelError where Vela's tables are not those that are read here."""
    try:
        yield
    except (KeyError, StopIteration, TypeError, ValueError, OSError) as error:
        raise ModelError(
            f"{model}: the tables of ethos-u-vela {metadata.version('ethos-u-vela')} are not as edgeopt reads them "
            f"({type(error).__name__}: {error}); install the version that edgeopt was tried with: "
            "pip install 'edgeopt[npu]'"
        ) from error


def _placement(database: Path, said: str) -> dict[str, Any]:
    """Which operators of the given file went where: Vela's debug database lists them, and tells as 'Passthrough' what
    is left to the CPU; the reasons are in what it prints."""
    tables = dict(_tables(database.read_text("utf-8", "replace")))
    source = {row["id"]: row["operator"] for row in tables["source"]}
    left = [row for row in tables["perf"] if row["operator"] == "Passthrough"]
    reasons = {match["name"]: (match["kind"], _words(match["why"])) for match in REFUSAL.finditer(said)}
    on_cpu = []
    for row in left:
        kind, why = reasons.get(row["name"], (source.get(row["source_id"], "?").upper(), NOT_TOLD))
        on_cpu.append({"operator": kind, "name": row["name"], "reason": why})
    total = len(source)
    on_npu = total - len(on_cpu)
    return {"operators": total, "on_npu": on_npu, "share": on_npu / total if total else 0.0, "on_cpu": on_cpu}


def _tables(text: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    for name, body in TABLE.findall(text):
        yield name, list(csv.DictReader(body.splitlines()))


def _words(lines: str) -> str:
    """The reason as one line; Vela's own label before it is left out."""
    return "; ".join(line.strip() for line in lines.splitlines()).removeprefix("Reason: ") or NOT_TOLD


def _require_placed(model: Path, configuration: str, placement: dict[str, Any], compiled: formats.Contents) -> None:
    """What Vela says must be what is in its file."""
    left = [operator for operator in compiled.operators if operator.kind != CUSTOM]
    if len(left) == len(compiled.operators):
        first = placement["on_cpu"][0]["reason"] if placement["on_cpu"] else NOT_TOLD
        raise ModelError(
            f"{model}: Vela places none of its {placement['operators']} operators on the {configuration} ({first}); "
            "the NPU computes int8 and int16 only: make it int8 first with `edgeopt quantize … --to tflite`"
        )
    if len(left) != len(placement["on_cpu"]):
        raise ModelError(
            f"{model}: Vela says that {len(placement['on_cpu'])} operators stay on the CPU, its file holds "
            f"{len(left)}; its report cannot be trusted: try another version of ethos-u-vela"
        )


def _estimate(summary: Path) -> dict[str, Figure]:
    with summary.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    return {
        name: Figure(float(row[column]) * factor, None, 1, how="simulated")
        for name, (column, factor) in SUMMARY.items()
    }
