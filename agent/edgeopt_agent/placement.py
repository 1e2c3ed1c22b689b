"""Operator by operator: where an artifact runs and how long each takes, in a worker of its own, never a timed one."""

from __future__ import annotations

from typing import Any, Dict

from .bench import artifact_of
from .jobs import Context
from .power_mode import held
from .wire import count, field
from .worker import Worker


def run(context: Context, request: Dict[str, Any]) -> Dict[str, Any]:
    """The request has artifact, shards (none: random tensors) and runs: queries behind each time, 0: no times."""
    artifact = artifact_of(context, field(request, "artifact", dict))
    shards = [context.blob(sha) for sha in field(request, "shards", list)]
    runs = count(request, "runs")
    if not shards:
        artifact = dict(artifact, preprocess=[])
    with held(context, request.get("power_mode") or {}), Worker(artifact) as worker:
        worker.load(shards[:1], most=1, random=0 if shards else 1)
        return worker.ask("operators", runs=runs)
