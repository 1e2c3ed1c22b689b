"""What the host asks as schemas: requests by op, jobs by kind, a release's manifest. The agent checks each of them
before it uses any of it (replies.py is the other half).

Numbers are bounded, so that nothing that is computed of them overflows; names cannot leave their folder.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from . import preprocess, wire
from .schema import (
    Mismatch,
    Schema,
    check,
    flag,
    items,
    matching,
    maybe,
    number,
    record,
    seconds,
    shown,
    table,
    text,
    whole,
)
from .wire import RemoteError

MOST_MANIFEST = 4 << 20
MOST_SIZE = 1 << 50
MOST_HZ = 1e12
LATEST_S = 2.5e11  # since 1970: the year 9892

NAME = matching(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}", "a plain name: letters, digits and . _ -")
SHA256 = matching(r"[0-9a-f]{64}", "a SHA-256")
WHEEL = matching(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,250}\.whl", "the name of a wheel")
VERSION = matching(r"[A-Za-z0-9][A-Za-z0-9.+!_~-]{0,60}", "a version")
WORD = text(200)
SIZE = whole(0, MOST_SIZE)
CLOCK = number(0, LATEST_S)
HERTZ = number(0, MOST_HZ)


def manifest(content: str) -> Dict[str, Any]:
    """A release's manifest, read and checked. Raises RemoteError('bad-request')."""
    try:
        found = wire.parse(content)
    except ValueError as error:
        raise RemoteError("bad-request", f"the manifest is not JSON: {error}") from error
    wrong = manifest_problem(found)
    if wrong:
        raise RemoteError("bad-request", f"the manifest is not one that this agent knows: {wrong}")
    return dict(found)


def manifest_problem(value: Any) -> Optional[str]:
    """What is wrong with the parts of a manifest that a board uses, in words; None where nothing is."""
    return check(_whole_manifest, value)


def require(schema: Schema, value: Any, what: str) -> None:
    """Raises RemoteError('bad-request') for a request that its schema does not take."""
    wrong = check(schema, value)
    if wrong:
        raise RemoteError("bad-request", f"{what}: {wrong}")


def _steps(value: Any) -> None:
    """Steps of preprocessing of one input (preprocess.py)."""
    wrong = preprocess.problems(value)
    if wrong:
        raise Mismatch(f"steps that are known: {wrong[0]}", value)


def _metric(value: Any) -> None:
    if not isinstance(value, str) or value not in preprocess.METRICS:
        raise Mismatch(f"one of {', '.join(preprocess.METRICS)}", value)


# What requests say

STEPS = items(_steps, most=1000)
OPTIONS = table(text(100), text(), most=100)
FILES_SHA256 = table(NAME, SHA256, least=1, most=1000)


def _artifact(value: Any) -> None:
    _ARTIFACT(value)
    if value["file"] not in value["files"]:
        raise Mismatch("an artifact whose 'file' is one of its 'files'", value["file"])


_ARTIFACT = record(
    {
        "file": NAME,
        "files": FILES_SHA256,
        "runtime": NAME,
        "threads": whole(1, 4096),
        "preprocess": STEPS,
        "options": OPTIONS,
    },
    {"frequency_max_hz": maybe(HERTZ)},
)
SHARDS = items(SHA256, most=100_000)
POWER_MODE = {"power_mode": maybe(record({}, {"governor": maybe(WORD), "frequency_max_hz": maybe(HERTZ)}))}
COUNTS = items(whole(1, 4096), most=1000)
JOBS: Dict[str, Schema] = {
    "bench": record(
        {
            "artifacts": items(_artifact, least=1, most=100),
            "shards": SHARDS,
            "min_queries": whole(0, 1 << 40),
            "min_seconds": seconds(),
            "cap_seconds": seconds(),
            "block_seconds": seconds(),
            "rounds": whole(1, 1_000_000),
            "renew": whole(0, 1_000_000),
            "seed": whole(0),
        },
        {"keep": maybe(whole(1)), **POWER_MODE},
    ),
    "infer": record({"artifact": _artifact, "shards": SHARDS}),
    "operators": record({"artifact": _artifact, "shards": SHARDS, "runs": whole(0, 100_000)}, POWER_MODE),
    "energy": record(
        {
            "artifacts": items(_artifact, least=1, most=100),
            "shards": SHARDS,
            "windows": whole(1, 100_000),
            "window_seconds": seconds(),
            "idle_seconds": seconds(),
            "overhead_rounds": whole(0, 10_000),
            "seed": whole(0),
        },
        {"sensor": maybe(record({}, {"kind": maybe(WORD), "rail": maybe(WORD)})), **POWER_MODE},
    ),
    "load": record(
        {
            "artifact": _artifact,
            "shards": SHARDS,
            "streams": COUNTS,
            "batches": COUNTS,
            "rates": items(number(1e-6, 1e9), most=1000),
            "repeats": whole(0, 1_000_000),
            "seconds": seconds(),
            "seed": whole(0),
        },
        POWER_MODE,
    ),
    "activate": record({"manifest": text(MOST_MANIFEST), "release": SHA256}),
    "rollback": record({}),
    "set-up": record({"wheels": table(WHEEL, SHA256, most=1000), "runtimes": items(NAME), "system_packages": flag}),
}


def job_request(value: Any) -> None:
    """Raises RemoteError('bad-request') for a job that this agent cannot begin."""
    require(record({"kind": text(100)}), value, "a job's request")
    kind = value["kind"]
    if kind not in JOBS:
        raise RemoteError("bad-request", f"unknown job kind {shown(kind)}; known: {', '.join(JOBS)}")
    require(JOBS[kind], value, f"the request of a job '{kind}'")


NO_FIELDS = record({})
REQUESTS: Dict[str, Schema] = {
    "facts": NO_FIELDS,
    "clock": NO_FIELDS,
    "environment": NO_FIELDS,
    "blob.stat": record({"sha256": items(SHA256, most=100_000)}),
    "blob.put": record({"sha256": SHA256, "size_bytes": SIZE, "offset": SIZE}),
    "job.start": record({"job": NAME, "request": record({})}, {"by": maybe(text(1000)), "followed": flag}),
    "job.poll": record({"job": NAME, "offset": whole(), "wait_s": seconds()}),
    "job.file": record({"job": NAME, "name": NAME, "offset": whole(), "limit": whole()}),
    "job.cancel": record({"job": NAME}),
    "status": record({"verify": flag}),
}

# A release

LIMIT = maybe(number(0))
FILE = record({"sha256": SHA256, "size_bytes": SIZE})
SAID = maybe(text(1000))
DIFFERENCE = record({"what": text(1000), "profile": text(1000), "board": text(1000)})
MEASURED_ON = record(  # what is told of the board of a release's figures
    {},
    {
        **{name: SAID for name in ("model", "machine", "userland", "cpu_model", "system")},
        **{name: maybe(whole()) for name in ("cores", "cores_allowed", "memory_bytes")},
        "stand_in": maybe(record({"profile": text(1000), "name": text(1000), "differences": items(DIFFERENCE)})),
    },
)
_MANIFEST = record(
    {
        "name": NAME,
        "artifact": record(
            {"file": NAME, "runtime": NAME, "threads": whole(1, 4096), "preprocess": STEPS}, {"options": OPTIONS}
        ),
        "files": table(NAME, FILE, least=1, most=1000),
        "health": record(
            {
                "file": NAME,
                "metric": maybe(_metric),
                "of": whole(),
                "least_correct": maybe(whole()),
                "greatest_median_latency_s": LIMIT,
                "greatest_output_error": LIMIT,
            }
        ),
        "policy": record({}, {"confirm_within_s": maybe(seconds())}),
    },
    {"verdict": WORD, "measured_on": maybe(MEASURED_ON)},
)


def _whole_manifest(value: Any) -> None:
    """What the agent uses of a manifest; the host's own reader knows the rest (edgeopt.bundle)."""
    _MANIFEST(value)
    names = value["files"]
    for part in ("artifact", "health"):
        if value[part]["file"] not in names:
            raise Mismatch(f"a manifest whose {part}'s file is one of its files", value[part]["file"])
    if "manifest.json" in names:
        raise Mismatch("a manifest that does not list itself among its files", "manifest.json")
