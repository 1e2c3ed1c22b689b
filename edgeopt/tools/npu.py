"""An int8 .tflite compiled for the NPU of a profile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from edgeopt import formats
from edgeopt.cache import sha256_file
from edgeopt.errors import PlanError
from edgeopt.lower import ethosu
from edgeopt.plan import NPUS
from edgeopt.profile import DeviceProfile

from .lowering import SCRATCH, Clock, Say


def target(profile: DeviceProfile) -> tuple[str, str | None]:
    """(configuration, the delegate's path if the profile names it) of the profile's NPU.

    Raises PlanError.
    """
    npu = profile.npu
    if npu is None or npu.configuration not in NPUS:
        found = f"has {npu.configuration or npu.model.value}" if npu else "has no [npu]"
        raise PlanError(
            f"profile '{profile.id}' {found}; a .tflite can be compiled for {', '.join(NPUS)}: complete its [npu] "
            "model and macs_per_cycle, or name another profile"
        )
    return npu.configuration, npu.delegate.value if npu.delegate else None


def convert(model: Path, profile: DeviceProfile, out: Path, say: Say) -> dict[str, Any]:
    """Writes the compiled artifact to `out` and returns what is known of it, JSON-able; not run here, so not compared
    with its source. Raises PlanError, MissingDependency, ModelError; then nothing was written."""
    configuration, delegate = target(profile)
    given = formats.read(model)
    clock = Clock(say)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=out.parent) as text:
        made = ethosu.compile_for(model, configuration, Path(text) / out.name, clock)
        os.replace(made.path, out)
    seconds = clock.seconds()
    file = {"file": str(out), "size_bytes": out.stat().st_size, "sha256": sha256_file(out)}
    return {
        "model": str(model),
        "runtime": "tflite",
        "files": [file],
        "size_bytes": file["size_bytes"],
        "source_size_bytes": model.stat().st_size,
        "inputs": [str(port) for port in given.inputs],
        "preprocess": [[] for _ in given.inputs],
        "options": {"delegate": delegate} if delegate else {},
        "npu": made.to_json(),
        "seconds": seconds,
        "total_s": round(sum(part["seconds"] for part in seconds), 3),
    }
