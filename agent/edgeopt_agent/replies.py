"""What the board answers as schemas: replies by op, results by kind of job, events. The host checks each of them before
it uses any of it (requests.py is the other half).

Numbers are bounded, so that nothing that is computed of them overflows.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from .requests import CLOCK, HERTZ, LATEST_S, MEASURED_ON, MOST_HZ, MOST_SIZE, NAME, SHA256, SIZE, VERSION, WORD
from .schema import Schema, check, flag, items, matching, maybe, number, one_of, record, seconds, table, text, whole

MOST_FILE_BYTES = 1 << 30  # of a job's file: the host keeps it in memory
MOST_EVENTS = 1_000_000  # of a job

# What the board says of itself

IDENTITY = record({name: maybe(text(1000)) for name in ("model", "serial", "machine_id")})
SENSOR_PARTS: Dict[str, Schema] = {
    "kind": WORD,
    "rail": WORD,
    "where": text(),
    "quantity": one_of("power_w", "energy_j"),
    "interval_s": seconds(),
    "resolution": maybe(number(0)),
    "range_j": maybe(number(0)),
}
PACKAGE = record({"package": WORD, "version": VERSION})
HARDWARE: Dict[str, Schema] = {
    "machine": matching(r"\w{1,60}", "an architecture"),
    "userland": matching(r"\w{1,60}", "an architecture"),
    "cpu_model": maybe(text(1000)),
    "cpu_features": items(WORD, most=10_000),
    "cores": maybe(whole(1, 1 << 20)),
    "cores_present": maybe(whole(1, 1 << 20)),
    "cores_allowed": whole(1, 1 << 20),
    "memory_bytes": maybe(SIZE),
    "system": maybe(text(1000)),
}
FACTS = record(
    {
        "hostname": text(1000),
        "model": maybe(text(1000)),
        "serial": maybe(text(1000)),
        "machine_id": maybe(text(1000)),
        **HARDWARE,
        "kernel": WORD,
        "python": VERSION,
        "governor": maybe(WORD),
        "frequency_control": maybe(
            record({"min_hz": HERTZ, "max_hz": HERTZ, "steps_hz": items(HERTZ), "settable": flag})
        ),
        "runtimes": table(NAME, maybe(PACKAGE)),
        "sensors": items(record(SENSOR_PARTS), most=10_000),
        "sensor_problems": items(text(), most=10_000),
    }
)
NUMBERS = r"\d{1,4}\.\d{1,4}"
SET_UP = record({"whole": flag}, {"python": VERSION, "runtimes": items(NAME)})
ENVIRONMENT = record(
    {
        "python": matching(NUMBERS + r"\.\d{1,4}", "a version of Python"),
        "executable": text(),
        "implementation": WORD,
        "machine": matching(r"\w{1,60}", "an architecture"),
        "libc": maybe(record({"name": one_of("glibc", "musl"), "version": matching(NUMBERS, "a version")})),
        "frequencies_max_hz": items(whole(0, 1 << 50), most=1 << 20),
        "venv": flag,
        "pip": flag,
        "numpy": maybe(VERSION),
        "current": maybe(SET_UP),
    }
)
RECORD: Dict[str, Schema] = {
    "number": whole(),
    "release": SHA256,
    "previous_activation": maybe(whole()),
    "why": WORD,
    "activated_at": CLOCK,
}
ACTIVATION = record(RECORD)
RELEASE = record(
    {
        **{name: maybe(schema) for name, schema in RECORD.items()},
        "name": maybe(text(200)),
        "verdict": maybe(WORD),
        "whole": maybe(flag),
        "problem": maybe(text()),
        "measured_on": maybe(MEASURED_ON),
    },
    {"confirmed": flag},
)
STATUS: Dict[str, Schema] = {"root": text(), "current": maybe(RELEASE), "previous": maybe(RELEASE)}

# What a job says meanwhile, and at its end

JOB = record(
    {"job": NAME, "kind": WORD, "by": maybe(WORD), "waits": flag, "for_s": maybe(number(-LATEST_S, LATEST_S))},
    {"followed": flag},
)
STATE = one_of("running", "done", "failed", "lost")
ERROR = record({"kind": WORD, "message": text(1 << 18)}, {"traceback": maybe(text(1 << 20))})
OUTPUT = record({"name": NAME, "size_bytes": whole(0, MOST_FILE_BYTES), "sha256": SHA256})
COUNTED = maybe(table(WORD, SIZE))
EXECUTED = record(
    {"threads": maybe(whole()), "ops": COUNTED, "delegate_nodes": maybe(whole()), "precision": maybe(WORD)},
    {"macs": COUNTED, "macs_at": COUNTED, "places": maybe(table(WORD, table(WORD, SIZE)))},
)
READING = record(
    {
        "at_s": CLOCK,
        "load_1min": number(0),
        "memory_available_bytes": maybe(SIZE),
        "temperature_c": maybe(number(-1e9, 1e9)),
        "frequency_hz": maybe(items(number(-MOST_HZ, MOST_HZ))),
        "throttle": maybe(table(WORD, flag)),
        "throttle_count": maybe(whole(-(1 << 50))),
        "cooling": maybe(items(WORD)),
        "power_mode": record({"governor": maybe(WORD), "frequency_max_hz": maybe(items(HERTZ))}),
        "others": maybe(
            record(
                {
                    "seconds": seconds(),
                    "cores": number(0, 1e9),
                    "busiest": items(record({"name": WORD, "pid": whole(), "cores": number(-1e9, 1e9)}), most=1000),
                }
            )
        ),
    }
)
TENSORS = items(record({"name": text(), "shape": items(whole(-1, 1 << 40), most=100), "dtype": WORD}), most=10_000)
MEASURED: Dict[str, Schema] = {"conditions": items(READING, least=1)}
RESULTS: Dict[str, Schema] = {
    "bench": record(
        {
            "artifacts": items(
                record(
                    {
                        "load_s": seconds(),
                        "first_inference_s": maybe(seconds()),
                        "pre_s": items(seconds(), least=1),
                        "post_s": items(seconds(), least=1),
                        "executed": EXECUTED,
                        "memory": record(
                            {
                                "peak_rss_bytes": maybe(SIZE),
                                "above_runtime_bytes": maybe(whole(-MOST_SIZE, MOST_SIZE)),
                            }
                        ),
                        "load_cold_s": maybe(seconds()),
                        "samples": OUTPUT,
                    },
                    {"inputs": TENSORS, "outputs": TENSORS, "frequency_max_hz": maybe(HERTZ)},
                ),
                least=1,
            ),
            "blocks": items(
                record(
                    {"artifact": whole(), "round": whole(), "n": whole(1), "began_s": seconds(), "seconds": seconds()}
                ),
                least=1,
            ),
            "capped": flag,
            "turns": whole(1, 1 << 40),
            "shared_cpus": items(items(whole(0, 1 << 20))),
            "renew": whole(0, 1 << 40),
            **MEASURED,
        }
    ),
    "infer": record({"executed": EXECUTED, "outputs": items(OUTPUT)}),
    "operators": record(
        {
            "operators": items(
                record(
                    {
                        "op": WORD,
                        "name": text(),
                        "place": WORD,
                        "type": maybe(WORD),
                        "macs": maybe(SIZE),
                        "seconds": maybe(seconds()),
                    }
                )
            ),
            "executed": EXECUTED,
        }
    ),
    "energy": record(
        {
            "sensor": maybe(record({**SENSOR_PARTS, "period_s": seconds()})),
            "marks": items(
                record({"artifact": maybe(whole()), "n": whole(), "began_s": CLOCK, "ended_s": CLOCK}), least=1
            ),
            "clocks": items(record({"monotonic_s": CLOCK, "realtime_s": CLOCK})),
            "failures": table(text(), whole()),
            "products": items(items(number(), 3, 3)),
            "power": maybe(OUTPUT),
            "overhead": items(record({"sampling": flag, "n": whole(1)})),
            "overhead_samples": maybe(OUTPUT),
            "executed": items(EXECUTED, least=1),
            "frequency_max_hz": items(maybe(HERTZ)),
            **MEASURED,
        }
    ),
    "load": record(
        {
            "streams": items(
                record(
                    {
                        "streams": whole(1, 4096),
                        "batch": whole(1, 4096),
                        "blocks": items(
                            record({"n": whole(1), "queries": whole(1), "seconds": seconds(1e-9)}), least=1
                        ),
                        "samples": items(OUTPUT, least=1),
                    }
                )
            ),
            "batches": items(
                record(
                    {"batch": whole(1, 4096)},
                    {
                        "refused": text(),
                        "streams": whole(1, 4096),
                        "blocks": items(
                            record({"n": whole(1), "queries": whole(1), "seconds": seconds(1e-9)}), least=1
                        ),
                        "samples": items(OUTPUT, least=1),
                    },
                )
            ),
            "rates": items(
                record(
                    {
                        "rate_per_s": number(0, 1e12),
                        "offered": whole(),
                        "served": whole(),
                        "seconds": seconds(1e-9),
                        "samples": OUTPUT,
                    }
                )
            ),
            "each": maybe(record({"repeats": whole(), "samples": OUTPUT})),
            "executed": EXECUTED,
            **MEASURED,
        }
    ),
}
HEALTH = record(
    {
        "correct": maybe(whole()),
        "finite": flag,
        "output_error": maybe(number()),
        "median_latency_s": seconds(),
        "slow": maybe(text()),
    }
)
RESULTS["activate"] = record({"activation": ACTIVATION, "health": maybe(HEALTH), "already": flag})
RESULTS["rollback"] = record(
    {**STATUS, "current": RELEASE, "activation": ACTIVATION, "health": maybe(HEALTH), "from": SHA256}
)
RESULTS["set-up"] = record({"id": SHA256, "python": text(), "versions": table(NAME, maybe(PACKAGE))})


def _event(value: Any) -> None:
    """ "progress" counts, others only say something."""
    _EVENT(value)
    if value["event"] == "progress":
        _PROGRESS(value)


_EVENT = record({"event": WORD, "what": text()}, {"behind": maybe(text(200))})
_PROGRESS = record({"done": SIZE, "of": SIZE}, {"power_w": maybe(number(-1e9, 1e9))})


def _outcome(value: Any) -> None:
    """What a job left: {"ok": true, "result"} or {"ok": false, "error"}; the result is its kind's (RESULTS)."""
    record({"ok": flag})(value)
    record({"result": record({})} if value["ok"] else {"error": ERROR})(value)


HELD = record({"have": SIZE, "whole": flag})
REPLIES: Dict[str, Schema] = {
    "hello": record(
        {
            "wire": whole(),
            "agent_sha256": maybe(SHA256),
            "python": VERSION,
            "root": text(),
            "pid": whole(),
            "board": IDENTITY,
            "hardware": record(HARDWARE),
        }
    ),
    "facts": FACTS,
    "clock": record({"monotonic_s": CLOCK}),
    "environment": ENVIRONMENT,
    "blob.stat": table(SHA256, HELD),
    "blob.put": HELD,
    "job.start": record({"state": STATE, "warning": maybe(text())}),
    "job.poll": record(
        {"state": STATE, "events": items(_event), "offset": whole(), "result": maybe(_outcome)}, {"log": text()}
    ),
    "job.file": record({"size_bytes": whole()}),
    "job.cancel": record({"state": STATE}),
    "status": record({**STATUS, "recovered": maybe(ACTIVATION), "jobs": items(JOB, most=100_000)}),
}
ENVELOPE = record({"id": whole(), "ok": flag})


def reply_problem(op: str, number: int, reply: Any) -> Optional[str]:
    """What is wrong with the board's reply to a request, in words; None where nothing is."""
    wrong = check(ENVELOPE, reply)
    if wrong is None and reply["id"] != number:
        wrong = f"its id is {reply['id']}"
    return wrong or check(record({"result": REPLIES[op]} if reply["ok"] else {"error": ERROR}), reply)


def result_problem(kind: str, result: Any) -> Optional[str]:
    """The same of what a job of some kind found."""
    return check(record({"result": RESULTS[kind]}), {"result": result})
