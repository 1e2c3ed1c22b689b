"""Flash, rollback and status: the host brings bytes and asks; the board checks, decides and switches."""

from __future__ import annotations

from typing import Any

from . import measure
from .bundle import Bundle
from .device.session import Session
from .errors import AgentFailure

KEPT = {
    "health": "the board keeps its current release",
    "integrity": "the board keeps its current release",
    "no-space": "the board keeps its current release",
    "hook": "the board keeps its current release",
}


def flash(session: Session, bundle: Bundle, python: str) -> dict[str, Any]:
    """Make the bundle's release current on the board: {"activation", "health", "release", "name", "already"}.

    Every blob is checked before the first is sent, and the runtime before anything is. Raises IntegrityError,
    AgentFailure (no-space, read-only, missing-runtime, health, …), DeviceUnreachable.
    """
    bundle.check()
    measure.require_runtime(session.facts(), bundle.manifest.artifact.runtime, session.address, python)
    before = session.status(verify=True)["current"]
    done = {"release": bundle.release, "name": bundle.manifest.name, "device": session.address}
    if before is not None and before["release"] == bundle.release and before["whole"]:
        return {**done, "already": True, "activation": None, "health": None}
    for name, entry in bundle.manifest.files.items():
        session.send(bundle.blob(entry), name)
    try:
        _, result = session.run({"kind": "activate", "release": bundle.release, "manifest": bundle.text})
    except AgentFailure as error:
        if error.kind in KEPT and before is not None:
            raise AgentFailure(f"{error}; {KEPT[error.kind]}", error.kind, error.traceback) from error
        raise
    return {**done, "already": False, **result}


def rollback(session: Session) -> dict[str, Any]:
    """Make the predecessor of the current release current: {"activation", "health", "from"}. Raises AgentFailure."""
    _, result = session.run({"kind": "rollback"})
    return result
