"""The watts of artifacts that work in turns on a board: a stage whose raw readings are stored, as comparisons are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import power
from .artifact import Artifact
from .cache import source_of
from .device.session import Session
from .stages import Workbench, board_key, timed


def sampled(
    bench: Workbench, session: Session, facts: dict[str, Any], artifacts: Sequence[Artifact]
) -> power.Run | None:
    """One job's readings, stored as a whole and never mixed with another's; None where the plan wants no energy. What
    the sampler itself costs is asked once, where an artifact runs alone."""
    sensing = bench.plan.energy
    if sensing is None:
        return None
    window_s = sensing.window_s or power.window_s(facts["sensors"], sensing.wanted)
    rounds = power.OVERHEAD_ROUNDS if len(artifacts) == 1 else 0
    shards = timed(bench)
    inputs = {
        **board_key(session, facts, artifacts),
        "inputs": [hashlib.sha256(data).hexdigest() for data in shards],
        **{"sensor": sensing.wanted, "windows": sensing.windows, "window_s": window_s, "overhead_rounds": rounds},
        "seed": bench.plan.seed,
        "code": source_of("edgeopt/power.py"),
    }
    names = ", ".join(artifact.name for artifact in artifacts)

    def build(folder: Path) -> None:
        bench.say({"event": "stage", "what": f"measuring the energy of {names} on {session.address}"})
        power.sample(
            *(session, artifacts, shards, sensing.wanted, folder, sensing.windows, window_s, window_s / 2),
            bench.plan.seed,
            overhead_rounds=rounds,
        )

    stage = f"energy of {names}"
    if bench.remeasure:
        bench.cache.forget(stage, inputs)
    return power.Run.read(bench.cache.stage(stage, inputs, build))
